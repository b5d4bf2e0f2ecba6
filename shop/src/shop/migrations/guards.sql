-- The ledger's tables, their constraints and triggers, and the functions, as they are at the newest revision.
-- `shop check`, `shop serve` and /readyz compare the database with it. Written by `shop migrate --guards`.

--- table accounts
a table, logged

--- table entries
a table, logged

--- table idempotency_keys
a table, logged

--- table pending_transfers
a table, logged

--- table seals
a table, logged

--- table transfers
a table, logged

--- column allows_negative of accounts
boolean NOT NULL

--- column balance of accounts
bigint NOT NULL

--- column balance_limit of accounts
bigint

--- column created_at of accounts
timestamp with time zone NOT NULL DEFAULT statement_timestamp()

--- column currency of accounts
character varying(3) NOT NULL

--- column entry_count of accounts
bigint NOT NULL

--- column held of accounts
bigint NOT NULL

--- column id of accounts
uuid NOT NULL

--- column metadata of accounts
jsonb NOT NULL

--- column name of accounts
character varying(100) NOT NULL

--- column overdraft_limit of accounts
bigint NOT NULL

--- column purpose of accounts
character varying(10)

--- column revision of accounts
bigint NOT NULL

--- column state of accounts
character varying(10) NOT NULL

--- column updated_at of accounts
timestamp with time zone NOT NULL DEFAULT statement_timestamp()

--- column user_id of accounts
uuid

--- column account_id of entries
uuid NOT NULL

--- column amount of entries
bigint NOT NULL

--- column balance_after of entries
bigint NOT NULL

--- column created_at of entries
timestamp with time zone NOT NULL

--- column entry_number of entries
bigint NOT NULL

--- column transfer_id of entries
uuid NOT NULL

--- column account_id of idempotency_keys
uuid

--- column answer of idempotency_keys
character varying(10) NOT NULL

--- column created_at of idempotency_keys
timestamp with time zone NOT NULL DEFAULT statement_timestamp()

--- column fingerprint of idempotency_keys
bytea NOT NULL

--- column key of idempotency_keys
character varying(260) NOT NULL

--- column refusal of idempotency_keys
character varying(40)

--- column scope of idempotency_keys
character varying(100) NOT NULL

--- column transfer_id of idempotency_keys
uuid

--- column amount of pending_transfers
bigint NOT NULL

--- column created_at of pending_transfers
timestamp with time zone NOT NULL

--- column currency of pending_transfers
character varying(3) NOT NULL

--- column description of pending_transfers
character varying(500)

--- column effective_at of pending_transfers
timestamp with time zone

--- column expires_at of pending_transfers
timestamp with time zone NOT NULL

--- column from_account_id of pending_transfers
uuid NOT NULL

--- column group_id of pending_transfers
uuid

--- column id of pending_transfers
uuid NOT NULL

--- column metadata of pending_transfers
jsonb

--- column settled_at of pending_transfers
timestamp with time zone

--- column state of pending_transfers
character varying(10) NOT NULL

--- column to_account_id of pending_transfers
uuid NOT NULL

--- column befores of seals
bytea[]

--- column created_at of seals
timestamp with time zone NOT NULL DEFAULT clock_timestamp()

--- column digests of seals
bytea[] NOT NULL

--- column hash of seals
bytea

--- column id of seals
bigint NOT NULL GENERATED ALWAYS

--- column ids of seals
uuid[]

--- column position of seals
bigint

--- column revisions of seals
bigint[]

--- column subject of seals
character varying(20) NOT NULL

--- column amount of transfers
bigint NOT NULL

--- column created_at of transfers
timestamp with time zone NOT NULL DEFAULT statement_timestamp()

--- column currency of transfers
character varying(3) NOT NULL

--- column description of transfers
character varying(500)

--- column effective_at of transfers
timestamp with time zone NOT NULL DEFAULT statement_timestamp()

--- column from_account_id of transfers
uuid NOT NULL

--- column from_entry_number of transfers
bigint NOT NULL

--- column group_id of transfers
uuid

--- column id of transfers
uuid NOT NULL

--- column metadata of transfers
jsonb

--- column reversed_total of transfers
bigint

--- column reverses_id of transfers
uuid

--- column to_account_id of transfers
uuid NOT NULL

--- column to_entry_number of transfers
bigint NOT NULL

--- constraint ck_accounts_balance_covered on accounts
CHECK ((balance - held) >= (- overdraft_limit) OR allows_negative)

