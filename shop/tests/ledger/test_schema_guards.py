"""`compare_guards` finds triggers, functions and constraints that are missing, disabled or changed."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database
from shop.ledger.check import check_ledger
from shop.migrations import guards
from shop.migrations.guards import compare_guards


async def test_guards_sql_says_what_a_migrated_database_has(session: AsyncSession) -> None:
    """If this fails, run `shop migrate --guards` and review the changes."""
    assert await guards.described(session) == guards._FILE.read_text(encoding="utf-8")
    assert {"trigger booked on transfers", "function link_seals(most integer)"} <= set(guards.expected())
    report = await compare_guards(session)
    assert (report.missing, report.unknown) == ([], [])


@pytest.mark.parametrize(
    ("missing", "change"),
    [
        ("trigger booked on transfers: disabled", "ALTER TABLE transfers DISABLE TRIGGER booked"),
        ("trigger booked on transfers: disabled", "ALTER TABLE transfers DISABLE TRIGGER USER"),
        ("trigger booked on transfers: disabled", "ALTER TABLE transfers ENABLE REPLICA TRIGGER booked"),
        ("constraint fk_transfers_reverses_id on transfers: disabled", "ALTER TABLE transfers DISABLE TRIGGER ALL"),
        ("trigger sealed on idempotency_keys: missing", "DROP TRIGGER sealed ON idempotency_keys"),
        ("trigger only_grows on entries: missing", "ALTER TRIGGER only_grows ON entries RENAME TO grows"),
        (
            "trigger revised on accounts: changed",
            """
            CREATE OR REPLACE TRIGGER revised BEFORE UPDATE ON accounts
            FOR EACH ROW WHEN (false) EXECUTE FUNCTION count_revision()
            """,
        ),
        (
            "trigger only_grows on transfers: changed",
            """
            CREATE OR REPLACE TRIGGER only_grows BEFORE DELETE ON transfers
            FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
            """,
        ),
        (
            "function refuse_change(): changed",
            "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        ),
        ("function book_transfers(): changed", "ALTER FUNCTION book_transfers SET enable_seqscan = on"),
        ("function book_transfers(): changed", "ALTER FUNCTION book_transfers RESET ALL"),
        ("function book_transfers(): changed", "ALTER FUNCTION book_transfers SET search_path = pg_temp, public"),
        ("function settle_once(): changed", "ALTER FUNCTION settle_once SECURITY DEFINER"),
        (
            "function digest_of_account(t accounts): changed",
            """
            CREATE OR REPLACE FUNCTION digest_of_account(t accounts) RETURNS bytea LANGUAGE sql STABLE
            AS $$SELECT ''::bytea$$
            """,
        ),
        (
            "constraint ck_accounts_balance_covered on accounts: missing",
            "ALTER TABLE accounts DROP CONSTRAINT ck_accounts_balance_covered",
        ),
        (
            "constraint ck_transfers_amount_positive on transfers: not valid",
            """
            ALTER TABLE transfers DROP CONSTRAINT ck_transfers_amount_positive,
            ADD CONSTRAINT ck_transfers_amount_positive CHECK (amount > 0) NOT VALID
            """,
        ),
        (
            "constraint ck_transfers_amount_positive on transfers: changed",
            """
            ALTER TABLE transfers DROP CONSTRAINT ck_transfers_amount_positive,
            ADD CONSTRAINT ck_transfers_amount_positive CHECK (amount > -1)
            """,
        ),
        (
            "constraint pk_idempotency_keys on idempotency_keys: missing",
            "ALTER TABLE idempotency_keys DROP CONSTRAINT pk_idempotency_keys",
        ),
        (
            "index uq_transfers_reverses_id_reversed_total on transfers: missing",
            "DROP INDEX uq_transfers_reverses_id_reversed_total",
        ),
        (
            "index uq_accounts_purpose_currency on accounts: not valid",
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'uq_accounts_purpose_currency'::regclass",
        ),
        ("column amount of entries: changed", "ALTER TABLE entries ALTER COLUMN amount DROP NOT NULL"),
        ("column currency of transfers: changed", "ALTER TABLE transfers ALTER COLUMN currency SET DEFAULT 'GBP'"),
        ("table entries: changed", "ALTER TABLE entries SET UNLOGGED"),
        ("table transfers: changed", "CREATE RULE quiet AS ON INSERT TO idempotency_keys DO INSTEAD NOTHING"),
        ("table transfers: changed", "ALTER TABLE transfers ENABLE ROW LEVEL SECURITY"),
    ],
)
async def test_what_is_missing_disabled_or_changed_is_found(session: AsyncSession, missing: str, change: str) -> None:
    if "CREATE RULE" in change:
        missing = missing.replace("transfers", "idempotency_keys")
    await session.execute(text(change))
    report = await compare_guards(session)
    assert missing in {each.partition(": rows that")[0] for each in report.missing}
    found = await check_ledger(session)
    assert report.missing[0] in found.faults["parts of guards.sql that are missing, disabled or changed"]


@pytest.mark.parametrize(
    ("unknown", "change"),
    [
        (
            "trigger harm on transfers",
            "CREATE TRIGGER harm BEFORE INSERT ON transfers FOR EACH ROW EXECUTE FUNCTION refuse_change()",
        ),
        (
            "trigger harm on seals",
            "CREATE TRIGGER harm AFTER INSERT ON seals FOR EACH ROW EXECUTE FUNCTION refuse_change()",
        ),
        ("setting session_replication_role", "SET LOCAL session_replication_role = replica"),
        (
            "setting session_replication_role of role CURRENT_USER",
            "ALTER ROLE CURRENT_USER SET session_replication_role = replica",
        ),
    ],
)
async def test_what_the_ledger_does_not_have_is_found(session: AsyncSession, unknown: str, change: str) -> None:
    await session.execute(text(change))
    user = str(await session.scalar(text("SELECT quote_ident(current_user)")))
    kind = "triggers and settings that the ledger doesn't have"
    assert (await check_ledger(session)).faults[kind] == [unknown.replace("CURRENT_USER", user)]


async def test_a_trigger_of_another_table_and_one_that_always_fires_are_no_faults(session: AsyncSession) -> None:
    for change in (
        "CREATE TRIGGER more BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION refuse_change()",
        "ALTER TABLE transfers ENABLE ALWAYS TRIGGER booked",
        "CREATE INDEX more ON transfers (amount)",
        "ALTER TABLE transfers ADD COLUMN more int",
        "CREATE FUNCTION more() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    ):
        await session.execute(text(change))
    report = await compare_guards(session)
    assert (report.missing, report.unknown) == ([], [])


async def test_the_name_of_the_schema_does_not_matter(committed_database: Database) -> None:
    async with committed_database.begin() as session:
        await session.execute(text('ALTER SCHEMA public RENAME TO "Other schema"'))
        await session.execute(text('SET LOCAL search_path = "Other schema"'))
        await session.execute(text('ALTER FUNCTION book_transfers SET search_path = "Other schema", pg_temp'))
        report = await compare_guards(session)
        changed = [each for each in report.missing if "seal" not in each]
        assert (changed, report.unknown) == ([], [])
        assert len(report.missing) > len(changed)  # those whose path still leads elsewhere
