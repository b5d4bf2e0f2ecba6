from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from contextvars import copy_context
from typing import Any

import pytest
from sample import Counter, User
from server import until_waiting
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import InvalidRequestError, PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import (
    Database,
    DatabaseError,
    InvalidValue,
    LockTimeout,
    NestedTransaction,
    SerializationFailure,
    UniqueViolation,
    advisory_lock,
    lock,
    run_transaction,
    savepoint,
    transactions,
    try_advisory_lock,
)


@pytest.fixture
async def real_database(database_url: str) -> AsyncIterator[Database]:
    """With a real pool, for tests that commit nothing."""
    async with Database(database_url) as database:
        yield database


@pytest.fixture
async def counters(committed_database: Database) -> Database:
    """A database with the committed counters 1 and 2, both 0."""
    async with committed_database.begin() as session:
        session.add_all([Counter(id=1), Counter(id=2)])
    return committed_database


async def values(database: Database) -> list[int]:
    async with database.session() as session:
        return list(await session.scalars(select(Counter.value).order_by(Counter.id)))


async def change(database: Database, value: int) -> None:
    """Somebody else's transaction, committed."""
    async with database.begin() as session:
        await session.execute(update(Counter).values(value=value))


def losing(times: int, database: Database, seen: list[AsyncSession]) -> Any:
    """Work that loses the race for the counters so many times, as two sessions do."""

    async def work(session: AsyncSession) -> int:
        seen.append(session)
        counter = (await session.scalars(select(Counter).where(Counter.id == 1))).one()
        if len(seen) <= times:
            await change(database, 100 * len(seen))
        counter.value += 1
        await session.flush()
        return int(counter.value)

    return work