--- constraint ck_accounts_balance_limit_not_negative on accounts
CHECK (balance_limit >= 0)

--- constraint ck_accounts_balance_within_limit on accounts
CHECK (balance <= balance_limit)

--- constraint ck_accounts_closed_is_empty on accounts
CHECK (state::text <> 'closed'::text OR balance = 0 AND held = 0)

--- constraint ck_accounts_currency_is_a_code on accounts
CHECK (currency::text ~ '^[A-Z]{3}$'::text)

--- constraint ck_accounts_entry_count_not_negative on accounts
CHECK (entry_count >= 0)

--- constraint ck_accounts_held_not_negative on accounts
CHECK (held >= 0)

--- constraint ck_accounts_overdraft_limit_not_negative on accounts
CHECK (overdraft_limit >= 0)

--- constraint ck_accounts_purpose_is_known on accounts
CHECK (purpose::text = ANY (ARRAY['cash_in'::character varying, 'cash_out'::character varying, 'fees'::character varying]::text[]))

--- constraint ck_accounts_state_is_known on accounts
CHECK (state::text = ANY (ARRAY['open'::character varying, 'frozen'::character varying, 'closed'::character varying]::text[]))

--- constraint fk_accounts_user_id on accounts
FOREIGN KEY (user_id) REFERENCES users(id)

--- constraint pk_accounts on accounts
PRIMARY KEY (id)

--- constraint ck_entries_amount_not_zero on entries
CHECK (amount <> 0)

--- constraint ck_entries_entry_number_positive on entries
CHECK (entry_number > 0)

--- constraint pk_entries on entries
PRIMARY KEY (account_id, entry_number)

--- constraint ck_idempotency_keys_answer_is_known on idempotency_keys
CHECK (answer::text = ANY (ARRAY['posted'::character varying, 'pending'::character varying, 'voided'::character varying, 'refused'::character varying, 'opened'::character varying]::text[]))

--- constraint ck_idempotency_keys_one_outcome on idempotency_keys
CHECK (num_nonnulls(transfer_id, refusal, account_id) = 1 AND (refusal IS NOT NULL) = (answer::text = 'refused'::text) AND (account_id IS NOT NULL) = (answer::text = 'opened'::text))

--- constraint pk_idempotency_keys on idempotency_keys
PRIMARY KEY (scope, key)

--- constraint ck_pending_transfers_accounts_differ on pending_transfers
CHECK (from_account_id <> to_account_id)

--- constraint ck_pending_transfers_amount_positive on pending_transfers
CHECK (amount > 0)

--- constraint ck_pending_transfers_settled_is_told on pending_transfers
CHECK ((state::text = 'pending'::text) = (settled_at IS NULL))

--- constraint ck_pending_transfers_state_is_known on pending_transfers
CHECK (state::text = ANY (ARRAY['pending'::character varying, 'posted'::character varying, 'voided'::character varying]::text[]))

--- constraint fk_pending_transfers_from_account_id on pending_transfers
FOREIGN KEY (from_account_id) REFERENCES accounts(id)

--- constraint fk_pending_transfers_to_account_id on pending_transfers
FOREIGN KEY (to_account_id) REFERENCES accounts(id)

--- constraint pk_pending_transfers on pending_transfers
PRIMARY KEY (id)

--- constraint ck_seals_linked_is_told on seals
CHECK (("position" IS NULL) = (hash IS NULL))

--- constraint pk_seals on seals
PRIMARY KEY (id)

--- constraint uq_seals_position on seals
UNIQUE ("position")

--- constraint ck_transfers_accounts_differ on transfers
CHECK (from_account_id <> to_account_id)

--- constraint ck_transfers_amount_positive on transfers
CHECK (amount > 0)

--- constraint ck_transfers_reversal_is_told on transfers
CHECK ((reverses_id IS NULL) = (reversed_total IS NULL))

--- constraint ck_transfers_reversed_total_is_running on transfers
CHECK (reversed_total >= amount)

--- constraint fk_transfers_reverses_id on transfers
FOREIGN KEY (reverses_id) REFERENCES transfers(id)

--- constraint pk_transfers on transfers
PRIMARY KEY (id)

--- index uq_accounts_purpose_currency on accounts
CREATE UNIQUE INDEX uq_accounts_purpose_currency ON accounts USING btree (purpose, currency) WHERE purpose IS NOT NULL

