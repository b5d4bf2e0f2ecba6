-- The digests of the sealed rows, and the hash that links the seals. Seals and `shop check` compute them with these
-- functions.
--
-- `record_send` writes each value with its type and length. NULL has the length -1. Times are integers. Text is
-- converted to bytes first, because `record_send` would write it in the client's encoding. So a digest depends neither
-- on settings of the session nor on the declared length of a column.
--
-- Do not change these functions: all existing seals would become wrong. For a new column, append an expression that
-- leaves the digests of old rows as they are:
-- `|| CASE WHEN t.added IS NULL THEN '' ELSE record_send(ROW(1, t.added)) END`.
-- The number is different for each appended column of a table. Without it, a value that moves from one appended column
-- to another would not change the digest. For text and JSON, the expression also converts the value:
-- `|| CASE WHEN t.added IS NULL THEN '' ELSE record_send(ROW(1, convert_to(t.added::text, 'UTF8'))) END`.
--
-- The functions have no SET clause, because PostgreSQL can't inline a function with a SET clause.

CREATE OR REPLACE FUNCTION digest_of_transfer(t transfers) RETURNS bytea LANGUAGE sql STABLE AS $$
SELECT substr(sha256(record_send(ROW(
    t.id, t.from_account_id, t.from_entry_number, t.to_account_id, t.to_entry_number, t.amount,
    convert_to(t.currency, 'UTF8'), convert_to(t.description, 'UTF8'), convert_to(t.metadata::text, 'UTF8'),
    t.effective_at, t.reverses_id, t.reversed_total, t.group_id, t.created_at
)) || CASE WHEN t.posted_by IS NULL THEN '' ELSE record_send(ROW(1, t.posted_by)) END), 1, 16)
$$;

CREATE OR REPLACE FUNCTION digest_of_pending_transfer(t pending_transfers) RETURNS bytea LANGUAGE sql STABLE AS $$
SELECT substr(sha256(record_send(ROW(
    t.id, t.from_account_id, t.to_account_id, t.amount,
    convert_to(t.currency, 'UTF8'), convert_to(t.description, 'UTF8'), convert_to(t.metadata::text, 'UTF8'),
    t.effective_at, t.group_id, convert_to(t.state, 'UTF8'), t.expires_at, t.created_at, t.settled_at
))
    || CASE WHEN t.posted_by IS NULL THEN '' ELSE record_send(ROW(1, t.posted_by)) END
    || CASE WHEN t.settled_by IS NULL THEN '' ELSE record_send(ROW(2, t.settled_by)) END
), 1, 16)
$$;

CREATE OR REPLACE FUNCTION digest_of_idempotency_key(t idempotency_keys) RETURNS bytea LANGUAGE sql STABLE AS $$
SELECT substr(sha256(record_send(ROW(
    convert_to(t.scope, 'UTF8'), convert_to(t.key, 'UTF8'), t.fingerprint, t.transfer_id,
    convert_to(t.refusal, 'UTF8'), t.created_at, t.account_id, convert_to(t.answer, 'UTF8')
))), 1, 16)
$$;

-- Without balance, held, entry_count and updated_at, which `shop check` compares with entries and pending transfers.
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
