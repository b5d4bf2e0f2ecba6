"""`run_transaction` repeats the work after a transaction conflict, and only then."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import InvalidRequestError, PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, InvalidValue, SerializationFailure, UniqueViolation, _retry, lock, run_transaction
from howdah_tests.support.sample_models import Counter


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
    """Change the counters in another transaction, and commit it."""
    async with database.begin() as session:
        await session.execute(update(Counter).values(value=value))


def conflicting_work(times: int, database: Database, seen: list[AsyncSession]) -> Any:
    """Work whose first `times` attempts conflict with another transaction. It appends its session to `seen`."""

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
    async def test_commits_and_returns_the_result_of_the_work(self, counters: Database) -> None:
        seen: list[AsyncSession] = []
        assert await run_transaction(counters, conflicting_work(0, counters, seen)) == 1
        assert await values(counters) == [1, 0]
        with pytest.raises(InvalidRequestError, match="permanently closed"):
            await seen[0].execute(text("SELECT 1"))

    async def test_repeats_the_work_in_a_new_session_after_a_serialization_failure(self, counters: Database) -> None:
        seen: list[AsyncSession] = []
        work = conflicting_work(2, counters, seen)
        assert await run_transaction(counters, work, isolation_level="REPEATABLE READ") == 201
        assert await values(counters) == [201, 200]
        assert len({id(session) for session in seen}) == 3
        assert counters.pool_status().in_use == 0

    async def test_control_without_retries_a_serialization_failure_is_raised(self, counters: Database) -> None:
        with pytest.raises(SerializationFailure):
            async with counters.begin(isolation_level="REPEATABLE READ") as session:
                await conflicting_work(1, counters, [])(session)

    async def test_repeats_the_work_if_the_commit_failed(self, counters: Database) -> None:
        """Write skew: each of two transactions reads rows that the other one writes. The second commit fails."""
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

    async def test_repeats_the_work_of_the_victim_of_a_deadlock(self, counters: Database) -> None:
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

    async def test_raises_the_last_error_after_max_attempts(self, counters: Database) -> None:
        seen: list[AsyncSession] = []
        with pytest.raises(SerializationFailure):
            await run_transaction(
                counters, conflicting_work(99, counters, seen), max_attempts=3, isolation_level="REPEATABLE READ"
            )
        assert len(seen) == 3
        assert await values(counters) == [300, 300]

    async def test_rejects_zero_attempts(self, counters: Database) -> None:
        with pytest.raises(ValueError, match="max_attempts must be at least 1, not 0"):
            await run_transaction(counters, conflicting_work(0, counters, []), max_attempts=0)

    async def test_starts_no_attempt_after_the_timeout(self, counters: Database) -> None:
        seen: list[AsyncSession] = []
        started = time.monotonic()
        with pytest.raises(SerializationFailure):
            await run_transaction(
                counters,
                conflicting_work(10**6, counters, seen),
                max_attempts=10**6,
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

    async def test_repeats_the_work_even_if_it_suppressed_the_conflict(self, counters: Database) -> None:
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

    async def test_does_not_hide_a_failed_flush(self, counters: Database) -> None:
        async def work(session: AsyncSession) -> None:
            with suppress(SerializationFailure):
                await conflicting_work(1, counters, [])(session)

        with pytest.raises(PendingRollbackError):
            await run_transaction(counters, work, isolation_level="REPEATABLE READ")
        assert await values(counters) == [100, 100]

    async def test_can_be_cancelled_between_two_attempts(
        self, counters: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_retry, "_FIRST_WAIT_SECONDS", 1000)
        monkeypatch.setattr(_retry, "_LONGEST_WAIT_SECONDS", 1000)
        seen: list[AsyncSession] = []
        work = conflicting_work(99, counters, seen)
        task = asyncio.create_task(run_transaction(counters, work, isolation_level="REPEATABLE READ", timeout=10**6))
        while not seen or counters.pool_status().in_use:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(seen) == 1
        assert counters.pool_status().in_use == 0

    async def test_waits_are_random_and_their_limits_grow(
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
                counters,
                conflicting_work(99, counters, []),
                max_attempts=12,
                timeout=99,
                isolation_level="REPEATABLE READ",
            )
        waits = [each for each in waits if each > 0]
        max_waits = [min(0.01 * 2**n, 1.0) for n in range(11)]
        assert len(waits) == len(max_waits)
        assert all(0 <= wait <= max_wait for wait, max_wait in zip(waits, max_waits, strict=True))
        assert len(set(waits)) > 1

    async def test_can_run_many_transactions_concurrently(self, counters: Database) -> None:
        async def work(session: AsyncSession) -> None:
            counter = (await session.scalars(select(Counter).where(Counter.id == 1))).one()
            counter.value += 1

        await asyncio.gather(
            *(
                run_transaction(counters, work, max_attempts=100, timeout=60, isolation_level="REPEATABLE READ")
                for _ in range(20)
            )
        )
        assert await values(counters) == [20, 0]