--- index uq_transfers_reverses_id_reversed_total on transfers
CREATE UNIQUE INDEX uq_transfers_reverses_id_reversed_total ON transfers USING btree (reverses_id, reversed_total) WHERE reverses_id IS NOT NULL

--- trigger kept on accounts
CREATE TRIGGER kept BEFORE DELETE OR UPDATE OF id, currency OR TRUNCATE ON accounts FOR EACH STATEMENT EXECUTE FUNCTION refuse_on_accounts()

--- trigger moved_by_transfers on accounts
CREATE TRIGGER moved_by_transfers BEFORE UPDATE OF balance, entry_count ON accounts FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION refuse_by_hand()

--- trigger opened_empty on accounts
CREATE TRIGGER opened_empty AFTER INSERT ON accounts REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION refuse_opened_with_money()

--- trigger revised on accounts
CREATE TRIGGER revised BEFORE UPDATE ON accounts FOR EACH ROW WHEN (new.entry_count = old.entry_count) EXECUTE FUNCTION count_revision()

--- trigger sealed on accounts
CREATE TRIGGER sealed AFTER INSERT ON accounts REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION seal_accounts()

--- trigger sealed_change on accounts
CREATE TRIGGER sealed_change BEFORE UPDATE ON accounts FOR EACH ROW WHEN (new.revision <> old.revision) EXECUTE FUNCTION seal_changed_account()

--- trigger made_by_transfers on entries
CREATE TRIGGER made_by_transfers BEFORE INSERT ON entries FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION refuse_by_hand()

--- trigger only_grows on entries
CREATE TRIGGER only_grows BEFORE DELETE OR UPDATE OR TRUNCATE ON entries FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()

--- trigger never_changed on idempotency_keys
CREATE TRIGGER never_changed BEFORE UPDATE OR TRUNCATE ON idempotency_keys FOR EACH STATEMENT EXECUTE FUNCTION refuse_changed_key()

--- trigger sealed on idempotency_keys
CREATE TRIGGER sealed AFTER INSERT ON idempotency_keys REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION seal_idempotency_keys()

--- trigger held_in_time on pending_transfers
CREATE TRIGGER held_in_time AFTER INSERT ON pending_transfers REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION refuse_held_in_future()

--- trigger kept on pending_transfers
CREATE TRIGGER kept BEFORE TRUNCATE ON pending_transfers FOR EACH STATEMENT EXECUTE FUNCTION settle_once()

--- trigger sealed on pending_transfers
CREATE TRIGGER sealed AFTER INSERT ON pending_transfers REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION seal_pending_transfers()

--- trigger settled_once on pending_transfers
CREATE TRIGGER settled_once BEFORE DELETE OR UPDATE ON pending_transfers FOR EACH ROW EXECUTE FUNCTION settle_once()

--- trigger settling_sealed on pending_transfers
CREATE TRIGGER settling_sealed AFTER UPDATE ON pending_transfers REFERENCING OLD TABLE AS removed NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION seal_settled_transfers()

--- trigger linked_once on seals
CREATE TRIGGER linked_once BEFORE UPDATE ON seals FOR EACH ROW WHEN (old."position" IS NOT NULL OR new."position" IS NULL OR new.id IS DISTINCT FROM old.id OR new.subject::text IS DISTINCT FROM old.subject::text OR new.ids IS DISTINCT FROM old.ids OR new.revisions IS DISTINCT FROM old.revisions OR new.digests IS DISTINCT FROM old.digests OR new.befores IS DISTINCT FROM old.befores OR new.created_at IS DISTINCT FROM old.created_at) EXECUTE FUNCTION refuse_on_seals()

--- trigger made_by_triggers on seals
CREATE TRIGGER made_by_triggers BEFORE INSERT ON seals FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION refuse_on_seals()

--- trigger only_grows on seals
CREATE TRIGGER only_grows BEFORE DELETE OR TRUNCATE ON seals FOR EACH STATEMENT EXECUTE FUNCTION refuse_on_seals()

--- trigger booked on transfers
CREATE TRIGGER booked AFTER INSERT ON transfers REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION book_transfers()

--- trigger only_grows on transfers
CREATE TRIGGER only_grows BEFORE DELETE OR UPDATE OR TRUNCATE ON transfers FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()

--- trigger sealed on transfers
CREATE TRIGGER sealed AFTER INSERT ON transfers REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION seal_transfers()

