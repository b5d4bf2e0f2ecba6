"""A frozen backend (SIGSTOP) delays no task for longer than the limits."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from unittest import mock

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import ConnectionLost, Database, PoolStatus
from howdah._connections import driver
from howdah._connections.driver import BoundedConnection
from howdah_tests.support.waiting import until

PID = text("SELECT pg_backend_pid()")

# The limits of the test. The driver's own limit is much longer, so that a wait of this length would be noticed.
LIMIT = 0.2
DRIVER_LIMIT = 60.0
# Far above the limits, even on a busy machine, and far below the driver's own limit.
BOUND = 10.0

Freeze = Callable[[int], None]


@pytest.fixture
def freeze() -> Iterator[Freeze]:
    """Stops a backend until the end of the test."""
    stopped: list[int] = []

    def stop(pid: int) -> None:
        stopped.append(pid)
        os.kill(pid, signal.SIGSTOP)

    try:
        yield stop
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
async def limited(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    monkeypatch.setattr(driver, "_CLOSE_SECONDS", LIMIT)
    monkeypatch.setattr(driver, "_DISPOSE_SECONDS", 2 * LIMIT)
    async with Database(database_url, connect_timeout=LIMIT, statement_timeout=DRIVER_LIMIT) as database:
        yield database


async def backend(session: AsyncSession) -> int:
    pid: int | None = await session.scalar(PID)
    assert pid is not None
    return pid


async def test_a_rollback_ends_within_connect_timeout_and_the_error_of_the_caller_is_raised(
    limited: Database, freeze: Freeze
) -> None:
    async def fail() -> None:
        async with limited.begin() as session:
            freeze(await backend(session))
            raise LookupError("of the caller")

    async with asyncio.timeout(BOUND):
        with pytest.raises(LookupError, match="of the caller"):
            await fail()
        async with limited.session() as session:
            freeze(await backend(session))
    assert limited.pool_status() == PoolStatus(size=20, max_overflow=10, in_use=0, idle=0)
    await limited.ping()


async def test_a_cancelled_request_does_not_wait_for_its_rollback(limited: Database, freeze: Freeze) -> None:
    async def handle_request(*, waits_for_statement: bool) -> None:
        async with limited.session() as session:
            freeze(await backend(session))
            began.set()
            await (session.execute(PID) if waits_for_statement else asyncio.sleep(DRIVER_LIMIT))

    for waits_for_statement in (True, False):
        began = asyncio.Event()
        request = asyncio.create_task(handle_request(waits_for_statement=waits_for_statement))
        await began.wait()
        await asyncio.sleep(0)
        async with asyncio.timeout(BOUND):
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
    assert limited.pool_status().in_use == 0


async def test_idle_connections_are_replaced_within_connect_timeout(limited: Database, freeze: Freeze) -> None:
    async with limited.session() as first, limited.session() as second:
        pids = [await backend(session) for session in (first, second)]
    for pid in pids:
        freeze(pid)
    async with asyncio.timeout(BOUND):
        async with limited.session() as first, limited.session() as second:
            assert not {await backend(first), await backend(second)} & {*pids}


async def test_closing_the_database_takes_no_longer_for_many_connections(limited: Database, freeze: Freeze) -> None:
    sessions = [limited.session() for _ in range(8)]
    pids = [await backend(session) for session in sessions]
    for session in sessions:
        await session.close()
    freeze(await limited.read(lambda connection: connection.scalar(PID)))
    for pid in pids[2:]:
        freeze(pid)
    async with asyncio.timeout(BOUND):
        await limited.close()
    assert limited.pool_status().idle == 0


async def test_control_the_driver_alone_waits_for_command_timeout(limited: Database, freeze: Freeze) -> None:
    with mock.patch.multiple(BoundedConnection, execute=asyncpg.Connection.execute, close=asyncpg.Connection.close):
        session = limited.session()
        freeze(await backend(session))
        ending = asyncio.create_task(session.close())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(ending), 5 * LIMIT)
    ending.cancel()
    await asyncio.gather(ending, return_exceptions=True)


async def test_a_statement_is_limited_by_the_command_timeout_and_its_connection_is_closed(
    database_url: str, freeze: Freeze, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "_CLOSE_SECONDS", LIMIT)
    async with Database(database_url, statement_timeout=None, connect_args={"command_timeout": LIMIT}) as database:
        async with asyncio.timeout(BOUND), database.session() as session:
            freeze(await backend(session))
            with pytest.raises(ConnectionLost):
                await session.execute(PID)
        assert database.pool_status() == PoolStatus(size=20, max_overflow=10, in_use=0, idle=0)


class TestPoolStatus:
    async def test_counts_only_connections_that_are_open(self, database_url: str, real_database: Database) -> None:
        async with Database(database_url, pool_size=8, max_overflow=0) as database:
            assert database.pool_status() == PoolStatus(size=8, max_overflow=0, in_use=0, idle=0)
            async with database.session() as first, database.session() as second:
                pids = [await backend(session) for session in (first, second)]
                assert database.pool_status() == PoolStatus(size=8, max_overflow=0, in_use=2, idle=0)
                await second.close()
                assert database.pool_status() == PoolStatus(size=8, max_overflow=0, in_use=1, idle=1)
                await database.engine.dispose()  # the connection in use belongs to the replaced pool
                assert database.pool_status() == PoolStatus(size=8, max_overflow=0, in_use=1, idle=0)
            assert database.pool_status() == PoolStatus(size=8, max_overflow=0, in_use=0, idle=0)
            async with database.session() as session:
                pids = [await backend(session)]
            async with real_database.session() as session:
                await session.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pids[0]})

            async def nothing_is_idle() -> bool:
                return database.pool_status().idle == 0

            await until(nothing_is_idle)

    async def test_counts_the_tasks_that_wait(self, database_url: str) -> None:
        async with Database(database_url, pool_size=1, max_overflow=0) as database:
            async with database.session() as session:
                await backend(session)
                waiting = asyncio.create_task(database.ping())
                await until_counted(database, 1)
            await waiting
            assert database.pool_status() == PoolStatus(size=1, max_overflow=0, in_use=0, idle=1)

    async def test_does_not_count_a_connection_that_is_over_the_limit_of_the_pool(self, database_url: str) -> None:
        async with Database(database_url, pool_size=1, max_overflow=4) as database:
            async with database.session() as first, database.session() as second:
                await asyncio.gather(backend(first), backend(second))
                assert database.pool_status().in_use == 2
            assert database.pool_status() == PoolStatus(size=1, max_overflow=4, in_use=0, idle=1)


async def until_counted(database: Database, number: int) -> None:
    async def is_counted() -> bool:
        return database.pool_status().waiting == number

    await until(is_counted)
