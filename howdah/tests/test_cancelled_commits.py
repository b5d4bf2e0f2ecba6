"""A task that is cancelled during its COMMIT: the COMMIT is finished, so its result is known."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database
from howdah._connections import driver
from howdah_tests.support.waiting import until_waiting

LOCK = 727_001
SET_UP = (
    "CREATE TABLE slow_commits (id int)",
    "CREATE FUNCTION wait_at_commit() RETURNS trigger LANGUAGE plpgsql AS "
    f"$$ BEGIN PERFORM pg_advisory_xact_lock({LOCK}); PERFORM 1 / NEW.id; RETURN NULL; END $$",
    "CREATE CONSTRAINT TRIGGER wait_at_commit AFTER INSERT ON slow_commits "
    "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait_at_commit()",
)
TEAR_DOWN = ("DROP TABLE slow_commits", "DROP FUNCTION wait_at_commit")

PID = text("SELECT pg_backend_pid()")


async def execute(database: Database, statements: tuple[str, ...]) -> None:
    async with database.begin() as session:
        for statement in statements:
            await session.execute(text(statement))


@pytest.fixture
async def monitor(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url, pool_size=2) as database:
        await execute(database, SET_UP)
        try:
            yield database
        finally:
            await execute(database, TEAR_DOWN)


@pytest.fixture
async def writing(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url, pool_size=1, max_overflow=0, connect_timeout=0.3) as database:
        yield database


@asynccontextmanager
async def commits_held(monitor: Database) -> AsyncIterator[AsyncSession]:
    """In this block, COMMIT waits in PostgreSQL."""
    async with monitor.begin() as session:
        await session.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
        yield session


async def insert(database: Database, number: int = 1) -> None:
    async with database.begin() as session:
        await session.execute(text("INSERT INTO slow_commits VALUES (:number)"), {"number": number})


async def find_pid(database: Database) -> int:
    async with database.session() as session:
        return int((await session.execute(PID)).scalar_one())


async def count(monitor: Database) -> int:
    async with monitor.session() as session:
        return int((await session.execute(text("SELECT count(*) FROM slow_commits"))).scalar_one())


async def test_the_commit_is_finished_and_then_the_task_is_cancelled(monitor: Database, writing: Database) -> None:
    pid = await find_pid(writing)
    async with commits_held(monitor):
        task = asyncio.create_task(insert(writing))
        await until_waiting(monitor)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await count(monitor) == 1
    assert await find_pid(writing) == pid  # the connection is still usable


async def test_the_control_loses_the_result_and_the_connection(
    monitor: Database, writing: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "_COMMIT", "")
    pid = await find_pid(writing)
    async with commits_held(monitor):
        task = asyncio.create_task(insert(writing))
        await until_waiting(monitor)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await find_pid(writing) != pid


async def test_code_after_the_commit_is_not_run(monitor: Database, writing: Database) -> None:
    is_reached = False

    async def work() -> None:
        nonlocal is_reached
        await insert(writing)
        is_reached = True

    async with commits_held(monitor):
        task = asyncio.create_task(work())
        await until_waiting(monitor)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not is_reached


async def test_a_timeout_is_still_a_timeout(monitor: Database, writing: Database) -> None:
    async def work(limit: asyncio.Timeout) -> None:
        async with limit:
            await insert(writing)

    timeout = asyncio.timeout(None)
    async with commits_held(monitor):
        task = asyncio.create_task(work(timeout))
        await until_waiting(monitor)
        timeout.reschedule(0)
    with pytest.raises(TimeoutError):
        await task
    assert not task.cancelling()
    assert await count(monitor) == 1


async def test_a_commit_that_fails_is_the_cause_of_the_cancellation(monitor: Database, writing: Database) -> None:
    async with commits_held(monitor):
        task = asyncio.create_task(insert(writing, 0))
        await until_waiting(monitor)
        task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert "division by zero" in repr(caught.value.__cause__)
    assert await count(monitor) == 0


async def test_a_frozen_backend_does_not_hold_the_task(monitor: Database, writing: Database) -> None:
    pid = await find_pid(writing)
    async with commits_held(monitor):
        task = asyncio.create_task(insert(writing))
        await until_waiting(monitor)
        os.kill(pid, signal.SIGSTOP)
        try:
            task.cancel()
            async with asyncio.timeout(10):
                with pytest.raises(asyncio.CancelledError):
                    await task
        finally:
            os.kill(pid, signal.SIGCONT)
        assert await find_pid(writing) != pid