--- function book_transfers()
RETURNS trigger LANGUAGE plpgsql
SET enable_mergejoin=off
SET enable_nestloop=off
SET enable_seqscan=off
SET plan_cache_mode=force_generic_plan
SET search_path=$schema, pg_temp
AS $$
        DECLARE
            ids CONSTANT uuid[] := ARRAY(SELECT from_account_id FROM added UNION ALL SELECT to_account_id FROM added);
            latest CONSTANT timestamptz := (SELECT max(created_at) FROM added);
            booked bigint;
        BEGIN
            IF latest > clock_timestamp() + interval '1 second' AND latest > (
                SELECT max(updated_at) + interval '1 second' FROM accounts WHERE id = ANY (ids)
            ) THEN
                RAISE EXCEPTION 'a transfer is of a time that is yet to come: %', latest
                    USING ERRCODE = 'check_violation', CONSTRAINT = 'transfer_in_time', TABLE = 'transfers',
                        HINT = 'created_at must be clock_timestamp(), or updated_at of its accounts if that is later.';
            END IF;
            WITH legs AS MATERIALIZED (
                SELECT from_account_id AS account_id, from_entry_number AS entry_number, id, currency, -amount AS amount, created_at
                FROM added
                UNION ALL
                SELECT to_account_id, to_entry_number, id, currency, amount, created_at FROM added
            ), moved AS MATERIALIZED (
                SELECT account_id, currency, count(*) AS legs, min(entry_number) AS first, max(entry_number) AS last,
                    sum(amount) AS change, min(created_at) AS first_at, max(created_at) AS last_at
                FROM legs GROUP BY account_id, currency
            ), balances AS (
                UPDATE accounts a SET balance = a.balance + change, entry_count = last, updated_at = last_at
                FROM moved
                WHERE a.id = ANY (ids) AND a.id = moved.account_id AND a.currency = moved.currency AND a.state = 'open'
                    AND a.entry_count = first - 1 AND last - first = moved.legs - 1 AND a.updated_at <= first_at
                RETURNING a.id, a.currency, a.balance - change AS before
            )
            INSERT INTO entries (account_id, entry_number, transfer_id, amount, balance_after, created_at)
            SELECT account_id, entry_number, id, amount, balance_after, created_at
            FROM (
                SELECT legs.*, balances.before + sum(amount) OVER w AS balance_after, lag(created_at) OVER w AS earlier
                FROM legs JOIN balances ON balances.id = legs.account_id AND balances.currency = legs.currency
                WINDOW w AS (PARTITION BY account_id ORDER BY entry_number ROWS UNBOUNDED PRECEDING)
            ) followed
            WHERE earlier IS NULL OR earlier <= created_at;
            GET DIAGNOSTICS booked = ROW_COUNT;
            IF booked <> cardinality(ids) THEN
                RAISE EXCEPTION 'a transfer does not follow from how its accounts stand'
                    USING ERRCODE = 'check_violation', CONSTRAINT = 'transfer_follows', TABLE = 'transfers',
                        HINT = 'Both accounts must be open, in its currency, without later entries, and have as many '
                            'as its versions say, less one.';
            END IF;
            RETURN NULL;
        END
$$

--- function count_revision()
RETURNS trigger LANGUAGE plpgsql
AS $$
        BEGIN
            NEW.revision := OLD.revision + 1;
            NEW.updated_at := greatest(OLD.updated_at, least(NEW.updated_at, clock_timestamp()));
            RETURN NEW;
        END
$$

--- function digest_of_account(t accounts)
RETURNS bytea LANGUAGE sql STABLE
AS $$
        SELECT substr(sha256(record_send(ROW(
            t.id, t.user_id, convert_to(t.name, 'UTF8'), convert_to(t.currency, 'UTF8'), convert_to(t.purpose, 'UTF8'),
            t.allows_negative, t.overdraft_limit, t.balance_limit, convert_to(t.state, 'UTF8'),
            convert_to(t.metadata::text, 'UTF8'), t.created_at
        ))), 1, 16)
$$

--- function digest_of_idempotency_key(t idempotency_keys)
RETURNS bytea LANGUAGE sql STABLE
AS $$
        SELECT substr(sha256(record_send(ROW(
            convert_to(t.scope, 'UTF8'), convert_to(t.key, 'UTF8'), t.fingerprint, t.transfer_id,
            convert_to(t.refusal, 'UTF8'), t.created_at, t.account_id, convert_to(t.answer, 'UTF8')
        ))), 1, 16)
$$

