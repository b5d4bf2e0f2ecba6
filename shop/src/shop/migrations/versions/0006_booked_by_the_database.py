"""The database itself makes the entries and balances of new transfers, and lets nobody else do so."""

from importlib import import_module

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# Each join is of as many rows as the statement has legs: by hashing, for what is planned when there is one row would
# later be used for a thousand; and the accounts are found by their key, whatever the statistics say of them.
_PLANS = {
    "enable_seqscan": "off",
    "enable_nestloop": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
}

_FUNCTIONS = {
    "book_transfers": """
        CREATE OR REPLACE FUNCTION book_transfers() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            ids CONSTANT uuid[] := ARRAY(SELECT from_account_id FROM added UNION ALL SELECT to_account_id FROM added);
            booked bigint;
        BEGIN
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
            RETURN NULL;
        END
        $$
        """,
    "refuse_by_hand": """
        CREATE OR REPLACE FUNCTION refuse_by_hand() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'entries and balances are never written by hand: a new transfer makes them'
                USING ERRCODE = 'object_not_in_prerequisite_state';
        END
        $$
        """,
}
# Also keeps what the entries' order in time is proven by from going back, whosever clock it is.
_COUNT_REVISION = """
    CREATE OR REPLACE FUNCTION count_revision() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.revision := OLD.revision + 1;
        NEW.updated_at := greatest(OLD.updated_at, NEW.updated_at);
        RETURN NEW;
    END
    $$
    """
_TRIGGERS = (
    """
    CREATE TRIGGER booked AFTER INSERT ON transfers REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION book_transfers()
    """,
    """
    CREATE TRIGGER opened_empty AFTER INSERT ON accounts REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_opened_with_money()
    """,
    """
    CREATE TRIGGER made_by_transfers BEFORE INSERT ON entries
    FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION refuse_by_hand()
    """,
    """
    CREATE TRIGGER moved_by_transfers BEFORE UPDATE OF balance, entry_count ON accounts
    FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION refuse_by_hand()
    """,
    """
    CREATE TRIGGER revised BEFORE UPDATE ON accounts
    FOR EACH ROW WHEN (NEW.entry_count = OLD.entry_count) EXECUTE FUNCTION count_revision()
    """,
)
# In the order of those who move money.
_LOCK = "LOCK TABLE accounts, transfers, entries IN ACCESS EXCLUSIVE MODE"
_before = import_module("shop.migrations.versions.0005_ledger")


def upgrade() -> None:
    op.execute(_LOCK)
    for table in ("entries", "transfers"):
        op.execute(f"DROP TRIGGER proven ON {table}")
        op.execute(f"DROP FUNCTION prove_{table}")
    op.execute("DROP TRIGGER revised ON accounts")
    for function in (*_FUNCTIONS.values(), _COUNT_REVISION):
        op.execute(function)
    for name, value in _PLANS.items():
        op.execute(f"ALTER FUNCTION book_transfers SET {name} = {value}")
    schema = op.get_bind().execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one()
    op.execute(f"ALTER FUNCTION book_transfers SET search_path = {schema}, pg_temp")  # no temporary table of that name
    for trigger in _TRIGGERS:
        op.execute(trigger)


def downgrade() -> None:
    op.execute(_LOCK)
    for trigger, table in (
        ("booked", "transfers"),
        ("opened_empty", "accounts"),
        ("made_by_transfers", "entries"),
        ("moved_by_transfers", "accounts"),
        ("revised", "accounts"),
    ):
        op.execute(f"DROP TRIGGER {trigger} ON {table}")
    for function in _FUNCTIONS:
        op.execute(f"DROP FUNCTION {function}")
    _before.prove_by_the_statement()
    op.execute(_before.FUNCTIONS["count_revision"])
    op.execute(_before.REVISED)
