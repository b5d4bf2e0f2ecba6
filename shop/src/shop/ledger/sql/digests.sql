-- The digests of the sealed rows, and the hash that links the seals. Seals and `shop check` compute them with these
-- functions.
--
-- `record_send` writes each value with its type and length, NULL as the length -1, and times as integers. Texts are
-- converted to bytes first, because it would write them in the client's encoding. So no session setting changes a
-- digest, and neither does a new length of a column.
--
-- A changed function makes all earlier seals wrong. Append a new column only where it isn't NULL, so that the digests
-- of old rows stay valid: `|| CASE WHEN t.added IS NULL THEN '' ELSE record_send(ROW(t.added)) END`.
--
-- The functions have no SET clause: PostgreSQL couldn't inline them then.

CREATE OR REPLACE FUNCTION digest_of_transfer(t transfers) RETURNS bytea LANGUAGE sql STABLE AS $$
SELECT substr(sha256(record_send(ROW(
    t.id, t.from_account_id, t.from_entry_number, t.to_account_id, t.to_entry_number, t.amount,
    convert_to(t.currency, 'UTF8'), convert_to(t.description, 'UTF8'), convert_to(t.metadata::text, 'UTF8'),
    t.effective_at, t.reverses_id, t.reversed_total, t.group_id, t.created_at
))), 1, 16)
$$;

CREATE OR REPLACE FUNCTION digest_of_pending_transfer(t pending_transfers) RETURNS bytea LANGUAGE sql STABLE AS $$
SELECT substr(sha256(record_send(ROW(
    t.id, t.from_account_id, t.to_account_id, t.amount,
    convert_to(t.currency, 'UTF8'), convert_to(t.description, 'UTF8'), convert_to(t.metadata::text, 'UTF8'),
    t.effective_at, t.group_id, convert_to(t.state, 'UTF8'), t.expires_at, t.created_at, t.settled_at
))), 1, 16)
$$;

CREATE OR REPLACE FUNCTION digest_of_idempotency_key(t idempotency_keys) RETURNS bytea LANGUAGE sql STABLE AS $$
SELECT substr(sha256(record_send(ROW(
    convert_to(t.scope, 'UTF8'), convert_to(t.key, 'UTF8'), t.fingerprint, t.transfer_id,
    convert_to(t.refusal, 'UTF8'), t.created_at, t.account_id, convert_to(t.answer, 'UTF8')
))), 1, 16)
$$;

-- Without balance, held, entry_count and updated_at: `shop check` compares them with entries and pending transfers.
CREATE OR REPLACE FUNCTION digest_of_account(t accounts) RETURNS bytea LANGUAGE sql STABLE AS $$
SELECT substr(sha256(record_send(ROW(
    t.id, t.user_id, convert_to(t.name, 'UTF8'), convert_to(t.currency, 'UTF8'), convert_to(t.purpose, 'UTF8'),
    t.allows_negative, t.overdraft_limit, t.balance_limit, convert_to(t.state, 'UTF8'),
    convert_to(t.metadata::text, 'UTF8'), t.created_at
))), 1, 16)
$$;

CREATE OR REPLACE FUNCTION hash_of_seal(previous_hash bytea, s seals) RETURNS bytea LANGUAGE sql STABLE AS $$
SELECT sha256(coalesce(previous_hash, '') || record_send(ROW(
    s.id, convert_to(s.subject, 'UTF8'), s.ids, s.revisions, s.digests, s.previous_digests, s.created_at
)))
$$;