--- function digest_of_pending_transfer(t pending_transfers)
RETURNS bytea LANGUAGE sql STABLE
AS $$
        SELECT substr(sha256(record_send(ROW(
            t.id, t.from_account_id, t.to_account_id, t.amount,
            convert_to(t.currency, 'UTF8'), convert_to(t.description, 'UTF8'), convert_to(t.metadata::text, 'UTF8'),
            t.effective_at, t.group_id, convert_to(t.state, 'UTF8'), t.expires_at, t.created_at, t.settled_at
        ))), 1, 16)
$$

--- function digest_of_transfer(t transfers)
RETURNS bytea LANGUAGE sql STABLE
AS $$
        SELECT substr(sha256(record_send(ROW(
            t.id, t.from_account_id, t.from_entry_number, t.to_account_id, t.to_entry_number, t.amount,
            convert_to(t.currency, 'UTF8'), convert_to(t.description, 'UTF8'), convert_to(t.metadata::text, 'UTF8'),
            t.effective_at, t.reverses_id, t.reversed_total, t.group_id, t.created_at
        ))), 1, 16)
$$

--- function hash_of_seal(before bytea, s seals)
RETURNS bytea LANGUAGE sql STABLE
AS $$
        SELECT sha256(coalesce(before, '') || record_send(ROW(
            s.id, convert_to(s.subject, 'UTF8'), s.ids, s.revisions, s.digests, s.befores, s.created_at
        )))
$$

--- function link_seals(most integer)
RETURNS integer LANGUAGE plpgsql
SET search_path=$schema, pg_temp
AS $$
        DECLARE
            sealed seals;
            last_position bigint;
            last_hash bytea;
            linked integer := 0;
        BEGIN
            PERFORM pg_advisory_xact_lock(495622122611);
            SELECT position, hash INTO last_position, last_hash
            FROM seals WHERE position IS NOT NULL ORDER BY position DESC LIMIT 1;
            last_position := coalesce(last_position, 0);
            FOR sealed IN SELECT * FROM seals WHERE position IS NULL ORDER BY id LIMIT most LOOP
                last_position := last_position + 1;
                last_hash := hash_of_seal(last_hash, sealed);
                UPDATE seals SET position = last_position, hash = last_hash WHERE id = sealed.id;
                linked := linked + 1;
            END LOOP;
            RETURN linked;
        END
$$

--- function refuse_by_hand()
RETURNS trigger LANGUAGE plpgsql
AS $$
        BEGIN
            RAISE EXCEPTION 'entries and balances are never written by hand: a new transfer makes them'
                USING ERRCODE = 'object_not_in_prerequisite_state';
        END
$$

--- function refuse_change()
RETURNS trigger LANGUAGE plpgsql
AS $$
        BEGIN
            RAISE EXCEPTION '% are never changed or deleted: make a transfer that takes another one back', TG_TABLE_NAME
                USING ERRCODE = 'object_not_in_prerequisite_state';
        END
$$

--- function refuse_changed_key()
RETURNS trigger LANGUAGE plpgsql
AS $$
        BEGIN
            RAISE EXCEPTION 'idempotency keys are never changed: use another key'
                USING ERRCODE = 'object_not_in_prerequisite_state';
        END
$$

--- function refuse_held_in_future()
RETURNS trigger LANGUAGE plpgsql
AS $$
        BEGIN
            IF EXISTS (SELECT FROM added WHERE created_at > clock_timestamp() + interval '1 second') THEN
                RAISE EXCEPTION 'a pending transfer is of a time that is yet to come'
                    USING ERRCODE = 'check_violation', CONSTRAINT = 'held_in_time', TABLE = 'pending_transfers',
                        HINT = 'created_at must be clock_timestamp().';
            END IF;
            RETURN NULL;
        END
$$

--- function refuse_on_accounts()
RETURNS trigger LANGUAGE plpgsql
AS $$
        BEGIN
            RAISE EXCEPTION 'accounts are never deleted, and keep their id and their currency: close the account'
                USING ERRCODE = 'object_not_in_prerequisite_state';
        END
$$

--- function refuse_on_seals()
RETURNS trigger LANGUAGE plpgsql
AS $$
        BEGIN
            RAISE EXCEPTION 'seals are never written by hand, changed or deleted: triggers make them, and link_seals() links them once'
                USING ERRCODE = 'object_not_in_prerequisite_state';
        END
$$

