-- A pending transfer is posted or voided once. No other column changes, and the row is never deleted.

CREATE OR REPLACE FUNCTION check_new_pending_transfers() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
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
        AND (to_jsonb(NEW) - 'state' - 'settled_at') = (to_jsonb(OLD) - 'state' - 'settled_at')
    THEN
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
