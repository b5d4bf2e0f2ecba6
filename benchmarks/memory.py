"""memory: the peak memory when a million rows are written from a generator, and when they are read as a stream."""

from __future__ import annotations

import asyncio
import sys
from typing import Any
from uuid import UUID

from benchmarks.comparison import Comparison, Contender, Goal, Measured, check_equal
from benchmarks.processes import measure_block, run_module
from benchmarks.tables import Order
from howdah import AsyncRepository, Database, uuid7

CREATE, STREAM = "howdah create_many(keys=False)", "howdah stream"


class Memory(Comparison):
    name = "memory"
    description = (
        "write {size} orders from a generator, and read them as a stream, each in a new process. The peak is the "
        "memory above the level at process start"
    )
    unit = "rows"
    size = 1_000_000
    quick_size = 50_000
    has_warm_up = False

    async def set_up(self) -> None:
        self.user_id = uuid7()
        await self.connections.driver.execute(
            "INSERT INTO users (id, email, name, created_at, updated_at, version) "
            "VALUES ($1, 'somebody@example.com', 'Somebody', now(), now(), 1)",
            self.user_id,
        )

    def contenders(self) -> list[Contender]:
        return [
            Contender(CREATE, "howdah", self.run_create, self.count),
            Contender(STREAM, "howdah", self.run_stream, self.count),
        ]

    def goals(self) -> list[Goal]:
        return [Goal(CREATE, "MB", 150), Goal(STREAM, "MB", 150)]

    def rounds(self) -> int:
        return 1  # the peak is the same in every round

    async def reset(self, contender: Contender) -> None:
        if contender.name == CREATE:
            await self.connections.driver.execute("TRUNCATE orders")
            await self.connections.driver.execute("VACUUM ANALYZE orders")

    async def run_create(self) -> Measured:
        return await run_module(__name__, "create", self.connections.url, str(self.count), str(self.user_id))

    async def run_stream(self) -> Measured:
        """Read the rows that `run_create` has written. Fails if `run_create` has failed."""
        return await run_module(__name__, "stream", self.connections.url, str(self.count), str(self.user_id))

    async def verify(self, contender: Contender, returned: Any) -> None:
        found = await self.connections.driver.fetchrow("SELECT count(DISTINCT id), sum(total_cents) FROM orders")
        check_equal(
            "number and sum of the orders", tuple(found), (self.count, sum(n % 1000 for n in range(self.count)))
        )
        await self.connections.driver.execute("VACUUM ANALYZE orders")


async def _create(database: Database, count: int, user_id: str) -> None:
    user = UUID(user_id)
    rows = ({"user_id": user, "total_cents": number % 1000} for number in range(count))
    async with measure_block(), database.begin() as session:
        created = await AsyncRepository(session, Order).create_many(rows, keys=False)
        check_equal("number of rows", created.count, count)


async def _stream(database: Database, count: int) -> None:
    async with measure_block(), database.session(read_only=True) as session:
        read = total = 0
        async for order in AsyncRepository(session, Order).stream():
            read, total = read + 1, total + order.total_cents
        check_equal("number and sum of the rows", (read, total), (count, sum(n % 1000 for n in range(count))))


async def _main(action: str, url: str, count: str, user_id: str) -> None:
    async with Database(url) as database:
        await database.ping()
        await (_create(database, int(count), user_id) if action == "create" else _stream(database, int(count)))


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
