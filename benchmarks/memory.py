"""memory: how much of it a million rows take, written from a generator and read as a stream."""

from __future__ import annotations

import asyncio
import sys
from typing import Any
from uuid import UUID

from benchmarks.comparison import Comparison, Contender, Goal, Measured, same
from benchmarks.processes import measured, measuring
from benchmarks.tables import Order
from howdah import AsyncRepository, Database, uuid7

CREATE, STREAM = "howdah create_many(keys=False)", "howdah stream"


class Memory(Comparison):
    name = "memory"
    work = (
        "write {size} orders from a generator, and read them as a stream: peak above the start, in a process of its own"
    )
    unit = "rows"
    size = 1_000_000
    warm_up = False

    async def set_up(self) -> None:
        self.user_id = uuid7()
        await self.connections.driver.execute(
            "INSERT INTO users (id, email, name, created_at, updated_at, version) "
            "VALUES ($1, 'somebody@example.com', 'Somebody', now(), now(), 1)",
            self.user_id,
        )

    def contenders(self) -> list[Contender]:
        return [
            Contender(CREATE, "howdah", self.create, self.count),
            Contender(STREAM, "howdah", self.stream, self.count),
        ]

    def goals(self) -> list[Goal]:
        return [Goal(CREATE, "MB", 150), Goal(STREAM, "MB", 150)]

    def rounds(self, asked: int) -> int:
        return 1  # memory isn't noisy

    async def reset(self, contender: Contender) -> None:
        if contender.name == CREATE:
            await self.connections.driver.execute("TRUNCATE orders")
            await self.connections.driver.execute("VACUUM ANALYZE orders")

    async def create(self) -> Measured:
        return await measured(__name__, "create", self.connections.url, str(self.count), str(self.user_id))

    async def stream(self) -> Measured:
        """Reads what `create` wrote."""
        return await measured(__name__, "stream", self.connections.url, str(self.count), str(self.user_id))

    async def verify(self, contender: Contender, returned: Any) -> None:
        found = await self.connections.driver.fetchrow("SELECT count(DISTINCT id), sum(total_cents) FROM orders")
        same("orders and their sum", tuple(found), (self.count, sum(n % 1000 for n in range(self.count))))
        await self.connections.driver.execute("VACUUM ANALYZE orders")


async def _create(database: Database, count: int, user_id: str) -> None:
    user = UUID(user_id)
    rows = ({"user_id": user, "total_cents": number % 1000} for number in range(count))
    async with measuring(), database.begin() as session:
        created = await AsyncRepository(session, Order).create_many(rows, keys=False)
        same("rows counted", created.count, count)


async def _stream(database: Database, count: int) -> None:
    async with measuring(), database.session(read_only=True) as session:
        read = total = 0
        async for order in AsyncRepository(session, Order).stream():
            read, total = read + 1, total + order.total_cents
        same("rows and their sum", (read, total), (count, sum(n % 1000 for n in range(count))))


async def _main(what: str, url: str, count: str, user_id: str) -> None:
    async with Database(url) as database:
        await database.ping()
        await (_create(database, int(count), user_id) if what == "create" else _stream(database, int(count)))


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