--- function refuse_opened_with_money()
RETURNS trigger LANGUAGE plpgsql
AS $$
        BEGIN
            IF EXISTS (SELECT FROM added WHERE balance <> 0 OR held <> 0 OR entry_count <> 0) THEN
                RAISE EXCEPTION 'an account is opened with nothing in it: money comes by transfers'
                    USING ERRCODE = 'check_violation', CONSTRAINT = 'opened_empty', TABLE = 'accounts';
            END IF;
            IF EXISTS (
                SELECT FROM added WHERE greatest(created_at, updated_at) > clock_timestamp() + interval '1 second'
            ) THEN
                RAISE EXCEPTION 'an account is opened at a time that is yet to come'
                    USING ERRCODE = 'check_violation', CONSTRAINT = 'opened_in_time', TABLE = 'accounts',
                        HINT = 'Leave created_at and updated_at out: the database sets them.';
            END IF;
            RETURN NULL;
        END
$$

--- function seal_accounts()
RETURNS trigger LANGUAGE plpgsql
SET search_path=$schema, pg_temp
AS $$
        BEGIN
            INSERT INTO seals (subject, ids, revisions, digests)
            SELECT 'accounts', array_agg(id), array_agg(revision),
                array_agg(digest_of_account(ROW(added.*)::accounts))
            FROM added HAVING count(*) > 0;
            RETURN NULL;
        END
$$

--- function seal_changed_account()
RETURNS trigger LANGUAGE plpgsql
SET search_path=$schema, pg_temp
AS $$
        DECLARE
            before CONSTANT bytea := digest_of_account(OLD);
            after CONSTANT bytea := digest_of_account(NEW);
        BEGIN
            IF after <> before THEN
                INSERT INTO seals (subject, ids, revisions, digests, befores)
                VALUES ('accounts', ARRAY[NEW.id], ARRAY[NEW.revision], ARRAY[after], ARRAY[before]);
            END IF;
            RETURN NEW;
        END
$$

--- function seal_idempotency_keys()
RETURNS trigger LANGUAGE plpgsql
SET search_path=$schema, pg_temp
AS $$
        BEGIN
            INSERT INTO seals (subject, digests)
            SELECT 'idempotency_keys', array_agg(digest_of_idempotency_key(ROW(added.*)::idempotency_keys))
            FROM added HAVING count(*) > 0;
            RETURN NULL;
        END
$$

--- function seal_pending_transfers()
RETURNS trigger LANGUAGE plpgsql
SET search_path=$schema, pg_temp
AS $$
        BEGIN
            INSERT INTO seals (subject, ids, revisions, digests)
            SELECT 'pending_transfers', array_agg(id), array_agg((state <> 'pending')::int::bigint),
                array_agg(digest_of_pending_transfer(ROW(added.*)::pending_transfers))
            FROM added HAVING count(*) > 0;
            RETURN NULL;
        END
$$

--- function seal_settled_transfers()
RETURNS trigger LANGUAGE plpgsql
SET search_path=$schema, pg_temp
AS $$
        BEGIN
            INSERT INTO seals (subject, ids, revisions, digests, befores)
            SELECT 'pending_transfers', array_agg(added.id), array_agg(1::bigint),
                array_agg(digest_of_pending_transfer(ROW(added.*)::pending_transfers)),
                array_agg(digest_of_pending_transfer(ROW(removed.*)::pending_transfers))
            FROM added JOIN removed ON removed.id = added.id HAVING count(*) > 0;
            RETURN NULL;
        END
$$

--- function seal_transfers()
RETURNS trigger LANGUAGE plpgsql
SET search_path=$schema, pg_temp
AS $$
        BEGIN
            INSERT INTO seals (subject, ids, digests)
            SELECT 'transfers', array_agg(id), array_agg(digest_of_transfer(ROW(added.*)::transfers))
            FROM added HAVING count(*) > 0;
            RETURN NULL;
        END
$$

--- function settle_once()
RETURNS trigger LANGUAGE plpgsql
AS $$
        BEGIN
            IF TG_OP = 'UPDATE' AND OLD.state = 'pending' AND NEW.state <> 'pending'
                AND (to_jsonb(NEW) - 'state' - 'settled_at') = (to_jsonb(OLD) - 'state' - 'settled_at')
            THEN
                RETURN NEW;
            END IF;
            RAISE EXCEPTION 'a pending transfer is posted or voided, once, and nothing else'
                USING ERRCODE = 'object_not_in_prerequisite_state';
        END
$$
