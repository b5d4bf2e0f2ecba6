"""The schema's history."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from alembic.util.exc import CommandError
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from howdah import Base, Database
from shop import migrations
from shop.demo import create_demo
from shop.ledger.check import LedgerReport, check_ledger
from shop.ledger.http.account_schemas import AccountIn
from shop.ledger.opening import OpeningRequest, open_account_once
from shop.ledger.requests import TransferRequest
from shop.ledger.service import post_transfers
from shop_tests.support.funded_accounts import open_accounts

# What tells two schemas apart, by the names of things and never by their numbers.
_SCHEMA = (
    """
    SELECT table_name, column_name, data_type, is_nullable, column_default, character_maximum_length
    FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version' ORDER BY 1, 2
    """,
    """
    SELECT conrelid::regclass::text, conname, contype::text, condeferrable, pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text <> 'alembic_version'
    ORDER BY 1, 2
    """,
    """
    SELECT tablename, indexname, indexdef FROM pg_indexes
    WHERE schemaname = 'public' AND tablename <> 'alembic_version' ORDER BY 1, 2
    """,
)


@pytest.fixture
def empty_url(postgres_url: str) -> Iterator[str]:
    """The URL of a database with nothing in it."""
    name = f"howdah_test_{os.getpid()}_empty_{uuid4().hex[:8]}"
    _run(postgres_url, f'CREATE DATABASE "{name}"')
    yield make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    _run(postgres_url, f'DROP DATABASE "{name}" WITH (FORCE)')


def _run(url: str, *statements: str) -> list[list[tuple[Any, ...]]]:
    async def run() -> list[list[tuple[Any, ...]]]:
        connection = await asyncpg.connect(make_url(url).set(drivername="postgresql").render_as_string(False))
        try:
            return [[tuple(row) for row in await connection.fetch(statement)] for statement in statements]
        finally:
            await connection.close()

    return asyncio.run(run())


def test_an_upgraded_database_has_the_schema_of_the_models(empty_url: str, committed_url: str) -> None:
    async def create() -> None:
        engine = create_async_engine(empty_url)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        await engine.dispose()

    asyncio.run(create())
    columns, constraints, indexes = _run(empty_url, *_SCHEMA)
    assert (columns, constraints, indexes) == tuple(_run(committed_url, *_SCHEMA))
    assert {"ck_accounts_balance_covered", "uq_users_email", "fk_orders_user_id"} <= {row[1] for row in constraints}
    assert len(columns) > 50


def test_every_foreign_key_has_an_index(committed_url: str) -> None:
    without = """
        SELECT conname FROM pg_constraint c WHERE contype = 'f' AND connamespace = 'public'::regnamespace
        AND NOT EXISTS (
            SELECT FROM pg_index i WHERE i.indrelid = c.conrelid
            AND (i.indkey::int2[])[0:cardinality(c.conkey) - 1] = c.conkey
        )
        """
    assert _run(committed_url, without) == [[]]


def test_an_empty_database_goes_up_down_and_up_again(empty_url: str) -> None:
    for _ in range(2):
        migrations.upgrade(empty_url)
        assert migrations.differences(empty_url) is None
        assert _run(empty_url, "SELECT version_num FROM alembic_version") == [[(migrations.head(),)]]
        migrations.downgrade(empty_url, "base")
        assert _run(empty_url, *_SCHEMA) == [[], [], []]
    migrations.upgrade(empty_url)
    migrations.upgrade(empty_url)


def test_a_filled_database_goes_down_and_up_again(committed_url: str) -> None:
    async def fill() -> None:
        async with Database(committed_url) as database:
            assert await create_demo(database, users=5, seed=1) == 5

    asyncio.run(fill())
    before = _run(committed_url, *_SCHEMA)
    migrations.downgrade(committed_url, "base")
    assert _run(committed_url, *_SCHEMA) == [[], [], []]
    migrations.upgrade(committed_url)
    assert _run(committed_url, *_SCHEMA) == before
    asyncio.run(fill())


@pytest.mark.parametrize("times", ["different", "equal"])
def test_existing_keys_get_the_kind_of_their_answer(committed_url: str, times: str) -> None:
    """With equal times, as the clock of a process that is behind would make them, the fingerprints decide."""

    async def fill() -> None:
        async with Database(committed_url) as database:
            a, b = await open_accounts(database, 1_000, 1_000)

            async def submit(*requests: TransferRequest) -> list[UUID]:
                async with database.begin() as session:
                    return [each.unwrap().id for each in await post_transfers(session, requests) if not each.refusal]

            hold = TransferRequest(a, b, 10, pending_seconds=600)
            held = await submit(*[hold._replace(key=f"pending {number}") for number in range(4)])
            await submit(
                TransferRequest(a, b, None, voids=held[0], key="voided"),
                TransferRequest(a, b, None, posts=held[1], key="posted whole"),
                TransferRequest(a, b, 7, posts=held[2], key="posted in part"),
                TransferRequest(a, b, 5, key="posted"),
                TransferRequest(a, b, 10_000, key="refused"),
            )
            async with database.begin() as session:
                await open_account_once(session, OpeningRequest(AccountIn(name="A", currency="GBP"), "opened"))

    asyncio.run(fill())
    if times == "equal":
        _run(
            committed_url,
            "ALTER TABLE pending_transfers DISABLE TRIGGER USER",
            "ALTER TABLE idempotency_keys DISABLE TRIGGER USER",
            "UPDATE idempotency_keys SET created_at = '2026-01-01Z'",
            """
            UPDATE pending_transfers
            SET created_at = '2026-01-01Z', settled_at = CASE WHEN state <> 'pending' THEN timestamptz '2026-01-01Z' END
            """,
            "ALTER TABLE pending_transfers ENABLE TRIGGER USER",
            "ALTER TABLE idempotency_keys ENABLE TRIGGER USER",
        )
    migration = import_module("shop.migrations.versions.0007_kinds_of_answers")
    [before] = _run(committed_url, "SELECT key, answer FROM idempotency_keys ORDER BY key")
    assert {key: answer for key, answer in before if key.split()[0] != answer} == {}
    assert len(before) == 10
    migrations.downgrade(committed_url, migration.down_revision)
    migrations.upgrade(committed_url)
    assert _run(committed_url, "SELECT key, answer FROM idempotency_keys ORDER BY key") == [
        [(key, answer) for key, answer in before if answer != "opened"]  # the schema before has no place for it
    ]


def test_the_functions_that_book_transfers_keep_their_settings_in_both_directions(empty_url: str) -> None:
    """CREATE OR REPLACE FUNCTION drops those that were set before."""
    settings = "SELECT proconfig FROM pg_proc WHERE proname = 'book_transfers'"
    migrations.upgrade(empty_url, "0006")
    before = _run(empty_url, settings)
    assert len(before[0][0][0]) == 5
    migrations.upgrade(empty_url)
    assert _run(empty_url, settings) == before
    migrations.downgrade(empty_url, "0006")
    assert _run(empty_url, settings) == before


def test_what_was_there_before_the_seals_is_sealed(committed_url: str) -> None:
    """Some hundreds at a time, as the first links of the chain."""

    async def fill() -> None:
        async with Database(committed_url) as database:
            await create_demo(database, users=600, seed=1)
            source, target = await open_accounts(database, 100, 0)
            async with database.begin() as session:
                requests = [TransferRequest(source, target, 1, key=f"k{n}", pending_seconds=60) for n in range(2)]
                held, _ = await post_transfers(session, requests)
                await post_transfers(session, [TransferRequest(source, target, None, voids=held.unwrap().id)])
                await session.execute(text("UPDATE accounts SET name = 'Other' WHERE balance = 100"))

    async def check() -> LedgerReport:
        async with Database(committed_url) as database, database.session() as session:
            return await check_ledger(session)

    asyncio.run(fill())
    migrations.downgrade(committed_url, "0009-1")
    migrations.upgrade(committed_url)
    report = asyncio.run(check())
    assert (report.faults, report.transfers) == ({}, 601)
    assert report.seal is not None
    sealed = "SELECT subject, position, cardinality(digests) FROM seals ORDER BY 2"
    [rows] = _run(committed_url, sealed)
    assert rows == [
        ("transfers", 1, 500),
        ("transfers", 2, 101),
        ("pending_transfers", 3, 2),
        ("accounts", 4, 500),
        ("accounts", 5, 104),
        ("idempotency_keys", 6, 2),
    ]
    asyncio.run(fill_more(committed_url))
    assert asyncio.run(check()).faults == {}
    _run(committed_url, "SET session_replication_role = replica", "UPDATE transfers SET description = 'x'")
    assert len(asyncio.run(check()).faults["transfers differ from their seal"]) == 20


async def fill_more(url: str) -> None:
    """What was there before changes, and is sealed."""
    async with Database(url) as database, database.begin() as session:
        await session.execute(text("UPDATE accounts SET name = 'Another' WHERE name = 'Other'"))
        held = "UPDATE pending_transfers SET state = 'voided', settled_at = now() WHERE state = 'pending'"
        await session.execute(text(held))
        await session.execute(text("UPDATE accounts SET held = 0 WHERE held > 0"))


@pytest.mark.parametrize(
    "planted",
    [
        "ALTER TABLE users ADD COLUMN age int",
        "ALTER TABLE users DROP COLUMN country",
        "ALTER TABLE users ALTER COLUMN country SET NOT NULL",
        "ALTER TABLE users ALTER COLUMN name TYPE text",
        "ALTER TABLE users ALTER COLUMN name SET DEFAULT 'nobody'",
        "ALTER TABLE users DROP CONSTRAINT uq_users_email",
        "ALTER TABLE orders DROP CONSTRAINT fk_orders_user_id",
        "DROP INDEX ix_orders_cancels_id",
        "CREATE TABLE more (id int)",
    ],
)
def test_a_difference_between_models_and_database_is_found(committed_url: str, planted: str) -> None:
    assert migrations.differences(committed_url) is None
    _run(committed_url, planted)
    assert migrations.differences(committed_url)


def test_a_database_that_is_behind_cannot_be_compared(empty_url: str) -> None:
    with pytest.raises(CommandError, match="not up to date"):
        migrations.differences(empty_url)


def test_processes_that_upgrade_at_once_wait_for_each_other(empty_url: str) -> None:
    code = "import sys; from shop import migrations; migrations.upgrade(sys.argv[1])"
    upgrading = [
        subprocess.Popen([sys.executable, "-c", code, empty_url], stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    errors = [process.communicate(timeout=60)[1] for process in upgrading]
    assert [process.returncode for process in upgrading] == [0, 0, 0], errors
    assert migrations.differences(empty_url) is None


def test_a_url_is_understood_as_the_service_understands_it(empty_url: str) -> None:
    url = make_url(empty_url).set(drivername="postgresql").update_query_dict({"sslmode": "disable"})
    migrations.upgrade(url.render_as_string(hide_password=False))
    assert migrations.differences(url.render_as_string(hide_password=False)) is None


async def test_the_revision_of_a_database_is_told(empty_url: str, committed_database: Database) -> None:
    assert await migrations.current(committed_database) == migrations.head()
    async with Database(empty_url) as database:
        assert await migrations.current(database) is None
        async with database.begin() as session:
            await session.execute(text("CREATE TABLE alembic_version (version_num text)"))
        assert await migrations.current(database) is None
