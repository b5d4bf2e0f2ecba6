-- Each statement that writes rows of the ledger seals them: a trigger inserts one row into seals, with their ids and
-- digests. Later link_seals() numbers the seals and chains their hashes. All other writes to seals are
-- rejected.
--
-- The functions that write seals have the rights of their owner (SECURITY DEFINER), so that no role of the service needs
-- a right to write seals. Nobody may execute them: otherwise a role could attach them to a table of its own. PostgreSQL
-- doesn't check this right when a trigger fires.

-- digests and random ids can't be compressed
ALTER TABLE seals
    ALTER COLUMN ids SET STORAGE EXTERNAL,
    ALTER COLUMN digests SET STORAGE EXTERNAL,
    ALTER COLUMN previous_digests SET STORAGE EXTERNAL;

CREATE OR REPLACE FUNCTION seal_transfers() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO seals (subject, ids, digests)
    SELECT 'transfers', array_agg(id), array_agg(digest_of_transfer(ROW(added.*)::transfers))
    FROM added HAVING count(*) > 0;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER seal_transfers AFTER INSERT ON transfers REFERENCING NEW TABLE AS added
FOR EACH STATEMENT EXECUTE FUNCTION seal_transfers();

-- Without ids, because old keys are deleted, and a key can be found by its digest.
CREATE OR REPLACE FUNCTION seal_idempotency_keys() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO seals (subject, digests)
    SELECT 'idempotency_keys', array_agg(digest_of_idempotency_key(ROW(added.*)::idempotency_keys))
    FROM added HAVING count(*) > 0;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER seal_idempotency_keys AFTER INSERT ON idempotency_keys REFERENCING NEW TABLE AS added
FOR EACH STATEMENT EXECUTE FUNCTION seal_idempotency_keys();

CREATE OR REPLACE FUNCTION seal_pending_transfers() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO seals (subject, ids, revisions, digests)
    SELECT 'pending_transfers', array_agg(id), array_agg((state <> 'pending')::int::bigint),
        array_agg(digest_of_pending_transfer(ROW(added.*)::pending_transfers))
    FROM added HAVING count(*) > 0;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER seal_pending_transfers AFTER INSERT ON pending_transfers REFERENCING NEW TABLE AS added
FOR EACH STATEMENT EXECUTE FUNCTION seal_pending_transfers();

CREATE OR REPLACE FUNCTION seal_settled_transfers() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO seals (subject, ids, revisions, digests, previous_digests)
    SELECT 'pending_transfers', array_agg(added.id), array_agg(1::bigint),
        array_agg(digest_of_pending_transfer(ROW(added.*)::pending_transfers)),
        array_agg(digest_of_pending_transfer(ROW(removed.*)::pending_transfers))
    FROM added JOIN removed ON removed.id = added.id HAVING count(*) > 0;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER seal_settled_transfers AFTER UPDATE ON pending_transfers
REFERENCING OLD TABLE AS removed NEW TABLE AS added
FOR EACH STATEMENT EXECUTE FUNCTION seal_settled_transfers();

CREATE OR REPLACE FUNCTION seal_accounts() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO seals (subject, ids, revisions, digests)
    SELECT 'accounts', array_agg(id), array_agg(revision), array_agg(digest_of_account(ROW(added.*)::accounts))
    FROM added HAVING count(*) > 0;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER seal_accounts AFTER INSERT ON accounts REFERENCING NEW TABLE AS added
FOR EACH STATEMENT EXECUTE FUNCTION seal_accounts();

-- Seals the change only if the digests differ. A change of the held amount increments the revision, but isn't sealed.
CREATE OR REPLACE FUNCTION seal_changed_account() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    before CONSTANT bytea := digest_of_account(OLD);
    after CONSTANT bytea := digest_of_account(NEW);
BEGIN
    IF after <> before THEN
        INSERT INTO seals (subject, ids, revisions, digests, previous_digests)
        VALUES ('accounts', ARRAY[NEW.id], ARRAY[NEW.revision], ARRAY[after], ARRAY[before]);
    END IF;
    RETURN NEW;
END
$$;

-- A BEFORE trigger, because an AFTER trigger would slow down each change of a balance. PostgreSQL fires triggers in
-- the order of their names, and this one must come after increment_revision.
CREATE OR REPLACE TRIGGER seal_changed_account BEFORE UPDATE ON accounts
FOR EACH ROW WHEN (NEW.revision <> OLD.revision) EXECUTE FUNCTION seal_changed_account();

-- Links up to max_seals seals, and returns their number. The advisory lock is held until the end of the transaction,
-- because two runs at the same time would give the same position twice. A seal that is committed during a run is linked
-- by the next one.
CREATE OR REPLACE FUNCTION link_seals(max_seals integer) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    seal seals;
    last_position bigint;
    last_hash bytea;
    linked integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(495622122611);
    SELECT position, hash INTO last_position, last_hash
    FROM seals WHERE position IS NOT NULL ORDER BY position DESC LIMIT 1;
    last_position := coalesce(last_position, 0);
    FOR seal IN SELECT * FROM seals WHERE position IS NULL ORDER BY id LIMIT max_seals LOOP
        last_position := last_position + 1;
        last_hash := hash_of_seal(last_hash, seal);
        UPDATE seals SET position = last_position, hash = last_hash WHERE id = seal.id;
        linked := linked + 1;
    END LOOP;
    RETURN linked;
END
$$;

-- With this search_path, a temporary table named seals can't replace the ledger's table. (See post_transfers.sql.)
-- The comment at the top says why nobody may execute them.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY[
        'seal_transfers', 'seal_idempotency_keys', 'seal_pending_transfers', 'seal_settled_transfers', 'seal_accounts',
        'seal_changed_account', 'link_seals'
    ] LOOP
        EXECUTE format('ALTER FUNCTION %I SET search_path = %I, pg_temp', name, current_schema());
        EXECUTE format('REVOKE ALL ON FUNCTION %I FROM PUBLIC', name);
    END LOOP;
END
$$;

GRANT EXECUTE ON FUNCTION link_seals TO shop_system;

CREATE OR REPLACE FUNCTION reject_seal_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'seals are never inserted directly, changed or deleted'
        USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Triggers insert them. To link them, call link_seals().';
END
$$;

-- pg_trigger_depth() is 0 for a statement of a client, and more for a statement of a sealing trigger.
CREATE OR REPLACE TRIGGER reject_direct_insert BEFORE INSERT ON seals
FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION reject_seal_change();

CREATE OR REPLACE TRIGGER reject_delete BEFORE DELETE OR TRUNCATE ON seals
FOR EACH STATEMENT EXECUTE FUNCTION reject_seal_change();

CREATE OR REPLACE TRIGGER allow_only_linking BEFORE UPDATE ON seals
FOR EACH ROW WHEN (
    OLD.position IS NOT NULL OR NEW.position IS NULL
    OR (NEW.id, NEW.subject, NEW.ids, NEW.revisions, NEW.digests, NEW.previous_digests, NEW.created_at)
        IS DISTINCT FROM
        (OLD.id, OLD.subject, OLD.ids, OLD.revisions, OLD.digests, OLD.previous_digests, OLD.created_at)
) EXECUTE FUNCTION reject_seal_change();
