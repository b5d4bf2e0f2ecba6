"""The ledger's schema: `catalog.txt` is current, `create_all` creates triggers, and `compare_schema` finds every
trigger, function and constraint that is missing, disabled or changed."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Base, Database
from howdah.alembic.catalog import CatalogEntry, read_catalog
from shop.ledger.check import check_ledger
from shop.ledger.models import LEDGER_TABLES
from shop.ledger.schema import compare_schema, expected_catalog, find_catalog_differences, verify_schema
from shop.ledger.triggers import create_triggers, list_function_names
from shop.tables import create_tables


def test_the_catalog_file_is_current(created_catalog: dict[str, CatalogEntry]) -> None:
    """If this fails, run `shop migrate --write-catalog` and review the changes."""
    assert find_catalog_differences(created_catalog) == []
    expected = set(expected_catalog())
    assert {"trigger post_transfers on transfers", "function link_seals(max_seals integer)"} <= expected
    assert {f"table {name}" for name in LEDGER_TABLES} <= expected
    assert {"rights of shop_customer on users", "policy customers_read on orders"} <= expected
    others = {name for name in expected if name.endswith((" users", " orders"))}
    assert {name.partition(" ")[0] for name in others} == {"table", "policy", "rights"}


def test_a_changed_definition_makes_the_catalog_file_outdated(created_catalog: dict[str, CatalogEntry]) -> None:
    name = "function reject_change()"
    changed = created_catalog | {name: CatalogEntry(created_catalog[name].definition.replace("never", "seldom"))}
    assert len(find_catalog_differences(changed)) == 3
    assert len(find_catalog_differences(created_catalog | {"trigger more on users": CatalogEntry("…")})) == 0


async def test_a_migrated_database_has_the_schema_of_the_ledger(session: AsyncSession) -> None:
    report = await compare_schema(session)
    assert (report.defects, report.unknown) == ([], [])


async def test_create_all_creates_the_triggers_and_drop_all_drops_the_functions(empty_url: str) -> None:
    await asyncio.to_thread(create_tables, empty_url)
    await asyncio.to_thread(verify_schema, empty_url)
    async with Database(empty_url) as database:
        async with database.engine.begin() as connection:
            await connection.run_sync(create_triggers)  # they can be created again
            await connection.run_sync(Base.metadata.create_all)
        async with database.session() as session:
            assert not (await compare_schema(session)).has_differences
        async with database.engine.begin() as connection:
            await connection.run_sync(Base.metadata.drop_all)
        async with database.session() as session:
            assert await read_catalog(session) == {}


async def test_create_all_of_other_tables_creates_no_triggers(empty_url: str) -> None:
    async with Database(empty_url) as database:
        async with database.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all, tables=[Base.metadata.tables["users"]])
        async with database.session() as session:
            assert {name for name in await read_catalog(session) if "users" not in name} == set()


def test_every_function_of_the_files_is_in_the_catalog_file() -> None:
    in_file = {name.removeprefix("function ").partition("(")[0] for name in expected_catalog() if name[:4] == "func"}
    assert in_file == set(list_function_names())


@pytest.mark.parametrize(
    ("missing", "change"),
    [
        ("trigger post_transfers on transfers: disabled", "ALTER TABLE transfers DISABLE TRIGGER post_transfers"),
        ("trigger post_transfers on transfers: disabled", "ALTER TABLE transfers DISABLE TRIGGER USER"),
        (
            "trigger post_transfers on transfers: disabled",
            "ALTER TABLE transfers ENABLE REPLICA TRIGGER post_transfers",
        ),
        ("constraint fk_transfers_reverses_id on transfers: disabled", "ALTER TABLE transfers DISABLE TRIGGER ALL"),
        (
            "trigger seal_idempotency_keys on idempotency_keys: missing",
            "DROP TRIGGER seal_idempotency_keys ON idempotency_keys",
        ),
        ("trigger reject_change on entries: missing", "ALTER TRIGGER reject_change ON entries RENAME TO grows"),
        (
            "trigger increment_revision on accounts: changed",
            """
            CREATE OR REPLACE TRIGGER increment_revision BEFORE UPDATE ON accounts
            FOR EACH ROW WHEN (false) EXECUTE FUNCTION increment_revision()
            """,
        ),
        (
            "trigger reject_change on transfers: changed",
            """
            CREATE OR REPLACE TRIGGER reject_change BEFORE DELETE ON transfers
            FOR EACH STATEMENT EXECUTE FUNCTION reject_change()
            """,
        ),
        (
            "function reject_change(): changed",
            "CREATE OR REPLACE FUNCTION reject_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        ),
        ("function post_transfers(): changed", "ALTER FUNCTION post_transfers SET enable_seqscan = on"),
        ("function post_transfers(): changed", "ALTER FUNCTION post_transfers RESET ALL"),
        ("function post_transfers(): changed", "ALTER FUNCTION post_transfers SET search_path = pg_temp, public"),
        ("function allow_only_settling(): changed", "ALTER FUNCTION allow_only_settling SECURITY DEFINER"),
        (
            "function digest_of_account(t accounts): changed",
            """
            CREATE OR REPLACE FUNCTION digest_of_account(t accounts) RETURNS bytea LANGUAGE sql STABLE
            AS $$SELECT ''::bytea$$
            """,
        ),
        (
            "constraint ck_accounts_available_within_overdraft_limit on accounts: missing",
            "ALTER TABLE accounts DROP CONSTRAINT ck_accounts_available_within_overdraft_limit",
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
        ("table transfers: changed", "ALTER TABLE transfers DISABLE ROW LEVEL SECURITY"),
        ("table orders: changed", "ALTER TABLE orders DISABLE ROW LEVEL SECURITY"),
        ("policy customers_read on orders: missing", "DROP POLICY customers_read ON orders"),
        ("policy customers_read on orders: changed", "ALTER POLICY customers_read ON orders USING (true)"),
        ("policy customers_read on orders: changed", "ALTER POLICY customers_read ON orders TO PUBLIC"),
        ("rights of shop_customer on users: changed", "GRANT UPDATE (email) ON users TO shop_customer"),
        ("rights of shop_customer on accounts: changed", "GRANT ALL ON accounts TO shop_customer"),
        ("rights of shop_system on transfers: changed", "REVOKE INSERT ON transfers FROM shop_system"),
        ("rights of shop_staff on seals: missing", "REVOKE ALL ON seals FROM shop_staff"),
        ("function post_transfers(): changed", "GRANT EXECUTE ON FUNCTION post_transfers TO PUBLIC"),
        ("function seal_accounts(): changed", "ALTER FUNCTION seal_accounts SECURITY INVOKER"),
        ("table transfers: changed", "ALTER TABLE transfers NO FORCE ROW LEVEL SECURITY"),
    ],
)
async def test_a_missing_disabled_or_changed_part_is_found(session: AsyncSession, missing: str, change: str) -> None:
    if "CREATE RULE" in change:
        missing = missing.replace("transfers", "idempotency_keys")
    await session.execute(text(change))
    report = await compare_schema(session)
    assert missing in {each.partition(": existing rows")[0] for each in report.defects}
    found = await check_ledger(session)
    assert report.defects[0] in found.faults["parts of the schema that are missing, disabled or changed"]


@pytest.mark.parametrize(
    ("unknown", "change"),
    [
        (
            "trigger harm on transfers",
            "CREATE TRIGGER harm BEFORE INSERT ON transfers FOR EACH ROW EXECUTE FUNCTION reject_change()",
        ),
        (
            "trigger harm on seals",
            "CREATE TRIGGER harm AFTER INSERT ON seals FOR EACH ROW EXECUTE FUNCTION reject_change()",
        ),
        ("policy more on entries", "CREATE POLICY more ON entries USING (false)"),
        ("policy more on users", "CREATE POLICY more ON users USING (true)"),
        ("rights of shop_customer on seals", "GRANT SELECT ON seals TO shop_customer"),
        ("rights of PUBLIC on users", "GRANT SELECT (email) ON users TO PUBLIC"),
        ("rights of shop_service on users", "GRANT SELECT ON users TO shop_service"),
        (
            "rights of shop_customer on backup",
            "CREATE TABLE backup (id int); GRANT SELECT ON backup TO shop_customer",
        ),
        ("setting session_replication_role", "SET LOCAL session_replication_role = replica"),
        (
            "setting session_replication_role of role CURRENT_USER",
            "ALTER ROLE CURRENT_USER SET session_replication_role = replica",
        ),
    ],
)
async def test_an_unknown_trigger_policy_or_setting_is_found(session: AsyncSession, unknown: str, change: str) -> None:
    for statement in change.split("; "):
        await session.execute(text(statement))
    user = str(await session.scalar(text("SELECT quote_ident(current_user)")))
    kind = "triggers, policies and settings that the ledger doesn't have"
    assert (await check_ledger(session)).faults[kind] == [f"{unknown.replace('CURRENT_USER', user)}: unknown"]


async def test_additions_that_change_no_rule_of_the_ledger_are_no_differences(session: AsyncSession) -> None:
    for change in (
        "CREATE TRIGGER more BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION reject_change()",
        "ALTER TABLE transfers ENABLE ALWAYS TRIGGER post_transfers",
        "CREATE INDEX more ON transfers (amount)",
        "ALTER TABLE transfers ADD COLUMN more int",
        "CREATE FUNCTION more() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "GRANT SELECT ON users TO pg_monitor",
    ):
        await session.execute(text(change))
    report = await compare_schema(session)
    assert (report.defects, report.unknown) == ([], [])


async def test_the_name_of_the_schema_does_not_matter(committed_database: Database) -> None:
    async with committed_database.begin() as session:
        await session.execute(text('ALTER SCHEMA public RENAME TO "Other schema"'))
        await session.execute(text('SET LOCAL search_path = "Other schema"'))
        await session.execute(text('ALTER FUNCTION post_transfers SET search_path = "Other schema", pg_temp'))
        report = await compare_schema(session)
        functions = ("seal", "check_new_pending_transfers", "allow_only_settling")
        changed = [each for each in report.defects if not any(name in each for name in functions)]
        assert (changed, report.unknown) == ([], [])
        assert len(report.defects) > len(changed)  # functions whose search_path still names the old schema
