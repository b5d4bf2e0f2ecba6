-- Post transfers: INSERT INTO transfers creates the entries and changes the balances, and nothing else may do so.
--
-- The trigger handles all transfers that one statement inserts. It raises an error unless
-- - both accounts exist, are open, and have the transfer's currency,
-- - the entry numbers continue the account's entries without a gap,
-- - no entry is older than the one before it in its account,
-- - no transfer is ahead of the database's clock,
-- - a transfer with `posted_by`, on behalf of a customer, debits an account of this customer, or posts a hold that the
--   customer has settled. (A trigger on pending_transfers ensures that this is the payee.)
-- The CHECK constraints of accounts compare the new balances with the limits.
--
-- The function has the rights of its owner (SECURITY DEFINER), so that no role of the service needs a right to insert
-- entries or to change a balance. Nobody may execute it: otherwise a role could attach it to a table of its own.
-- PostgreSQL doesn't check this right when a trigger fires.

CREATE OR REPLACE FUNCTION post_transfers() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
-- These settings allow only hash joins, and find accounts by their key. A connection plans the statement once, perhaps
-- for one transfer, and may use the plan for a thousand transfers later.
SET enable_seqscan = off
SET enable_nestloop = off
SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    -- has an element for each entry to create, so it may contain an account several times
    account_ids CONSTANT uuid[] := ARRAY(SELECT from_account_id FROM added UNION ALL SELECT to_account_id FROM added);
    latest timestamptz;
    customer_transfers bigint;
    created bigint;
BEGIN
    SELECT max(created_at), count(posted_by) INTO latest, customer_transfers FROM added;
    -- One second is allowed for a clock that was set back during the transaction. After a failover, the clock may be
    -- behind updated_at of an account. Then the next transfers of the account have the time of updated_at.
    IF latest > clock_timestamp() + interval '1 second' AND latest > (
        SELECT max(updated_at) + interval '1 second' FROM accounts WHERE id = ANY (account_ids)
    ) THEN
        RAISE EXCEPTION 'transfer rejected: its created_at, %, is in the future', latest
            USING ERRCODE = 'check_violation', CONSTRAINT = 'transfer_not_in_future', TABLE = 'transfers',
                HINT = 'Set created_at to clock_timestamp(), or to updated_at of its accounts if that is later.';
    END IF;
    -- This comes before the money moves. An owner never changes, so the accounts need not be locked for it. The holds
    -- are read by a scalar subquery, which PostgreSQL can't turn into a join with all holds.
    IF customer_transfers > 0 AND EXISTS (
        SELECT FROM added t
        LEFT JOIN accounts a ON a.id = t.from_account_id
            AND a.id = ANY (ARRAY(SELECT from_account_id FROM added WHERE posted_by IS NOT NULL))
        WHERE t.posted_by IS NOT NULL AND a.user_id IS DISTINCT FROM t.posted_by AND (
            SELECT p.state = 'posted' AND p.settled_by = t.posted_by AND p.amount >= t.amount
                AND p.from_account_id = t.from_account_id AND p.to_account_id = t.to_account_id
            FROM pending_transfers p WHERE p.id = t.id
        ) IS NOT TRUE
    ) THEN
        RAISE EXCEPTION 'transfer rejected: its posted_by is not the owner of its from_account_id'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'transfer_posted_by_owner', TABLE = 'transfers',
                HINT = 'A customer debits only their own accounts. Leave posted_by NULL for operators and the system.';
    END IF;
    WITH new_entries AS MATERIALIZED (
        SELECT from_account_id AS account_id, from_entry_number AS entry_number, id, currency, -amount AS amount,
            created_at
        FROM added
        UNION ALL
        SELECT to_account_id, to_entry_number, id, currency, amount, created_at FROM added
    ), changes AS MATERIALIZED (
        SELECT account_id, currency, count(*) AS entries, min(entry_number) AS first, max(entry_number) AS last,
            sum(amount) AS change, min(created_at) AS first_at, max(created_at) AS last_at
        FROM new_entries GROUP BY account_id, currency
    ), balances AS (
        UPDATE accounts a SET balance = a.balance + change, entry_count = last, updated_at = last_at
        FROM changes c
        WHERE a.id = ANY (account_ids) AND a.id = c.account_id AND a.currency = c.currency AND a.state = 'open'
            AND a.entry_count = first - 1 AND last - first = c.entries - 1 AND a.updated_at <= first_at
        RETURNING a.id, a.currency, a.balance - change AS before
    )
    INSERT INTO entries (account_id, entry_number, transfer_id, amount, balance_after, created_at)
    SELECT account_id, entry_number, id, amount, balance_after, created_at
    FROM (
        SELECT new_entries.*, balances.before + sum(amount) OVER w AS balance_after, lag(created_at) OVER w AS earlier
        FROM new_entries
        JOIN balances ON balances.id = new_entries.account_id AND balances.currency = new_entries.currency
        WINDOW w AS (PARTITION BY account_id ORDER BY entry_number ROWS UNBOUNDED PRECEDING)
    ) numbered
    WHERE earlier IS NULL OR earlier <= created_at;
    GET DIAGNOSTICS created = ROW_COUNT;
    -- an account that fails one of the conditions above has no row in balances, so its entries are missing here
    IF created <> cardinality(account_ids) THEN
        RAISE EXCEPTION 'transfer rejected: it does not continue the entries of its accounts'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'transfer_matches_accounts', TABLE = 'transfers',
                HINT = 'Both accounts must exist, be open, and have the currency of the transfer. Each entry number '
                    'must follow entry_count of its account, and created_at must not be earlier than its updated_at.';
    END IF;
    RETURN NULL;
END
$$;

-- With this search_path, a temporary table named accounts or entries can't replace the ledger's table. The name of the
-- schema is known only when this file is executed. `SET search_path FROM CURRENT` would store a path without pg_temp.
-- PostgreSQL searches pg_temp first if the path doesn't contain it.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION post_transfers SET search_path = %I, pg_temp', current_schema());
END
$$;

REVOKE ALL ON FUNCTION post_transfers FROM PUBLIC;

CREATE OR REPLACE TRIGGER post_transfers AFTER INSERT ON transfers REFERENCING NEW TABLE AS added
FOR EACH STATEMENT EXECUTE FUNCTION post_transfers();

CREATE OR REPLACE FUNCTION reject_direct_write() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'entries, balances and entry counts are never written directly: insert a row into transfers'
        USING ERRCODE = 'object_not_in_prerequisite_state';
END
$$;

-- pg_trigger_depth() is 0 for a statement of a client, and more for a statement of post_transfers().
CREATE OR REPLACE TRIGGER reject_direct_insert BEFORE INSERT ON entries
FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION reject_direct_write();

CREATE OR REPLACE TRIGGER reject_direct_balance_change BEFORE UPDATE OF balance, entry_count ON accounts
FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION reject_direct_write();
