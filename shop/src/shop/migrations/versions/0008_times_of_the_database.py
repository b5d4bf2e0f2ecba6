"""The database checks the times of transfers, holds and accounts, and rejects those that are ahead of its clock. An
index finds the expired holds of an account."""

from importlib import import_module

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# One second is allowed for a clock that was set back during a transaction. After a failover to a server whose clock is
# behind, `updated_at` of accounts may be ahead of it: the next transfers of these accounts have that time.
_FUNCTIONS = {
    "book_transfers": """
        CREATE OR REPLACE FUNCTION book_transfers() RETURNS trigger LANGUAGE plpgsql AS $$
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
        """,
    "refuse_opened_with_money": """
        CREATE OR REPLACE FUNCTION refuse_opened_with_money() RETURNS trigger LANGUAGE plpgsql AS $$
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
        """,
    "refuse_held_in_future": """
        CREATE OR REPLACE FUNCTION refuse_held_in_future() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF EXISTS (SELECT FROM added WHERE created_at > clock_timestamp() + interval '1 second') THEN
                RAISE EXCEPTION 'a pending transfer is of a time that is yet to come'
                    USING ERRCODE = 'check_violation', CONSTRAINT = 'held_in_time', TABLE = 'pending_transfers',
                        HINT = 'created_at must be clock_timestamp().';
            END IF;
            RETURN NULL;
        END
        $$
        """,
    # `updated_at` of an account never goes back, because the order of its entries in time depends on it. It is never set
    # ahead of the clock.
    "count_revision": """
        CREATE OR REPLACE FUNCTION count_revision() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.revision := OLD.revision + 1;
            NEW.updated_at := greatest(OLD.updated_at, least(NEW.updated_at, clock_timestamp()));
            RETURN NEW;
        END
        $$
        """,
}
_HELD_IN_TIME = """
    CREATE TRIGGER held_in_time AFTER INSERT ON pending_transfers REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_held_in_future()
    """
_DEFAULTS = (
    ("accounts", "created_at"),
    ("accounts", "updated_at"),
    ("transfers", "effective_at"),
    ("transfers", "created_at"),
    ("idempotency_keys", "created_at"),
)
# In the order in which transfers lock these tables.
_LOCK = "LOCK TABLE accounts, transfers, pending_transfers, idempotency_keys IN ACCESS EXCLUSIVE MODE"
_before = import_module("shop.migrations.versions.0006_booked_by_the_database")


def upgrade() -> None:
    op.execute(_LOCK)
    for function in _FUNCTIONS.values():
        op.execute(function)
    _plan_book_transfers()
    op.execute(_HELD_IN_TIME)
    for table, column in _DEFAULTS:
        op.alter_column(table, column, server_default=sa.func.statement_timestamp())
    op.drop_index("ix_pending_transfers_from_account_id", table_name="pending_transfers")
    op.create_index(
        "ix_pending_transfers_from_account_id_expires_at",
        "pending_transfers",
        ["from_account_id", "expires_at"],
        postgresql_where="state = 'pending'",
    )


def downgrade() -> None:
    op.execute(_LOCK)
    op.drop_index("ix_pending_transfers_from_account_id_expires_at", table_name="pending_transfers")
    op.create_index(
        "ix_pending_transfers_from_account_id",
        "pending_transfers",
        ["from_account_id"],
        postgresql_where="state = 'pending'",
    )
    for table, column in _DEFAULTS:
        op.alter_column(table, column, server_default=None)
    op.execute("DROP TRIGGER held_in_time ON pending_transfers")
    op.execute("DROP FUNCTION refuse_held_in_future")
    for name in ("book_transfers", "refuse_opened_with_money"):
        op.execute(_before._FUNCTIONS[name])
    op.execute(_before._COUNT_REVISION)
    _plan_book_transfers()


def _plan_book_transfers() -> None:
    """Set them again: CREATE OR REPLACE FUNCTION drops these settings."""
    for name, value in _before._PLANS.items():
        op.execute(f"ALTER FUNCTION book_transfers SET {name} = {value}")
    schema = op.get_bind().execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one()
    op.execute(f"ALTER FUNCTION book_transfers SET search_path = {schema}, pg_temp")
