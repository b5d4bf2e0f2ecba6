-- Audit events (shop.audit) are sealed in the ledger's chain, and never changed or deleted. The rules for the digest are
-- those in digests.sql.

CREATE OR REPLACE FUNCTION digest_of_audit_event(t audit_events) RETURNS bytea LANGUAGE sql STABLE AS $$
SELECT substr(sha256(record_send(ROW(
    t.id, t.at, convert_to(t.action, 'UTF8'),
    t.actor_user_id, convert_to(t.actor_role, 'UTF8'), t.actor_session_id, t.actor_api_key_id,
    convert_to(t.subject_type, 'UTF8'), convert_to(t.subject_id, 'UTF8'), convert_to(t.details::text, 'UTF8'),
    convert_to(t.address, 'UTF8'), convert_to(t.request_id, 'UTF8')
))), 1, 16)
$$;

-- Nobody can choose the time of an event.
CREATE OR REPLACE FUNCTION set_time_of_audit_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.at := clock_timestamp();
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER set_time_of_audit_event BEFORE INSERT ON audit_events
FOR EACH ROW EXECUTE FUNCTION set_time_of_audit_event();

-- SECURITY DEFINER, so that a role that may add an event needs no right to the table of seals.
CREATE OR REPLACE FUNCTION seal_audit_events() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO seals (subject, ids, digests)
    SELECT 'audit_events', array_agg(id), array_agg(digest_of_audit_event(ROW(added.*)::audit_events))
    FROM added HAVING count(*) > 0;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER seal_audit_events AFTER INSERT ON audit_events REFERENCING NEW TABLE AS added
FOR EACH STATEMENT EXECUTE FUNCTION seal_audit_events();

-- With this search_path, a temporary table named seals can't replace the ledger's table. (See post_transfers.sql.)
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION seal_audit_events SET search_path = %I, pg_temp', current_schema());
END
$$;

REVOKE ALL ON FUNCTION seal_audit_events FROM PUBLIC;  -- the comment in seals.sql says why

CREATE OR REPLACE FUNCTION reject_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit events are never changed or deleted'
        USING ERRCODE = 'object_not_in_prerequisite_state';
END
$$;

CREATE OR REPLACE TRIGGER reject_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_events
FOR EACH STATEMENT EXECUTE FUNCTION reject_audit_change();
