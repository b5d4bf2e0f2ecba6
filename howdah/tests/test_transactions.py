"""Nested transactions, savepoints, and advisory locks."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import (
    Database,
    DatabaseError,
    InvalidValue,
    LockTimeout,
    NestedTransaction,
    UniqueViolation,
    advisory_lock,
    run_transaction,
    savepoint,
    transactions,
    try_advisory_lock,
)
from howdah_tests.support.sample_models import User
from howdah_tests.support.waiting import until_waiting


async def select_one(session: AsyncSession) -> None:
    await session.execute(text("SELECT 1"))


class TestNesting:
    async def test_is_rejected_in_the_work_of_another_call(self, real_database: Database) -> None:
        async def work(session: AsyncSession) -> None:
            await select_one(session)
            await run_transaction(real_database, select_one)

        with pytest.raises(NestedTransaction, match="pass that work's session") as caught:
            await run_transaction(real_database, work)
        assert isinstance(caught.value, InvalidRequestError)

    async def test_is_rejected_in_work_that_has_sent_nothing_yet(self, real_database: Database) -> None:
        async def work(session: AsyncSession) -> None:
            await run_transaction(real_database, select_one)

        with pytest.raises(NestedTransaction):
            await run_transaction(real_database, work)

    async def test_is_rejected_in_a_task_that_the_work_started_and_awaits(self, real_database: Database) -> None:
        async def work(session: AsyncSession) -> None:
            await asyncio.create_task(run_transaction(real_database, select_one))

        with pytest.raises(NestedTransaction):
            await run_transaction(real_database, work)

    async def test_is_allowed_in_a_task_that_outlives_the_work(self, real_database: Database) -> None:
        committed = asyncio.Event()

        async def later() -> None:
            await committed.wait()
            await run_transaction(real_database, select_one)

        async def work(session: AsyncSession) -> asyncio.Task[None]:
            return asyncio.create_task(later())

        task = await run_transaction(real_database, work)
        committed.set()
        await task

    async def test_is_not_detected_after_a_call_that_failed(self, real_database: Database) -> None:
        async def work(session: AsyncSession) -> None:
            await session.execute(text("SELECT 1/0"))

        for _ in range(2):
            with pytest.raises(InvalidValue):
                await run_transaction(real_database, work)


class TestWithAnOpenSession:
    async def test_a_transaction_commits_independently(self, committed_database: Database) -> None:
        async def work(session: AsyncSession) -> None:
            session.add(User(email="b", name="b"))

        async with committed_database.session() as outer:
            outer.add(User(email="a", name="a"))
            await outer.flush()
            await run_transaction(committed_database, work)
        async with committed_database.session() as session:
            assert list(await session.scalars(select(User.email))) == ["b"]

    async def test_the_wait_for_a_row_of_the_open_session_ends_with_the_lock_timeout(self, committed_url: str) -> None:
        async with Database(committed_url, lock_timeout=0.05) as database:
            async with database.begin() as session:
                session.add(User(email="a", name="a"))

            async def work(session: AsyncSession) -> None:
                await session.execute(update(User).values(name="b"))

            async with database.session() as outer:
                await outer.execute(update(User).values(name="c"))
                with pytest.raises(LockTimeout):
                    await run_transaction(database, work)


class TestSavepoint:
    async def test_undoes_only_the_writes_inside_of_it(self, session: AsyncSession) -> None:
        session.add(first := User(email="a", name="a"))
        with pytest.raises(UniqueViolation):  # noqa: PT012
            async with savepoint(session):
                session.add(User(email="b", name="b"))
                await session.flush()
                session.add(User(email="a", name="a"))
        assert await session.scalar(select(func.count()).select_from(User)) == 1
        async with savepoint(session):
            session.add(User(email="c", name="c"))
        assert await session.scalar(select(func.count()).select_from(User)) == 2
        assert first.name == "a"

    async def test_can_be_nested(self, session: AsyncSession) -> None:
        async with savepoint(session):
            session.add(User(email="a", name="a"))
            with pytest.raises(InvalidValue):
                async with savepoint(session):
                    await session.execute(text("SELECT 1/0"))
        assert await session.scalar(select(func.count()).select_from(User)) == 1

    async def test_undoes_the_writes_of_a_cancelled_task(self, session: AsyncSession) -> None:
        written = asyncio.Event()

        async def write_and_wait() -> None:
            async with savepoint(session):
                session.add(User(email="a", name="a"))
                await session.flush()
                written.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(write_and_wait())
        await written.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await session.scalar(select(func.count()).select_from(User)) == 0

    @pytest.mark.parametrize("name", ["Ada", "a name that is too long"])
    async def test_does_not_hide_an_error_that_was_suppressed_inside(self, name: str, session: AsyncSession) -> None:
        async def catch() -> None:
            async with savepoint(session):
                session.add(User(email="a", name="a"))
                await session.flush()
                with pytest.raises(DatabaseError):  # noqa: PT012
                    session.add(User(email="b", name=name))
                    await session.flush()
                    await session.execute(text("SELECT 1/0"))

        with pytest.raises(InvalidValue if name == "Ada" else InvalidRequestError):
            await catch()
        assert await session.scalar(select(func.count()).select_from(User)) == 0


class TestAdvisoryLock:
    async def test_admits_one_transaction_at_a_time(self, real_database: Database) -> None:
        assert await self.max_concurrent(real_database, is_locked=True) == 1

    async def test_control_without_a_lock_all_transactions_run_at_once(self, real_database: Database) -> None:
        assert await self.max_concurrent(real_database, is_locked=False) == 8

    async def max_concurrent(self, database: Database, *, is_locked: bool) -> int:
        inside = maximum = 0
        all_started = asyncio.Barrier(8)

        async def client() -> None:
            nonlocal inside, maximum
            async with database.begin() as session:
                await select_one(session)
                await all_started.wait()
                if is_locked:
                    await advisory_lock(session, "import", 2026)
                inside += 1
                maximum = max(maximum, inside)
                await session.execute(text("SELECT pg_sleep(0.005)"))
                inside -= 1

        await asyncio.gather(*(client() for _ in range(8)))
        return maximum

    async def test_is_released_at_the_end_of_the_transaction(self, real_database: Database) -> None:
        async with real_database.session() as holder, real_database.session() as session:
            await advisory_lock(holder, "import")
            assert not await try_advisory_lock(session, "import")
            assert await try_advisory_lock(session, "export")
            await holder.rollback()
            assert await try_advisory_lock(session, "import")

    async def test_can_be_taken_twice_by_its_holder(self, real_database: Database) -> None:
        async with real_database.session() as session:
            await advisory_lock(session, "import")
            await advisory_lock(session, "import")
            assert await try_advisory_lock(session, "import")

    async def test_waits_for_the_holder(self, real_database: Database) -> None:
        async with real_database.session() as holder, real_database.session() as session:
            await advisory_lock(holder, "import")
            waiting = asyncio.create_task(advisory_lock(session, "import"))
            await until_waiting(real_database)
            assert not waiting.done()
            await holder.commit()
            await waiting

    async def test_ends_with_the_lock_timeout_of_the_session(self, real_database: Database) -> None:
        async with real_database.session() as holder, real_database.session() as session:
            await advisory_lock(holder, "import")
            await session.execute(text("SET LOCAL lock_timeout = '20ms'"))
            with pytest.raises(LockTimeout):
                await advisory_lock(session, "import")

    def test_has_the_same_key_in_every_process(self) -> None:
        program = "from howdah.transactions import _lock_key; print(_lock_key(('import', 2026)))"
        keys = {
            int(subprocess.check_output([sys.executable, "-c", program], env=os.environ | seed))
            for seed in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2"})
        }
        assert keys == {transactions._lock_key(("import", 2026))}

    def test_has_a_distinct_key_of_64_bits_for_every_name(self) -> None:
        keys = [transactions._lock_key(("account", n)) for n in range(10_000)]
        assert len(set(keys)) == len(keys)
        assert all(-(2**63) <= key < 2**63 for key in keys)
        assert transactions._lock_key(("a", "bc")) != transactions._lock_key(("ab", "c"))
