"""pool: 512 tasks share a pool. How many uses are there in a second, and how long does a task wait for a connection?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from functools import partial
from typing import Any, Final, TypeAlias

import asyncpg
from sqlalchemy import make_url, text

from benchmarks.comparison import Comparison, Contender, Goal, Measured, Role, WrongResult, check_equal

TASKS: Final = 512
POOL_SIZE: Final = 20
MAX_OVERFLOW: Final = 10

HOWDAH: Final = "howdah Database.begin"
SQLALCHEMY: Final = "SQLAlchemy AsyncAdaptedQueuePool"
ASYNCPG: Final = "asyncpg create_pool"
NESTED: Final = "howdah, a second session inside"
NESTED_GATE: Final = "howdah, the same behind a semaphore"

_SELECT: Final = text("SELECT 1")
# Slow enough that the tasks wait for connections, and not only for the processor.
_SLOW_SELECT: Final = text("SELECT 1 FROM pg_sleep(0.005)")

Use: TypeAlias = Callable[[Callable[[], None]], Awaitable[int]]
"""One use of the pool. It calls the function as soon as it has its first connection."""


class Pool(Comparison):
    name = "pool"
    description = f"{{size}} short transactions of {TASKS} tasks that share at most 30 connections"
    unit = "transactions"
    size = 5_000
    quick_size = 1_000

    async def set_up(self) -> None:
        url = make_url(self.connections.url).set(drivername="postgresql").render_as_string(hide_password=False)
        self.pool = await asyncpg.create_pool(url, min_size=POOL_SIZE, max_size=POOL_SIZE + MAX_OVERFLOW)
        # Each use holds two connections, of which one is from the reserve.
        self.gate = asyncio.Semaphore((POOL_SIZE + MAX_OVERFLOW) // 2)

    async def tear_down(self) -> None:
        if hasattr(self, "pool"):
            await self.pool.close()

    def contenders(self) -> list[Contender]:
        nested = self.count // 5
        uses: list[tuple[str, Role, Use, int]] = [
            (HOWDAH, "howdah", self.use_howdah, self.count),
            (SQLALCHEMY, "reference", self.use_sqlalchemy, self.count),
            (ASYNCPG, "baseline", self.use_asyncpg, self.count),
            (NESTED, "howdah", self.use_nested, nested),
            (NESTED_GATE, "baseline", self.use_nested_behind_gate, nested),
        ]
        return [Contender(name, role, partial(self.run, use, units), units) for name, role, use, units in uses]

    def goals(self) -> list[Goal]:
        return [Goal(HOWDAH, "of the time", 1.3, SQLALCHEMY), Goal(NESTED, "of the time", 1.05, NESTED_GATE)]

    async def reset(self, contender: Contender) -> None:
        """Nothing is written, so there is nothing to restore."""

    async def run(self, use: Use, count: int) -> int:
        done, _ = await run_uses(use, count)
        return done

    async def verify(self, contender: Contender, returned: Any) -> None:
        check_equal("number of uses", returned, contender.units)

    async def use_howdah(self, has_connection: Callable[[], None]) -> int:
        async with self.connections.database.begin() as session:
            await session.connection()
            has_connection()
            one: int = (await session.scalars(_SELECT)).one()
            return one

    async def use_sqlalchemy(self, has_connection: Callable[[], None]) -> int:
        async with self.connections.sessions.begin() as session:
            await session.connection()
            has_connection()
            one: int = (await session.scalars(_SELECT)).one()
            return one

    async def use_asyncpg(self, has_connection: Callable[[], None]) -> int:
        async with self.pool.acquire() as connection, connection.transaction():
            has_connection()
            one: int = await connection.fetchval("SELECT 1")
            return one

    async def use_nested(self, has_connection: Callable[[], None]) -> int:
        async with self.connections.database.begin() as session:
            await session.scalars(_SELECT)
            async with self.connections.database.begin() as inner:
                await inner.connection()
                has_connection()
                one: int = (await inner.scalars(_SLOW_SELECT)).one()
                return one

    async def use_nested_behind_gate(self, has_connection: Callable[[], None]) -> int:
        async with self.gate:
            return await self.use_nested(has_connection)


class PoolWaits(Pool):
    name = "pool-waits"
    description = Pool.description + ": the longest time that a task waited for its connections"
    unit = "longest waits"

    def contenders(self) -> list[Contender]:
        return [
            Contender(each.name, each.role, partial(self.measure_longest_wait, each), 1)
            for each in super().contenders()
        ]

    def goals(self) -> Sequence[Goal]:  # type: ignore[override]
        return [Goal(HOWDAH, "of the time", 0.5, SQLALCHEMY), Goal(NESTED, "of the time", 2, NESTED_GATE)]

    async def measure_longest_wait(self, contender: Contender) -> Measured:
        _, longest = await run_uses(*contender.run.args)  # type: ignore[attr-defined]
        return Measured(longest)

    async def verify(self, contender: Contender, returned: Any) -> None:
        """`run_uses` has counted the uses."""


async def run_uses(use: Use, count: int) -> tuple[int, float]:
    """Run `count` uses in 512 tasks. Returns the number of uses and the longest wait in seconds."""
    remaining = iter(range(count))
    done, longest = 0, 0.0

    async def repeat() -> None:
        nonlocal done, longest
        for _ in remaining:
            started = time.perf_counter()

            def has_connection(started: float = started) -> None:
                nonlocal longest
                longest = max(longest, time.perf_counter() - started)

            one = await use(has_connection)
            done += one  # not in one statement, which would read `done` before the await

    async with asyncio.TaskGroup() as group:
        for _ in range(TASKS):
            group.create_task(repeat(), context=Context())
    if done != count:
        raise WrongResult(f"{done} of {count} uses")
    return done, longest
