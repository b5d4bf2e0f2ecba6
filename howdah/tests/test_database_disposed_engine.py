"""After `await database.engine.dispose()` the limits, settings and listeners of the database still apply."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from contextvars import Context
from typing import Any

import pytest
from sqlalchemy import event, func, insert, make_url, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from howdah import Database, InvalidValue, LockTimeout, PoolExhausted, bulk
from howdah._connections.pool import BoundedPool
from howdah.testing import assert_statements
from howdah_tests.support.sample_models import User
from howdah_tests.support.sample_rows import user_rows

NAME = "howdah-disposed"
PID = text("SELECT pg_backend_pid()")
BACKENDS = text("SELECT count(*) FROM pg_stat_activity WHERE application_name = :name")


@pytest.fixture
async def backends(database_url: str) -> AsyncIterator[Any]:
    """A function that counts the connections of the database, through a connection with another application name."""
    engine = create_async_engine(make_url(database_url))

    async def count() -> int:
        async with engine.connect() as connection:
            return int(await connection.scalar(BACKENDS, {"name": NAME}) or 0)

    yield count
    await engine.dispose()


async def pid(connection: AsyncConnection) -> int:
    return int(await connection.scalar(PID) or 0)


async def wait_for_count(backends: Any, expected: int) -> None:
    async with asyncio.timeout(10):
        while await backends() != expected:  # the server notices a closed connection with a delay
            await asyncio.sleep(0.005)


async def test_a_kept_connection_that_is_idle_is_closed(database_url: str, backends: Any) -> None:
    async with Database(database_url, application_name=NAME) as database:
        before = await database.read(pid)
        await database.engine.dispose()
        assert database.pool_status().idle == 0
        await wait_for_count(backends, 0)
        after = await database.read(pid)
        assert after != before
        assert await database.read(pid) == after
        assert database.pool_status().idle == 1


async def test_a_kept_connection_that_is_in_use_is_closed_after_its_use(database_url: str, backends: Any) -> None:
    async with Database(database_url, application_name=NAME) as database:
        await database.read(pid)

        async def read_and_dispose(connection: AsyncConnection) -> int:
            await database.engine.dispose()
            return await pid(connection)

        assert await database.read(read_and_dispose)
        assert database.pool_status().idle == 0
        await wait_for_count(backends, 0)


async def test_connections_in_use_and_kept_connections_count_towards_the_limit(
    database_url: str, backends: Any
) -> None:
    async with (
        Database(database_url, application_name=NAME, pool_size=10, max_overflow=0) as database,
        AsyncExitStack() as stack,
    ):

        async def hold() -> None:
            session = await stack.enter_async_context(database.session())
            await session.execute(PID)

        for _ in range(3):
            await hold()
        await database.engine.dispose()
        await asyncio.gather(*(database.read(pid) for _ in range(2)))
        assert database._kept.idle_count == 2
        for _ in range(6):  # with the two kept connections and the three of the old pool these would be eleven
            await hold()
        assert await backends() <= 10
        assert database._kept.idle_count == 1


async def test_a_waiting_task_uses_the_new_pool(database_url: str, backends: Any) -> None:
    async with Database(database_url, application_name=NAME, pool_size=1, max_overflow=0) as database:

        async def use() -> None:
            async with database.session() as session:
                await session.execute(PID)

        async with database.session() as session:
            await session.execute(PID)
            waiting = asyncio.create_task(use(), context=Context())
            await asyncio.sleep(0)
            await database.engine.dispose()
        await waiting
        assert database.pool_status().idle == 1
        await wait_for_count(backends, 1)


async def test_a_session_that_finds_the_new_pool_empty_gets_a_kept_connection(database_url: str) -> None:
    async with (
        Database(database_url, pool_size=5, max_overflow=0, pool_timeout=0.5) as database,
        AsyncExitStack() as stack,
    ):
        await database.engine.dispose()
        kept = await database.read(pid)
        sessions = [await stack.enter_async_context(database.session()) for _ in range(4)]
        assert kept not in [await session.scalar(PID) for session in sessions]
        with pytest.raises(PoolExhausted, match=r"all 4 connections \(1 more are reserved"):
            async with database.session() as session:
                await session.execute(PID)
        assert await database.read(pid) == kept


async def test_settings_types_and_timeouts_still_apply(database_url: str) -> None:
    async with Database(database_url, application_name=NAME, lock_timeout=0.1) as database:
        await database.engine.dispose()
        async with database.session() as session, database.session() as other:
            assert await session.scalar(text("SHOW application_name")) == NAME
            assert await session.scalar(text("SHOW transaction_isolation")) == "read committed"
            assert await session.scalar(text("SHOW TimeZone")) == "UTC"
            await session.execute(text("SELECT pg_advisory_xact_lock(1)"))
            with pytest.raises(LockTimeout):
                await other.execute(text("SELECT pg_advisory_xact_lock(1)"))
            await other.rollback()
            with pytest.raises(InvalidValue):
                await other.execute(insert(User), [{**user_rows(1)[0], "age": 1.5}])
            await other.rollback()
            assert await other.scalar(text("SELECT 'infinity'::date")) is not None


async def test_many_rows_are_copied(committed_database: Database) -> None:
    await committed_database.engine.dispose()
    async with committed_database.begin() as session:
        with assert_statements(session, 2) as sent:
            await bulk.insert_many(session, User, user_rows(50))
            assert await session.scalar(select(func.count()).select_from(User)) == 50
    assert sent[0].startswith("COPY users")


async def test_a_listener_of_the_application_still_stops_the_sharing_of_reads(real_database: Database) -> None:
    event.listen(real_database.engine.sync_engine, "checkout", lambda *_event: None)
    await real_database.engine.dispose()
    assert not real_database.shares_reads()
    await real_database.read(pid)
    assert real_database._kept.idle_count == 0


async def test_behind_a_pooler_a_checkout_listener_is_still_rejected(database_url: str) -> None:
    async with Database(database_url, pooler="transaction") as database:
        await database.engine.dispose()
        async with database.session() as session:
            assert await session.scalar(text("SHOW lock_timeout")) == "5s"
        event.listen(database.engine.sync_engine, "checkout", lambda *_event: None)
        async with database.session() as session:
            with pytest.raises(RuntimeError, match="listen to the engine's begin"):
                await session.execute(PID)


async def test_a_closed_database_stays_closed(database_url: str) -> None:
    async with Database(database_url) as database:
        await database.read(pid)
    await database.engine.dispose()
    with pytest.raises(RuntimeError, match="closed"):
        await database.read(pid)
    with pytest.raises(RuntimeError, match="closed"):
        async with database.engine.connect():
            pass


async def test_without_close_kept_connections_stay_open_for_another_process(database_url: str) -> None:
    async with Database(database_url) as database:
        before = await database.read(pid)
        (kept,) = database._kept._idle
        driver: Any = kept.sync.connection.driver_connection
        await database.engine.dispose(close=False)
        assert database.pool_status().idle == 0
        assert await database.read(pid) != before
        assert await driver.fetchval("SELECT 1") == 1
        await driver.close()


def test_the_pool_has_one_state_object() -> None:
    database = Database("postgresql://127.0.0.1/none")
    pool = database.engine.pool
    assert isinstance(pool, BoundedPool)
    new = pool.recreate()
    assert new.state is pool.state
    assert new.state.pool is new
