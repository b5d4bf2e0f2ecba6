"""Short reads on kept connections."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from sqlalchemy import Integer, Numeric, bindparam, func, literal, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from howdah import (
    ConnectionLost,
    Database,
    DatabaseError,
    InvalidValue,
    PoolExhausted,
    PoolStatus,
    StatementTimeout,
)
from howdah._connections import kept
from howdah._connections.kept import KeptConnections
from howdah._connections.prepared import PreparedSelect
from howdah._connections.slots import Slot
from howdah.testing import assert_statements
from howdah_tests.support.faulty_proxy import run_proxy
from howdah_tests.support.sample_rows import new_user
from howdah_tests.support.waiting import kill, until, until_gone

PID = text("SELECT pg_backend_pid()")


async def pid(connection: AsyncConnection) -> int:
    found: int = (await connection.scalars(PID)).one()
    return found


async def test_a_connection_is_kept_and_counts_as_idle(real_database: Database) -> None:
    with assert_statements(real_database, 3):
        assert len({await real_database.read(pid) for _ in range(3)}) == 1
    assert real_database.pool_status() == PoolStatus(size=20, max_overflow=10, in_use=0, idle=1)
    assert len(set(await asyncio.gather(*(real_database.read(pid) for _ in range(10))))) > 1
    assert real_database.pool_status().in_use == 0
    assert real_database._kept.idle_count == 10


async def test_no_transaction_is_open_between_two_reads(real_database: Database) -> None:
    kept = await real_database.read(pid)
    async with real_database.session() as session:
        statement = text("SELECT state, xact_start FROM pg_stat_activity WHERE pid = :pid")
        assert tuple((await session.execute(statement, {"pid": kept})).one()) == ("idle", None)


async def test_a_pool_of_one_connection_keeps_none(database_url: str) -> None:
    async with Database(database_url, pool_size=1, max_overflow=0, pool_timeout=0.5) as database:
        await asyncio.gather(*(database.read(pid) for _ in range(8)))
        assert database._kept.idle_count == 0
        assert database.pool_status().idle == 1


async def test_a_session_that_finds_the_pool_empty_gets_a_kept_connection(database_url: str) -> None:
    async with Database(database_url, pool_size=5, max_overflow=0, pool_timeout=0.5) as database:
        kept = await database.read(pid)
        async with AsyncExitStack() as stack:
            sessions = [await stack.enter_async_context(database.session()) for _ in range(4)]
            pids = [(await session.scalars(PID)).one() for session in sessions]
            assert kept not in pids
            assert database.pool_status() == PoolStatus(size=5, max_overflow=0, in_use=4, idle=1)
            one_more = await stack.enter_async_context(database.session())
            with pytest.raises(PoolExhausted, match=r"all 4 connections \(1 more are reserved"):
                await one_more.execute(PID)
            assert await database.read(pid) == kept


async def test_reads_that_wait_for_a_connection_take_the_kept_ones(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the pool each read would need a ping. Sessions that wait get a connection, too."""
    connects: list[object] = []
    connect = KeptConnections._connect

    async def count(self: KeptConnections, slot: Slot) -> Any:
        connects.append(slot)
        return await connect(self, slot)

    monkeypatch.setattr(KeptConnections, "_connect", count)

    async def read(database: Database) -> None:
        for _ in range(10):
            await database.read(pid)

    async def use_session(database: Database) -> None:
        async with database.session() as session:
            await session.execute(PID)

    async with Database(database_url, pool_size=6, max_overflow=0) as database:
        await asyncio.gather(*(read(database) for _ in range(40)))
        assert len(connects) <= 6
        await asyncio.gather(*(read(database) for _ in range(40)), *(use_session(database) for _ in range(20)))
        assert len(connects) <= 6 + 20 * 2
        assert database.pool_status() == PoolStatus(size=6, max_overflow=0, in_use=0, idle=6)


async def test_a_read_leaves_no_transaction_for_the_next_one(real_database: Database) -> None:
    async def begin(connection: AsyncConnection) -> int:
        async with connection.begin():  # SQLAlchemy raises if a transaction has started already
            return await pid(connection)

    assert await real_database.read(pid) == await real_database.read(begin)


