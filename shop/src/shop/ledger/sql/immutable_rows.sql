-- Transfers, entries and idempotency keys are never changed. Only idempotency keys may be deleted.

CREATE OR REPLACE FUNCTION reject_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% are never changed or deleted: to return the money, post a reversal', TG_TABLE_NAME
        USING ERRCODE = 'object_not_in_prerequisite_state';
END
$$;

CREATE OR REPLACE TRIGGER reject_change BEFORE UPDATE OR DELETE OR TRUNCATE ON transfers
FOR EACH STATEMENT EXECUTE FUNCTION reject_change();

CREATE OR REPLACE TRIGGER reject_change BEFORE UPDATE OR DELETE OR TRUNCATE ON entries
FOR EACH STATEMENT EXECUTE FUNCTION reject_change();

CREATE OR REPLACE FUNCTION reject_key_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'idempotency keys are never changed: use another key'
        USING ERRCODE = 'object_not_in_prerequisite_state';
END
$$;

-- DELETE is allowed, because the service deletes old keys.
CREATE OR REPLACE TRIGGER reject_change BEFORE UPDATE OR TRUNCATE ON idempotency_keys
FOR EACH STATEMENT EXECUTE FUNCTION reject_key_change();
