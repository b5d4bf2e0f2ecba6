"""Errors of connections: lost, rejected, or not available."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import exc, make_url, text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, bulk, errors
from howdah_tests.support.pickling import pickle_roundtrip
from howdah_tests.support.sample_models import User
from howdah_tests.support.sample_rows import user_rows
from howdah_tests.support.waiting import kill, until_gone, until_waiting


async def test_reports_a_backend_that_was_killed(real_database: Database) -> None:
    lock = text("SELECT pg_advisory_xact_lock(1)")
    async with real_database.session() as holder, real_database.session() as session:
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        await holder.execute(lock)
        waiting = asyncio.create_task(session.execute(lock))
        await until_waiting(real_database)
        await kill(real_database, pid)
        with pytest.raises(errors.ConnectionLost) as caught:
            await waiting
    error = caught.value
    assert isinstance(error, errors.Unavailable)
    assert isinstance(error, exc.OperationalError)
    assert error.connection_invalidated
    assert isinstance(pickle_roundtrip(error), errors.ConnectionLost)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda session: session.execute(text("SELECT 1")),
        lambda session: session.commit(),
        lambda session: bulk.insert_many(session, User, user_rows(30)),
    ],
    ids=["execute", "commit", "bulk"],
)
async def test_reports_the_timeout_of_a_transaction_that_was_idle(
    database_url: str, real_database: Database, attempt: Callable[[AsyncSession], Awaitable[object]]
) -> None:
    async with Database(database_url, idle_in_transaction_timeout=0.1) as database, database.session() as session:
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        await until_gone(real_database, pid)
        with pytest.raises(errors.ConnectionLost, match="idle_in_transaction_timeout") as caught:
            await attempt(session)
        assert "idle_in_transaction_timeout" in str(pickle_roundtrip(caught.value))
        await session.rollback()
        assert await session.scalar(text("SELECT 1")) == 1


async def test_reports_the_timeout_before_the_driver_has_noticed_it(database_url: str) -> None:
    """The event loop of this thread runs nothing until the backend is gone."""

    def wait(pid: int) -> None:
        async def watch() -> None:
            async with Database(database_url) as watching:
                await until_gone(watching, pid)

        asyncio.run(watch())

    async with Database(database_url, idle_in_transaction_timeout=0.1) as database, database.session() as session:
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        thread = threading.Thread(target=wait, args=(pid,))
        thread.start()
        thread.join()
        with pytest.raises(errors.ConnectionLost, match="idle_in_transaction_timeout"):
            await session.execute(text("SELECT 1"))


async def test_reports_the_timeout_of_a_transaction_that_took_too_long(real_database: Database) -> None:
    async with real_database.session() as session:
        if await session.scalar(text("SELECT CAST(current_setting('server_version_num') AS int) < 170000")):
            pytest.skip("transaction_timeout is new in PostgreSQL 17")
        await session.execute(text("SET LOCAL transaction_timeout = '20ms'"))
        with pytest.raises(errors.ConnectionLost, match="setting transaction_timeout") as caught:
            await session.execute(text("SELECT pg_sleep(9)"))
        assert caught.value.sqlstate == "25P04"


async def test_reports_the_timeout_of_a_connection_that_was_idle(real_database: Database) -> None:
    async with real_database.session() as session:
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        await session.execute(text("SET idle_session_timeout = '20ms'"))
        connection = await session.connection()
        raw = await connection.get_raw_connection()
        driver: Any = raw.driver_connection
        await driver.execute("COMMIT")  # SQLAlchemy doesn't know of this commit
        await until_gone(real_database, pid)
        with pytest.raises(errors.ConnectionLost, match="idle_session_timeout"):
            await session.execute(text("SELECT 1"))


async def test_reports_no_timeout_if_none_is_known(real_database: Database) -> None:
    lock = text("SELECT pg_advisory_xact_lock(1)")
    async with real_database.session() as holder, real_database.session() as session:
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        await holder.execute(lock)
        waiting = asyncio.create_task(session.execute(lock))
        await until_waiting(real_database)
        await kill(real_database, pid)
        with pytest.raises(errors.ConnectionLost) as caught:
            await waiting
    assert caught.value.sqlstate == "57P01"
    assert "timeout" not in str(caught.value)


async def test_gives_up_on_a_statement_that_the_server_never_ends(database_url: str) -> None:
    async with (
        Database(database_url, statement_timeout=None, connect_args={"command_timeout": 0.05}) as database,
        database.session() as session,
    ):
        with pytest.raises(errors.ConnectionLost) as caught:
            await session.execute(text("SELECT pg_sleep(9)"))
        assert isinstance(caught.value.__cause__, TimeoutError)
        await session.rollback()
        assert await session.scalar(text("SELECT 1")) == 1


@pytest.fixture
async def limited_url(real_database: Database) -> AsyncIterator[str]:
    """The URL of a role with a connection limit of 0."""
    async with real_database.begin() as session:
        await session.execute(text("CREATE ROLE howdah_limited LOGIN CONNECTION LIMIT 0"))
    yield real_database.engine.url.set(username="howdah_limited").render_as_string(hide_password=False)
    async with real_database.begin() as session:
        await session.execute(text("DROP ROLE howdah_limited"))


async def connection_error(url: str) -> errors.ConnectionFailed:
    async with Database(url) as database:
        for attempt in (database.ping, database.session().connection):
            with pytest.raises(errors.ConnectionFailed) as caught:
                await attempt()
            error = caught.value
            assert isinstance(error, errors.Unavailable)
            assert isinstance(error, exc.OperationalError)
            assert error.__cause__ is error.orig
            assert type(pickle_roundtrip(error)) is errors.ConnectionFailed
        assert database.pool_status().in_use == 0
    return error


async def test_reports_a_server_that_does_not_exist(database_url: str) -> None:
    assert isinstance((await connection_error("postgresql://?host=/nowhere")).orig, OSError)
    assert isinstance((await connection_error("postgresql://127.0.0.1:1/nowhere")).orig, OSError)
    assert isinstance((await connection_error("postgresql://nowhere.invalid/nowhere")).orig, OSError)


async def test_reports_a_database_that_does_not_exist(database_url: str) -> None:
    nowhere = make_url(database_url).set(database="nowhere").render_as_string(hide_password=False)
    assert (await connection_error(nowhere)).sqlstate == "3D000"


async def test_reports_a_rejected_login(database_url: str) -> None:
    nobody = make_url(database_url).set(username="nobody").render_as_string(hide_password=False)
    assert (await connection_error(nobody)).sqlstate in {"28000", "28P01"}


async def test_reports_a_server_that_accepts_no_more_clients(limited_url: str) -> None:
    assert (await connection_error(limited_url)).sqlstate == "53300"


async def test_reports_a_pool_without_a_free_connection(database_url: str) -> None:
    async with Database(database_url, pool_size=1, max_overflow=0, pool_timeout=0.05) as database:
        async with database.session() as holder:
            await holder.execute(text("SELECT 1"))
            with pytest.raises(errors.PoolExhausted, match="all 1 connections") as caught:
                await database.session().execute(text("SELECT 1"))
        assert isinstance(caught.value, exc.TimeoutError)
        assert isinstance(caught.value, errors.Unavailable)
        assert isinstance(caught.value.__cause__, TimeoutError)
        assert str(pickle_roundtrip(caught.value)) == str(caught.value)


async def test_a_cancelled_task_stays_cancelled(real_database: Database) -> None:
    lock = text("SELECT pg_advisory_xact_lock(1)")
    async with real_database.session() as holder, real_database.session() as session:
        await holder.execute(lock)
        waiting = asyncio.create_task(session.execute(lock))
        await until_waiting(real_database)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
