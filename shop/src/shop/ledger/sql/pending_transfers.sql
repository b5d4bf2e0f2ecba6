-- A pending transfer is posted or voided once. No other column changes, and the row is never deleted. A customer creates
-- only holds on their own accounts (`posted_by`), and posts or voids only holds to their own accounts (`settled_by`).

-- These settings make PostgreSQL find the accounts by their key, also after their number has grown.
CREATE OR REPLACE FUNCTION check_new_pending_transfers() RETURNS trigger LANGUAGE plpgsql
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
DECLARE
    wrong text;
BEGIN
    SELECT CASE WHEN payer.user_id IS DISTINCT FROM t.posted_by AND t.posted_by IS NOT NULL THEN 'posted_by'
        ELSE 'settled_by' END
    INTO wrong
    FROM added t
    LEFT JOIN accounts payer ON payer.id = t.from_account_id
    LEFT JOIN accounts payee ON payee.id = t.to_account_id
    WHERE (t.posted_by IS NOT NULL OR t.settled_by IS NOT NULL) AND (
        (t.posted_by IS NOT NULL AND payer.user_id IS DISTINCT FROM t.posted_by)
        OR (t.settled_by IS NOT NULL AND payee.user_id IS DISTINCT FROM t.settled_by)
    )
    LIMIT 1;
    IF wrong = 'posted_by' THEN
        RAISE EXCEPTION 'pending transfer rejected: its posted_by is not the owner of its from_account_id'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'pending_transfer_posted_by_owner',
                TABLE = 'pending_transfers',
                HINT = 'A customer holds only on their own accounts. Leave posted_by NULL for operators and the system.';
    ELSIF wrong = 'settled_by' THEN
        RAISE EXCEPTION 'pending transfer rejected: its settled_by is not the owner of its to_account_id'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'pending_transfer_settled_by_payee',
                TABLE = 'pending_transfers',
                HINT = 'Only the payee can post or void it. Leave settled_by NULL for operators and the system.';
    END IF;
    -- One second is allowed for a clock that was set back during the transaction.
    IF EXISTS (SELECT FROM added WHERE created_at > clock_timestamp() + interval '1 second') THEN
        RAISE EXCEPTION 'pending transfer rejected: its created_at is in the future'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'pending_transfer_not_in_future',
                TABLE = 'pending_transfers', HINT = 'Set created_at to clock_timestamp().';
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER check_new_pending_transfers AFTER INSERT ON pending_transfers REFERENCING NEW TABLE AS added
FOR EACH STATEMENT EXECUTE FUNCTION check_new_pending_transfers();

CREATE OR REPLACE FUNCTION allow_only_settling() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.state = 'pending' AND NEW.state <> 'pending'
        AND (to_jsonb(NEW) - ARRAY['state', 'settled_at', 'settled_by'])
            = (to_jsonb(OLD) - ARRAY['state', 'settled_at', 'settled_by'])
    THEN
        IF NEW.settled_by IS NOT NULL AND NOT EXISTS (
            SELECT FROM accounts WHERE id = NEW.to_account_id AND user_id = NEW.settled_by
        ) THEN
            RAISE EXCEPTION 'pending transfer %: its settled_by is not the owner of its to_account_id', NEW.id
                USING ERRCODE = 'check_violation', CONSTRAINT = 'pending_transfer_settled_by_payee',
                    TABLE = 'pending_transfers',
                    HINT = 'Only the payee can post or void it. Leave settled_by NULL for operators and the system.';
        END IF;
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'pending transfers are never deleted, and changed only once: when they are posted or voided'
        USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Void it while it is pending, and create another one.';
END
$$;

CREATE OR REPLACE TRIGGER allow_only_settling BEFORE UPDATE OR DELETE ON pending_transfers
FOR EACH ROW EXECUTE FUNCTION allow_only_settling();

CREATE OR REPLACE TRIGGER reject_truncate BEFORE TRUNCATE ON pending_transfers
FOR EACH STATEMENT EXECUTE FUNCTION allow_only_settling();

-- With this search_path, a temporary table named accounts can't replace the ledger's table. (See post_transfers.sql.)
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['check_new_pending_transfers', 'allow_only_settling'] LOOP
        EXECUTE format('ALTER FUNCTION %I SET search_path = %I, pg_temp', name, current_schema());
    END LOOP;
END
$$;
