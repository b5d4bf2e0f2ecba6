-- Accounts start empty, keep their id, owner and currency, are never deleted, and count their changes.

CREATE OR REPLACE FUNCTION check_new_accounts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM added WHERE balance <> 0 OR held <> 0 OR entry_count <> 0) THEN
        RAISE EXCEPTION 'account rejected: balance, held and entry_count of a new account must be 0'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'new_account_is_empty', TABLE = 'accounts',
                HINT = 'Open the account empty, then post a transfer to it.';
    END IF;
    -- One second is allowed for a clock that was set back during the transaction.
    IF EXISTS (SELECT FROM added WHERE greatest(created_at, updated_at) > clock_timestamp() + interval '1 second') THEN
        RAISE EXCEPTION 'account rejected: its created_at or updated_at is in the future'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'account_not_in_future', TABLE = 'accounts',
                HINT = 'Omit created_at and updated_at: the database sets them.';
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER check_new_accounts AFTER INSERT ON accounts REFERENCING NEW TABLE AS added
FOR EACH STATEMENT EXECUTE FUNCTION check_new_accounts();

CREATE OR REPLACE FUNCTION reject_identity_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'accounts are never deleted, and their id, owner and currency never change'
        USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Close the account, and open another one if you need it.';
END
$$;

-- An account keeps its id, its owner and its currency.
CREATE OR REPLACE TRIGGER reject_delete_or_identity_change
BEFORE DELETE OR TRUNCATE OR UPDATE OF id, user_id, currency ON accounts
FOR EACH STATEMENT EXECUTE FUNCTION reject_identity_change();

-- `revision` counts the changes that create no entry, whoever makes them. The seals of an account have its revision.
CREATE OR REPLACE FUNCTION increment_revision() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.revision := OLD.revision + 1;
    -- updated_at never decreases, because no later entry of the account may be older. It is never ahead of the clock.
    NEW.updated_at := greatest(OLD.updated_at, least(NEW.updated_at, clock_timestamp()));
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER increment_revision BEFORE UPDATE ON accounts
FOR EACH ROW WHEN (NEW.entry_count = OLD.entry_count) EXECUTE FUNCTION increment_revision();
