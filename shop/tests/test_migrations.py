"""The history of the schema."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from alembic.util.exc import CommandError
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database
from howdah.alembic.catalog import CatalogEntry, compare_catalogs, read_catalog, read_whole_catalog
from shop import migrations
from shop.demo import create_demo
from shop.ledger import schema
from shop.ledger.check import LedgerReport, check_ledger
from shop.migrations import HISTORY
from shop_tests.support.empty_database import run

KINDS = {"table", "column", "constraint", "index", "trigger", "function"}


def differences(url: str, expected: dict[str, CatalogEntry]) -> list[str]:
    return list(compare_catalogs(read_whole_catalog(url), expected, show_changes=True))


def test_a_migrated_database_equals_one_made_from_the_models_and_the_sql_files(
    committed_url: str, created_catalog: dict[str, CatalogEntry]
) -> None:
    assert differences(committed_url, created_catalog) == []
    assert {name.partition(" ")[0] for name in created_catalog} >= KINDS
    assert {
        "column email of users",
        "constraint fk_orders_user_id on orders",
        "index ix_orders_placed_at_id on orders",
        "trigger post_transfers on transfers",
        "function link_seals(max_seals integer)",
        "options of accounts",
        "storage of digests of seals",
    } <= set(created_catalog)


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        ("ALTER TABLE users ADD COLUMN age int", "column age of users: unknown"),
        ("ALTER TABLE users DROP COLUMN country", "column country of users: missing"),
        ("ALTER TABLE users ALTER COLUMN country SET NOT NULL", "column country of users: changed"),
        ("ALTER TABLE users ALTER COLUMN name TYPE text", "column name of users: changed"),
        ("ALTER TABLE users ALTER COLUMN name SET DEFAULT 'nobody'", "column name of users: changed"),
        ("ALTER TABLE users DROP CONSTRAINT uq_users_email", "constraint uq_users_email on users: missing"),
        ("ALTER TABLE orders DROP CONSTRAINT fk_orders_user_id", "constraint fk_orders_user_id on orders: missing"),
        ("DROP INDEX ix_orders_cancels_id", "index ix_orders_cancels_id on orders: missing"),
        ("CREATE INDEX more ON users (name)", "index more on users: unknown"),
        ("CREATE TABLE more (id int)", "table more: unknown"),
        ("CREATE VIEW more AS SELECT 1 AS one", "view more: unknown"),
        ("ALTER TABLE accounts RESET (fillfactor)", "options of accounts: missing"),
        ("ALTER TABLE seals ALTER COLUMN ids SET STORAGE EXTENDED", "storage of ids of seals: missing"),
        ("ALTER TABLE users DISABLE ROW LEVEL SECURITY", "table users: changed"),
        ("ALTER TABLE users NO FORCE ROW LEVEL SECURITY", "table users: changed"),
        ("CREATE POLICY own ON users FOR SELECT USING (name = current_user)", "policy own on users: unknown"),
        ("DROP TRIGGER seal_accounts ON accounts", "trigger seal_accounts on accounts: missing"),
        ("ALTER TABLE entries DISABLE TRIGGER reject_change", "trigger reject_change on entries: disabled"),
        ("ALTER TABLE entries ENABLE ALWAYS TRIGGER reject_change", "firing of reject_change on entries: unknown"),
        (
            "CREATE TRIGGER more BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION reject_change()",
            "trigger more on users: unknown",
        ),
        ("ALTER FUNCTION post_transfers RESET enable_seqscan", "function post_transfers(): changed"),
        ("ALTER FUNCTION reject_change PARALLEL SAFE", "function reject_change(): changed"),
        ("CREATE FUNCTION more() RETURNS int LANGUAGE sql AS 'SELECT 1'", "function more(): unknown"),
    ],
)
async def test_every_difference_of_two_schemas_is_found(
    session: AsyncSession, created_catalog: dict[str, CatalogEntry], planted: str, found: str
) -> None:
    await session.execute(text(planted))
    assert found in compare_catalogs(await read_catalog(session), created_catalog)


async def test_a_missing_table_is_one_difference(
    session: AsyncSession, created_catalog: dict[str, CatalogEntry]
) -> None:
    await session.execute(text("DROP TABLE seals CASCADE"))
    differences = [*compare_catalogs(await read_catalog(session), created_catalog)]
    assert [each for each in differences if each.endswith(" of seals: missing")] == []
    assert "table seals: missing" in differences


async def test_a_changed_definition_is_shown_by_its_lines(
    session: AsyncSession, created_catalog: dict[str, CatalogEntry]
) -> None:
    await session.execute(text("ALTER TABLE users ALTER COLUMN name TYPE text"))
    changed = compare_catalogs(await read_catalog(session), created_catalog, show_changes=True)
    name, _position, *lines = changed
    assert name == "column name of users: changed"
    assert lines == ["    -character varying(100) NOT NULL", "    +text NOT NULL"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("FOR SELECT USING (name = 'a')", "FOR SELECT USING (name = 'b')"),
        ("FOR SELECT USING (true)", "FOR ALL USING (true)"),
        ("AS PERMISSIVE USING (true)", "AS RESTRICTIVE USING (true)"),
        ("TO PUBLIC USING (true)", "TO CURRENT_USER USING (true)"),
        ("FOR ALL USING (true)", "FOR ALL USING (true) WITH CHECK (false)"),
    ],
)
async def test_a_changed_policy_is_found(session: AsyncSession, first: str, second: str) -> None:
    await session.execute(text(f"CREATE POLICY own ON users {first}"))
    before = await read_catalog(session)
    await session.execute(text("DROP POLICY own ON users"))
    await session.execute(text(f"CREATE POLICY own ON users {second}"))
    assert list(compare_catalogs(await read_catalog(session), before)) == ["policy own on users: changed"]


def test_every_foreign_key_has_an_index(committed_url: str) -> None:
    without = """
        SELECT conname FROM pg_constraint c WHERE contype = 'f' AND connamespace = 'public'::regnamespace
        AND NOT EXISTS (
            SELECT FROM pg_index i WHERE i.indrelid = c.conrelid
            AND (i.indkey::int2[])[0:cardinality(c.conkey) - 1] = c.conkey
        )
        """
    assert run(committed_url, without) == [[]]


def test_an_empty_database_goes_up_down_and_up_again(empty_url: str, created_catalog: dict[str, CatalogEntry]) -> None:
    for _ in range(2):
        migrations.upgrade(empty_url)
        assert run(empty_url, "SELECT version_num FROM alembic_version") == [[(HISTORY.head,)]]
        HISTORY.downgrade("base", empty_url)
        assert read_whole_catalog(empty_url) == {}
    migrations.upgrade(empty_url)
    migrations.upgrade(empty_url)
    assert differences(empty_url, created_catalog) == []


def test_a_filled_database_goes_down_and_up_again(committed_url: str, created_catalog: dict[str, CatalogEntry]) -> None:
    async def fill() -> LedgerReport:
        async with Database(committed_url) as database:
            assert await create_demo(database, users=5, seed=1) == 5
            async with database.session() as session:
                return await check_ledger(session)

    assert asyncio.run(fill()).transfers == 5
    HISTORY.downgrade("base", committed_url)
    assert read_whole_catalog(committed_url) == {}
    migrations.upgrade(committed_url)
    assert differences(committed_url, created_catalog) == []
    report = asyncio.run(fill())
    assert (report.faults, report.transfers) == ({}, 5)


def test_an_outdated_catalog_file_is_found(
    created_catalog: dict[str, CatalogEntry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert schema.find_catalog_differences(created_catalog) == []
    file = tmp_path / "catalog.txt"
    file.write_text(schema.CATALOG_FILE.read_text().replace("character varying(260)", "character varying(255)"))
    monkeypatch.setattr(schema, "CATALOG_FILE", file)
    assert [line for line in schema.find_catalog_differences(created_catalog) if "@@" not in line] == [
        "-character varying(255) NOT NULL",
        "+character varying(260) NOT NULL",
    ]


def test_the_migrations_agree_with_the_models_and_block_nobody(
    postgres_url: str, created_catalog: dict[str, CatalogEntry]
) -> None:
    report = HISTORY.check(server_url=postgres_url)
    assert str(report) == ""
    assert report.catalog == created_catalog


def test_a_url_is_understood_as_the_service_understands_it(
    empty_url: str, created_catalog: dict[str, CatalogEntry]
) -> None:
    url = make_url(empty_url).set(drivername="postgresql").update_query_dict({"sslmode": "disable"})
    migrations.upgrade(url.render_as_string(hide_password=False))
    assert differences(empty_url, created_catalog) == []


def test_the_error_for_an_unknown_revision_says_what_to_do(empty_url: str) -> None:
    run(empty_url, "CREATE TABLE alembic_version (version_num text)", "INSERT INTO alembic_version VALUES ('9999')")
    with pytest.raises(CommandError, match="at revision 9999, which this version doesn't have, and"):
        migrations.upgrade(empty_url)


async def test_the_revision_of_a_database_is_read(empty_url: str, committed_database: Database) -> None:
    assert await HISTORY.current(committed_database) == HISTORY.head
    assert await migrations.find_schema_problem(committed_database) is None
    async with Database(empty_url) as database:
        assert await HISTORY.current(database) is None
        async with database.begin() as session:
            await session.execute(text("CREATE TABLE alembic_version (version_num text)"))
        assert await HISTORY.current(database) is None
        problem = f"the schema is at None, not at {HISTORY.head}: run shop migrate"
        assert await migrations.find_schema_problem(database) == problem
