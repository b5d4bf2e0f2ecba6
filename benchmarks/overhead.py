"""overhead: what the repository adds to reading one row."""

from __future__ import annotations

from typing import Any

from benchmarks import contents
from benchmarks.comparison import Comparison, Contender, Goal, same
from benchmarks.tables import Order
from howdah import AsyncRepository


class Overhead(Comparison):
    name = "overhead"
    work = "read {size} orders by their keys, one by one, each in a session of its own, so that each is a statement"
    unit = "reads"
    size = 200

    async def set_up(self) -> None:
        self.ids = contents.shuffled(await contents.fill_orders(self.connections.driver, self.count))
        self.sum = await self.connections.driver.fetchval("SELECT sum(total_cents) FROM orders")

    def contenders(self) -> list[Contender]:
        return [
            Contender("howdah AsyncRepository.get", "howdah", self.howdah, self.count),
            Contender("session.get, howdah's session", "limit", self.same_session, self.count),
            Contender("session.get, SQLAlchemy's session", "reference", self.sqlalchemy, self.count),
        ]

    def goals(self) -> list[Goal]:
        return [
            Goal("howdah AsyncRepository.get", "of the time", 1.05, "session.get, howdah's session"),
            Goal("howdah AsyncRepository.get", "of the time", 1.05, "session.get, SQLAlchemy's session"),
        ]

    def rounds(self, asked: int) -> int:
        return 30 * asked  # so small a difference needs many of them

    async def howdah(self) -> int:
        total = 0
        for id in self.ids:
            async with self.connections.database.session() as session:
                order = await AsyncRepository(session, Order).get(id)
                assert order is not None
                total += order.total_cents
        return total

    async def same_session(self) -> int:
        total = 0
        for id in self.ids:
            async with self.connections.database.session() as session:
                order = await session.get(Order, id)
                assert order is not None
                total += order.total_cents
        return total

    async def sqlalchemy(self) -> int:
        total = 0
        for id in self.ids:
            async with self.connections.sessions() as session:
                order = await session.get(Order, id)
                assert order is not None
                total += order.total_cents
        return total

    async def reset(self, contender: Contender) -> None:
        """Nothing is written."""

    async def verify(self, contender: Contender, returned: Any) -> None:
        same("sum of the totals", returned, self.sum)