class TestRunTransaction:
    async def test_commits_and_returns_what_the_work_returned(self, counters: Database) -> None:
        seen: list[AsyncSession] = []
        assert await run_transaction(counters, losing(0, counters, seen)) == 1
        assert await values(counters) == [1, 0]
        with pytest.raises(InvalidRequestError, match="permanently closed"):
            await seen[0].execute(text("SELECT 1"))

    async def test_runs_the_whole_work_again_in_a_fresh_session_when_it_lost_a_race(self, counters: Database) -> None:
        seen: list[AsyncSession] = []
        work = losing(2, counters, seen)
        assert await run_transaction(counters, work, isolation_level="REPEATABLE READ") == 201
        assert await values(counters) == [201, 200]
        assert len({id(session) for session in seen}) == 3
        assert counters.pool_status().in_use == 0

    async def test_without_it_the_race_is_lost(self, counters: Database) -> None:
        with pytest.raises(SerializationFailure):
            async with counters.begin(isolation_level="REPEATABLE READ") as session:
                await losing(1, counters, [])(session)

    async def test_runs_again_when_the_commit_is_what_failed(self, counters: Database) -> None:
        """Write skew: each of two reads what the other writes, and only the second commit can tell."""
        runs = 0

        async def work(session: AsyncSession) -> None:
            nonlocal runs
            runs += 1
            total = await session.scalar(select(func.sum(Counter.value)))
            if runs == 1:
                async with counters.begin(isolation_level="SERIALIZABLE") as other:
                    await other.scalar(select(func.sum(Counter.value)))
                    await other.execute(update(Counter).where(Counter.id == 2).values(value=5))
                    await session.execute(update(Counter).where(Counter.id == 1).values(value=total))
                return
            await session.execute(update(Counter).where(Counter.id == 1).values(value=total))

        await run_transaction(counters, work, isolation_level="SERIALIZABLE")
        assert runs == 2
        assert await values(counters) == [5, 5]

    async def test_runs_the_victim_of_a_deadlock_again(self, counters: Database) -> None:
        reached = asyncio.Barrier(2)
        runs = 0

        def work(first: int, second: int) -> Any:
            async def locks_in_argument_order(session: AsyncSession) -> None:
                nonlocal runs
                runs += 1
                await session.execute(text("SET LOCAL deadlock_timeout = '10ms'"))
                for key in (first, second):
                    (await lock(session, Counter, [key]))[key].value += 1
                    await session.flush()
                    if runs <= 2:
                        with suppress(asyncio.BrokenBarrierError):
                            await reached.wait()
                    await reached.abort()

            return locks_in_argument_order

        await asyncio.gather(run_transaction(counters, work(1, 2)), run_transaction(counters, work(2, 1)))
        assert runs == 3
        assert await values(counters) == [2, 2]

    async def test_gives_up_after_so_many_attempts_with_the_last_error(self, counters: Database) -> None:
        seen: list[AsyncSession] = []
        with pytest.raises(SerializationFailure):
            await run_transaction(counters, losing(99, counters, seen), attempts=3, isolation_level="REPEATABLE READ")
        assert len(seen) == 3
        assert await values(counters) == [300, 300]

    async def test_begins_no_attempt_after_the_timeout(self, counters: Database) -> None:
        seen: list[AsyncSession] = []
        started = time.monotonic()
        with pytest.raises(SerializationFailure):
            await run_transaction(
                counters,
                losing(10**6, counters, seen),
                attempts=10**6,
                timeout=0.3,
                isolation_level="REPEATABLE READ",
            )
        assert len(seen) >= 2
        assert time.monotonic() - started < 2

    async def test_raises_any_other_error_at_once_and_rolls_back(self, counters: Database) -> None:
        runs = 0

        def work(error: type[BaseException], statement: str) -> Any:
            async def fail(session: AsyncSession) -> None:
                nonlocal runs
                runs += 1
                await session.execute(update(Counter).values(value=9))
                await session.execute(text(statement))
                raise error

            return fail

        for n, (error, statement) in enumerate(
            [
                (LookupError, "SELECT 1"),
                (UniqueViolation, "INSERT INTO counters VALUES (1, 1)"),
                (InvalidValue, "SELECT 1/0"),
                (asyncio.CancelledError, "SELECT 1"),
            ],
            start=1,
        ):
            with pytest.raises(error):
                await run_transaction(counters, work(error, statement))
            assert runs == n
        assert await values(counters) == [0, 0]

    async def test_runs_again_even_if_the_work_swallowed_the_conflict(self, counters: Database) -> None:
        runs = 0

        async def work(session: AsyncSession) -> None:
            nonlocal runs
            runs += 1
            await session.scalar(select(Counter.value))
            if runs == 1:
                await change(counters, 100)
            with suppress(SerializationFailure):
                await session.execute(update(Counter).values(value=Counter.value + 1))

        await run_transaction(counters, work, isolation_level="REPEATABLE READ")
        assert runs == 2
        assert await values(counters) == [101, 101]

    async def test_does_not_hide_a_flush_that_failed(self, counters: Database) -> None:
        async def work(session: AsyncSession) -> None:
            with suppress(SerializationFailure):
                await losing(1, counters, [])(session)

        with pytest.raises(PendingRollbackError):
            await run_transaction(counters, work, isolation_level="REPEATABLE READ")
        assert await values(counters) == [100, 100]

    async def test_can_be_cancelled_between_two_attempts(
        self, counters: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transactions, "_FIRST_WAIT_SECONDS", 1000)
        monkeypatch.setattr(transactions, "_LONGEST_WAIT_SECONDS", 1000)
        seen: list[AsyncSession] = []
        work = losing(99, counters, seen)
        task = asyncio.create_task(run_transaction(counters, work, isolation_level="REPEATABLE READ", timeout=10**6))
        while not seen or counters.pool_status().in_use:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(seen) == 1
        assert counters.pool_status().in_use == 0

    async def test_waits_longer_and_at_random_from_attempt_to_attempt(
        self, counters: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waits: list[float] = []
        real_sleep = asyncio.sleep

        async def sleep(seconds: float) -> None:
            waits.append(seconds)
            await real_sleep(0)

        monkeypatch.setattr(asyncio, "sleep", sleep)
        with pytest.raises(SerializationFailure):
            await run_transaction(
                counters, losing(99, counters, []), attempts=12, timeout=99, isolation_level="REPEATABLE READ"
            )
        waits = [each for each in waits if each > 0]
        bounds = [min(0.01 * 2**n, 1.0) for n in range(11)]
        assert len(waits) == len(bounds)
        assert all(0 <= wait <= bound for wait, bound in zip(waits, bounds, strict=True))
        assert len(set(waits)) > 1

    async def test_serves_many_at_the_same_time(self, counters: Database) -> None:
        async def work(session: AsyncSession) -> None:
            counter = (await session.scalars(select(Counter).where(Counter.id == 1))).one()
            counter.value += 1

        await asyncio.gather(
            *(
                run_transaction(counters, work, attempts=100, timeout=60, isolation_level="REPEATABLE READ")
                for _ in range(20)
            )
        )
        assert await values(counters) == [20, 0]


async def nothing(session: AsyncSession) -> None:
    await session.execute(text("SELECT 1"))


class TestNesting:
    async def test_is_refused_in_another_run(self, real_database: Database) -> None:
        async def work(session: AsyncSession) -> None:
            await nothing(session)
            await run_transaction(real_database, nothing)

        with pytest.raises(NestedTransaction, match="pass that session") as caught:
            await run_transaction(real_database, work)
        assert isinstance(caught.value, InvalidRequestError)

    async def test_is_refused_in_a_session_that_has_begun(self, real_database: Database) -> None:
        async with real_database.begin() as session:
            await nothing(session)
            with pytest.raises(NestedTransaction):
                await run_transaction(real_database, nothing)
        async with real_database.session() as session:
            await nothing(session)
            with pytest.raises(NestedTransaction):
                await run_transaction(real_database, nothing)

    async def test_is_refused_in_a_run_that_has_sent_nothing_yet(self, real_database: Database) -> None:
        async def work(session: AsyncSession) -> None:
            await run_transaction(real_database, nothing)

        with pytest.raises(NestedTransaction):
            await run_transaction(real_database, work)

    async def test_is_refused_in_a_task_that_the_transaction_started(self, real_database: Database) -> None:
        async with real_database.session() as session:
            await nothing(session)
            with pytest.raises(NestedTransaction):
                await asyncio.create_task(run_transaction(real_database, nothing))

    async def test_is_not_seen_in_a_session_that_has_not_begun(self, real_database: Database) -> None:
        async with real_database.session():
            await run_transaction(real_database, nothing)

    async def test_ends_with_the_outer_transaction(self, real_database: Database) -> None:
        async with real_database.session() as session:
            for end in (session.commit, session.rollback, session.close):
                await nothing(session)
                await end()
                await run_transaction(real_database, nothing)

    async def test_ends_with_a_transaction_that_failed(self, real_database: Database) -> None:
        async def work(session: AsyncSession) -> None:
            await session.execute(text("SELECT 1/0"))

        for _ in range(2):
            with pytest.raises(InvalidValue):
                await run_transaction(real_database, work)

    async def test_is_not_seen_by_a_task_that_was_there_before(self, real_database: Database) -> None:
        begun, asked = asyncio.Event(), asyncio.Event()

        async def worker() -> None:
            await begun.wait()
            await run_transaction(real_database, nothing)
            asked.set()

        task = asyncio.create_task(worker())
        async with real_database.session() as session:
            await nothing(session)
            begun.set()
            await asked.wait()
        await task

    async def test_is_seen_in_a_session_that_another_task_began(self, real_database: Database) -> None:
        """A session's transaction belongs to the context in which it began: what a helper task began isn't seen."""
        async with real_database.session() as session:
            await asyncio.create_task(nothing(session))
            await run_transaction(real_database, nothing)

    async def test_is_remembered_without_growing(self, real_database: Database) -> None:
        for _ in range(50):
            async with real_database.session() as session:
                await nothing(session)
        remembered = copy_context()[transactions._begun]
        assert len(remembered) <= 1
        async with real_database.session() as session:
            for _ in range(5):
                await nothing(session)
                await session.commit()
        assert len(copy_context()[transactions._begun]) <= 1


class TestSavepoint:
    async def test_undoes_what_failed_inside_and_nothing_else(self, session: AsyncSession) -> None:
        session.add(kept := User(email="a", name="a"))
        with pytest.raises(UniqueViolation):  # noqa: PT012
            async with savepoint(session):
                session.add(User(email="b", name="b"))
                await session.flush()
                session.add(User(email="a", name="a"))
        assert await session.scalar(select(func.count()).select_from(User)) == 1
        async with savepoint(session):
            session.add(User(email="c", name="c"))
        assert await session.scalar(select(func.count()).select_from(User)) == 2
        assert kept.name == "a"

    async def test_may_stand_in_a_savepoint(self, session: AsyncSession) -> None:
        async with savepoint(session):
            session.add(User(email="a", name="a"))
            with pytest.raises(InvalidValue):
                async with savepoint(session):
                    await session.execute(text("SELECT 1/0"))
        assert await session.scalar(select(func.count()).select_from(User)) == 1

    async def test_undoes_what_a_cancelled_task_did(self, session: AsyncSession) -> None:
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
    async def test_does_not_hide_an_error_that_was_caught_inside(self, name: str, session: AsyncSession) -> None:
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
    async def test_lets_one_in_at_a_time(self, real_database: Database) -> None:
        assert await self.most_at_once(real_database, is_locked=True) == 1

    async def test_without_it_all_are_in(self, real_database: Database) -> None:
        assert await self.most_at_once(real_database, is_locked=False) == 8

    async def most_at_once(self, database: Database, *, is_locked: bool) -> int:
        inside = most = 0
        everybody = asyncio.Barrier(8)

        async def client() -> None:
            nonlocal inside, most
            async with database.begin() as session:
                await nothing(session)
                await everybody.wait()
                if is_locked:
                    await advisory_lock(session, "import", 2026)
                inside += 1
                most = max(most, inside)
                await session.execute(text("SELECT pg_sleep(0.005)"))
                inside -= 1

        await asyncio.gather(*(client() for _ in range(8)))
        return most

    async def test_is_given_back_at_the_end_of_the_transaction(self, real_database: Database) -> None:
        async with real_database.session() as holder, real_database.session() as session:
            await advisory_lock(holder, "import")
            assert not await try_advisory_lock(session, "import")
            assert await try_advisory_lock(session, "export")
            await holder.rollback()
            assert await try_advisory_lock(session, "import")

    async def test_may_be_taken_twice_by_its_holder(self, real_database: Database) -> None:
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

    async def test_ends_with_the_bound_of_the_session(self, real_database: Database) -> None:
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

    def test_has_a_key_of_64_bits_and_of_its_own_for_every_name(self) -> None:
        keys = [transactions._lock_key(("account", n)) for n in range(10_000)]
        assert len(set(keys)) == len(keys)
        assert all(-(2**63) <= key < 2**63 for key in keys)
        assert transactions._lock_key(("a", "bc")) != transactions._lock_key(("ab", "c"))
