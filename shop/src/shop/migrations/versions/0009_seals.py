"""Triggers seal the ledger's rows when they are written: a chain of digests, which `shop check` computes again."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# The columns of a row's digest. `record_send` writes each value with its type and length, NULL as the length -1, and
# times as integers. Texts are converted to bytes first, because it would write them in the client's encoding. So no
# session setting changes a digest, and neither does a new length of a column. A migration that adds a column appends it
# only where it isn't NULL (`|| CASE WHEN t.added IS NULL THEN '' ELSE record_send(ROW(t.added)) END`), so that old
# digests stay valid.
_DIGESTS = {
    "transfer": (
        "transfers",
        """
            t.id, t.from_account_id, t.from_entry_number, t.to_account_id, t.to_entry_number, t.amount,
            convert_to(t.currency, 'UTF8'), convert_to(t.description, 'UTF8'), convert_to(t.metadata::text, 'UTF8'),
            t.effective_at, t.reverses_id, t.reversed_total, t.group_id, t.created_at
        """,
    ),
    "pending_transfer": (
        "pending_transfers",
        """
            t.id, t.from_account_id, t.to_account_id, t.amount,
            convert_to(t.currency, 'UTF8'), convert_to(t.description, 'UTF8'), convert_to(t.metadata::text, 'UTF8'),
            t.effective_at, t.group_id, convert_to(t.state, 'UTF8'), t.expires_at, t.created_at, t.settled_at
        """,
    ),
    "idempotency_key": (
        "idempotency_keys",
        """
            convert_to(t.scope, 'UTF8'), convert_to(t.key, 'UTF8'), t.fingerprint, t.transfer_id,
            convert_to(t.refusal, 'UTF8'), t.created_at, t.account_id, convert_to(t.answer, 'UTF8')
        """,
    ),
    # balance, held, entry_number and updated_at are left out: `shop check` compares them with entries and holds
    "account": (
        "accounts",
        """
            t.id, t.user_id, convert_to(t.name, 'UTF8'), convert_to(t.currency, 'UTF8'), convert_to(t.purpose, 'UTF8'),
            t.allows_negative, t.overdraft_limit, t.balance_limit, convert_to(t.state, 'UTF8'),
            convert_to(t.metadata::text, 'UTF8'), t.created_at
        """,
    ),
}
_PURE = {
    **{
        f"digest_of_{name}": f"""
        CREATE OR REPLACE FUNCTION digest_of_{name}(t {table}) RETURNS bytea LANGUAGE sql STABLE AS $$
        SELECT substr(sha256(record_send(ROW({columns}))), 1, 16)
        $$
        """
        for name, (table, columns) in _DIGESTS.items()
    },
    "hash_of_seal": """
        CREATE OR REPLACE FUNCTION hash_of_seal(before bytea, s seals) RETURNS bytea LANGUAGE sql STABLE AS $$
        SELECT sha256(coalesce(before, '') || record_send(ROW(
            s.id, convert_to(s.subject, 'UTF8'), s.ids, s.revisions, s.digests, s.befores, s.created_at
        )))
        $$
        """,
}
_SEALING = {
    "seal_transfers": """
        CREATE OR REPLACE FUNCTION seal_transfers() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO seals (subject, ids, digests)
            SELECT 'transfers', array_agg(id), array_agg(digest_of_transfer(ROW(added.*)::transfers))
            FROM added HAVING count(*) > 0;
            RETURN NULL;
        END
        $$
        """,
    # without ids: old keys are deleted, and a digest identifies its key
    "seal_idempotency_keys": """
        CREATE OR REPLACE FUNCTION seal_idempotency_keys() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO seals (subject, digests)
            SELECT 'idempotency_keys', array_agg(digest_of_idempotency_key(ROW(added.*)::idempotency_keys))
            FROM added HAVING count(*) > 0;
            RETURN NULL;
        END
        $$
        """,
    "seal_pending_transfers": """
        CREATE OR REPLACE FUNCTION seal_pending_transfers() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO seals (subject, ids, revisions, digests)
            SELECT 'pending_transfers', array_agg(id), array_agg((state <> 'pending')::int::bigint),
                array_agg(digest_of_pending_transfer(ROW(added.*)::pending_transfers))
            FROM added HAVING count(*) > 0;
            RETURN NULL;
        END
        $$
        """,
    "seal_settled_transfers": """
        CREATE OR REPLACE FUNCTION seal_settled_transfers() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO seals (subject, ids, revisions, digests, befores)
            SELECT 'pending_transfers', array_agg(added.id), array_agg(1::bigint),
                array_agg(digest_of_pending_transfer(ROW(added.*)::pending_transfers)),
                array_agg(digest_of_pending_transfer(ROW(removed.*)::pending_transfers))
            FROM added JOIN removed ON removed.id = added.id HAVING count(*) > 0;
            RETURN NULL;
        END
        $$
        """,
    "seal_accounts": """
        CREATE OR REPLACE FUNCTION seal_accounts() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO seals (subject, ids, revisions, digests)
            SELECT 'accounts', array_agg(id), array_agg(revision),
                array_agg(digest_of_account(ROW(added.*)::accounts))
            FROM added HAVING count(*) > 0;
            RETURN NULL;
        END
        $$
        """,
    # only if the digests differ: a changed held amount increments the revision, too
    "seal_changed_account": """
        CREATE OR REPLACE FUNCTION seal_changed_account() RETURNS trigger LANGUAGE plpgsql AS $$
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
        """,
    "link_seals": """
        CREATE OR REPLACE FUNCTION link_seals(most integer) RETURNS integer LANGUAGE plpgsql AS $$
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
        """,
}
_REFUSING = {
    "refuse_on_seals": """
        CREATE OR REPLACE FUNCTION refuse_on_seals() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'seals are never written by hand, changed or deleted: triggers make them, and link_seals() links them once'
                USING ERRCODE = 'object_not_in_prerequisite_state';
        END
        $$
        """,
    "refuse_changed_key": """
        CREATE OR REPLACE FUNCTION refuse_changed_key() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'idempotency keys are never changed: use another key'
                USING ERRCODE = 'object_not_in_prerequisite_state';
        END
        $$
        """,
}
_TRIGGERS = {
    ("sealed", "transfers"): """
        AFTER INSERT ON transfers REFERENCING NEW TABLE AS added
        FOR EACH STATEMENT EXECUTE FUNCTION seal_transfers()
        """,
    ("sealed", "idempotency_keys"): """
        AFTER INSERT ON idempotency_keys REFERENCING NEW TABLE AS added
        FOR EACH STATEMENT EXECUTE FUNCTION seal_idempotency_keys()
        """,
    ("sealed", "pending_transfers"): """
        AFTER INSERT ON pending_transfers REFERENCING NEW TABLE AS added
        FOR EACH STATEMENT EXECUTE FUNCTION seal_pending_transfers()
        """,
    ("settling_sealed", "pending_transfers"): """
        AFTER UPDATE ON pending_transfers REFERENCING OLD TABLE AS removed NEW TABLE AS added
        FOR EACH STATEMENT EXECUTE FUNCTION seal_settled_transfers()
        """,
    ("sealed", "accounts"): """
        AFTER INSERT ON accounts REFERENCING NEW TABLE AS added
        FOR EACH STATEMENT EXECUTE FUNCTION seal_accounts()
        """,
    # a BEFORE trigger, because an AFTER trigger would slow down each change of a balance; its name makes it the last one
    ("sealed_change", "accounts"): """
        BEFORE UPDATE ON accounts
        FOR EACH ROW WHEN (NEW.revision <> OLD.revision) EXECUTE FUNCTION seal_changed_account()
        """,
    ("never_changed", "idempotency_keys"): """
        BEFORE UPDATE OR TRUNCATE ON idempotency_keys
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_changed_key()
        """,
    ("made_by_triggers", "seals"): """
        BEFORE INSERT ON seals
        FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION refuse_on_seals()
        """,
    ("only_grows", "seals"): """
        BEFORE DELETE OR TRUNCATE ON seals
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_on_seals()
        """,
    ("linked_once", "seals"): """
        BEFORE UPDATE ON seals
        FOR EACH ROW WHEN (
            OLD.position IS NOT NULL OR NEW.position IS NULL
            OR (NEW.id, NEW.subject, NEW.ids, NEW.revisions, NEW.digests, NEW.befores, NEW.created_at)
                IS DISTINCT FROM (OLD.id, OLD.subject, OLD.ids, OLD.revisions, OLD.digests, OLD.befores, OLD.created_at)
        ) EXECUTE FUNCTION refuse_on_seals()
        """,
}
# In the order in which transfers lock these tables.
_LOCK = "LOCK TABLE accounts, pending_transfers, transfers, entries, idempotency_keys IN ACCESS EXCLUSIVE MODE"
_AT_A_TIME = 500
_LINKED_AT_A_TIME = 10_000


def upgrade() -> None:
    op.execute(_LOCK)
    op.create_table(
        "seals",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("subject", sa.String(length=20), nullable=False),
        sa.Column("ids", postgresql.ARRAY(sa.Uuid()), nullable=True),
        sa.Column("revisions", postgresql.ARRAY(sa.BigInteger()), nullable=True),
        sa.Column("digests", postgresql.ARRAY(sa.LargeBinary()), nullable=False),
        sa.Column("befores", postgresql.ARRAY(sa.LargeBinary()), nullable=True),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("position", sa.BigInteger(), nullable=True),
        sa.Column("hash", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint("(position IS NULL) = (hash IS NULL)", name=op.f("ck_seals_linked_is_told")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_seals")),
        sa.UniqueConstraint("position", name=op.f("uq_seals_position")),
    )
    for column in ("ids", "digests", "befores"):  # digests and random ids can't be compressed
        op.execute(f"ALTER TABLE seals ALTER COLUMN {column} SET STORAGE EXTERNAL")
    for function in (*_PURE.values(), *_SEALING.values(), *_REFUSING.values()):
        op.execute(function)
    schema = op.get_bind().execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one()
    for name in _SEALING:
        op.execute(
            f"ALTER FUNCTION {name} SET search_path = {schema}, pg_temp"
        )  # so that no temporary table of the same name is used
    _seal("transfers", "digest_of_transfer(t)", order="id", ids="array_agg(id)")
    settled = "array_agg((state <> 'pending')::int::bigint)"
    _seal("pending_transfers", "digest_of_pending_transfer(t)", order="id", ids="array_agg(id)", revisions=settled)
    _seal("accounts", "digest_of_account(t)", order="id", ids="array_agg(id)", revisions="array_agg(revision)")
    _seal("idempotency_keys", "digest_of_idempotency_key(t)", order="created_at")
    while op.get_bind().execute(sa.text(f"SELECT link_seals({_LINKED_AT_A_TIME})")).scalar_one():
        pass
    for (name, _table), trigger in _TRIGGERS.items():
        op.execute(f"CREATE TRIGGER {name} {trigger}")


def _seal(table: str, digest: str, *, order: str, **others: str) -> None:
    """Seal the existing rows, some hundreds at a time, like the triggers."""
    columns = {"digests": f"array_agg({digest})", **others}
    op.execute(f"""
        INSERT INTO seals (subject, {", ".join(columns)})
        SELECT '{table}', {", ".join(columns.values())}
        FROM (SELECT t, t.*, (row_number() OVER (ORDER BY {order}) - 1) / {_AT_A_TIME} AS chunk FROM {table} t) numbered
        GROUP BY chunk ORDER BY chunk
        """)  # noqa: S608  # of names from above


def downgrade() -> None:
    op.execute(_LOCK)
    for name, table in reversed(_TRIGGERS):
        op.execute(f"DROP TRIGGER {name} ON {table}")
    for name in (*_SEALING, *_REFUSING, *_PURE):
        op.execute(f"DROP FUNCTION {name}")
    op.drop_table("seals")