async def test_a_lost_connection_is_replaced(real_database: Database) -> None:
    calls = 0

    async def counted(connection: AsyncConnection) -> int:
        nonlocal calls
        calls += 1
        return await pid(connection)

    first = await real_database.read(counted)
    await kill(real_database, first)
    assert await real_database.read(counted) != first
    assert calls in (2, 3)  # the loss was noticed before the use, or by it
    assert real_database.pool_status().in_use == 0


async def test_a_connection_that_is_known_to_be_lost_is_not_acquired(real_database: Database) -> None:
    async with real_database.autocommit() as connection:
        first = await pid(connection)
    async with real_database.autocommit() as connection:
        assert await pid(connection) == first
        driver = (await connection.get_raw_connection()).driver_connection
    assert driver is not None
    driver.terminate()
    async with real_database.autocommit() as connection:
        assert await pid(connection) != first


async def test_an_autocommit_block_is_not_repeated_after_a_lost_connection(real_database: Database) -> None:
    """The lost statement may have been a write."""
    with pytest.raises(ConnectionLost):
        async with real_database.autocommit() as connection:
            await connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert real_database.pool_status().in_use == 0
    async with real_database.autocommit() as connection:
        await pid(connection)


async def test_a_read_that_loses_every_connection_raises_connection_lost(real_database: Database) -> None:
    await real_database.read(pid)
    calls = 0

    async def terminate_itself(connection: AsyncConnection) -> None:
        nonlocal calls
        calls += 1
        await connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(ConnectionLost):
        await real_database.read(terminate_itself)
    assert calls == 2
    assert real_database.pool_status().in_use == 0


async def test_all_kept_connections_are_replaced_after_the_server_was_down(database_url: str) -> None:
    async with run_proxy(database_url) as proxy, Database(proxy.url) as database:
        before = set(await asyncio.gather(*(database.read(pid) for _ in range(4))))
        await proxy.down()
        await proxy.up()
        after = set(await asyncio.gather(*(database.read(pid) for _ in range(4))))
        assert not before & after


async def test_a_connection_that_was_idle_for_long_is_checked_before_its_use(
    real_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_MAX_IDLE_SECONDS", 0.0)
    first = await real_database.read(pid)
    await kill(real_database, first)
    calls = 0

    async def counted(connection: AsyncConnection) -> int:
        nonlocal calls
        calls += 1
        return await pid(connection)

    assert await real_database.read(counted) != first
    assert calls == 1


async def test_a_connection_that_is_too_old_is_replaced(database_url: str, real_database: Database) -> None:
    async with Database(database_url, pool_recycle=0) as database:
        first = await database.read(pid)
        assert await database.read(pid) != first
        await until_gone(real_database, first)


async def test_a_connection_with_an_error_is_released_and_the_next_read_gets_another_one(
    real_database: Database,
) -> None:
    for _ in range(3):
        with pytest.raises(DatabaseError):
            await real_database.read(lambda connection: connection.execute(text("SELECT 1/0")))
        assert real_database._kept.idle_count == 0
        assert real_database.pool_status() == PoolStatus(size=20, max_overflow=10, in_use=0, idle=1)
    await real_database.read(pid)


async def test_a_cancelled_read_releases_its_connection(real_database: Database) -> None:
    await real_database.read(pid)
    sleeping_read = asyncio.create_task(
        real_database.read(lambda connection: connection.execute(text("SELECT pg_sleep(60)")))
    )

    async def sleeps() -> bool:
        async with real_database.session() as session:
            statement = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
            return bool(await session.scalar(statement))

    await until(sleeps)
    sleeping_read.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleeping_read
    assert real_database.pool_status().in_use == 0
    await real_database.read(pid)


async def test_closing_the_database_closes_the_kept_connections(database_url: str, real_database: Database) -> None:
    async with Database(database_url) as database:
        kept = await database.read(pid)
    await until_gone(real_database, kept)
    with pytest.raises(RuntimeError, match="closed: create a new one"):
        await database.read(pid)


async def test_a_connection_in_use_is_closed_after_its_use(database_url: str, real_database: Database) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow(connection: AsyncConnection) -> int:
        found = await pid(connection)
        started.set()
        await go_on.wait()
        return found

    async with Database(database_url) as database:
        running = asyncio.create_task(database.read(slow))
        await started.wait()
    go_on.set()
    await until_gone(real_database, await running)


async def test_within_the_transaction_of_a_test_reads_see_its_writes(session: AsyncSession, database: Database) -> None:
    session.add(new_user())
    await session.commit()
    names = await database.read(lambda connection: connection.scalars(text("SELECT name FROM users")))
    assert names.all() == ["Ada"]


class TestPreparedSelect:
    """A prepared SELECT is executed through the driver, with the same results and errors as through SQLAlchemy."""

    SUM = PreparedSelect(select(literal(1) + bindparam("n", type_=Integer), func.pg_backend_pid()))

    async def answer(
        self, database: Database, prepared: PreparedSelect = SUM, **parameters: object
    ) -> list[tuple[object, ...]]:
        rows = await database.read(lambda connection: prepared.rows(connection, parameters))
        return [tuple(row) for row in rows]

    async def test_the_statement_is_prepared_once(self, real_database: Database) -> None:
        for n in range(5):
            assert (await self.answer(real_database, n=n))[0][0] == n + 1
        listed = select(text("statement, generic_plans + custom_plans")).select_from(text("pg_prepared_statements"))
        rows = await self.answer(real_database, PreparedSelect(listed))
        assert [plans for statement, plans in rows if "pg_backend_pid" in str(statement)] == [5]

    async def test_listeners_see_the_statement(self, real_database: Database) -> None:
        with assert_statements(real_database, 2):
            await self.answer(real_database, n=1)
            await self.answer(real_database, n=1)

    async def test_the_log_contains_the_statement(self, database_url: str, caplog: pytest.LogCaptureFixture) -> None:
        async with Database(database_url, echo=True) as database:
            await self.answer(database, n=1)
        assert any("pg_backend_pid" in record.message for record in caplog.records)

    async def test_lists_and_decimals_are_converted_as_by_sqlalchemy(self, real_database: Database) -> None:
        listed = PreparedSelect(select(bindparam("n", type_=Integer)).where(literal(2).in_([1, 2, 3])))
        assert await self.answer(real_database, listed, n=7) == [(7,)]
        floats = PreparedSelect(select(bindparam("n", type_=Numeric(asdecimal=False))))
        [(found,)] = await self.answer(real_database, floats, n=1.5)
        assert (type(found), found) == (float, 1.5)

    @pytest.mark.parametrize("prepared", [SUM, PreparedSelect(select(bindparam("n", type_=Integer)))])
    async def test_a_value_of_the_wrong_type_is_rejected(
        self, real_database: Database, prepared: PreparedSelect
    ) -> None:
        with pytest.raises(InvalidValue):
            await self.answer(real_database, prepared, n="x")
        assert real_database.pool_status().in_use == 0

    async def test_an_error_is_raised_as_an_error_of_the_library(self, database_url: str) -> None:
        async with Database(database_url, statement_timeout=0.05) as database:
            with pytest.raises(StatementTimeout):
                await self.answer(database, PreparedSelect(select(func.pg_sleep(60))))
        async with Database(database_url) as database:
            terminate_itself = PreparedSelect(select(func.pg_terminate_backend(func.pg_backend_pid())))
            with pytest.raises(ConnectionLost) as caught:
                await self.answer(database, terminate_itself)
            assert caught.value.connection_invalidated
            assert database.pool_status().in_use == 0
            assert (await self.answer(database, n=1))[0][0] == 2

    async def test_a_lost_connection_is_replaced(self, real_database: Database) -> None:
        [(_, first)] = await self.answer(real_database, n=1)
        await kill(real_database, int(str(first)))
        [(_, second)] = await self.answer(real_database, n=1)
        assert first != second

    async def test_a_cancelled_read_releases_its_connection(self, real_database: Database) -> None:
        sleeping_read = asyncio.create_task(self.answer(real_database, PreparedSelect(select(func.pg_sleep(60)))))
        sleeping = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")

        async def sleeps() -> bool:
            async with real_database.session() as session:
                return bool(await session.scalar(sleeping))

        await until(sleeps)
        sleeping_read.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleeping_read
        assert real_database.pool_status().in_use == 0
        assert (await self.answer(real_database, n=1))[0][0] == 2

    async def test_in_a_transaction_the_statement_belongs_to_it(
        self, session: AsyncSession, database: Database
    ) -> None:
        session.add(new_user())
        await session.commit()
        count = PreparedSelect(select(func.count()).select_from(text("users")))
        assert await self.answer(database, count) == [(1,)]
