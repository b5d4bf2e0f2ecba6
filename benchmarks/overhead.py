"""overhead: the time that the repository adds to reading one row."""

from __future__ import annotations

from typing import Any

from benchmarks import table_data
from benchmarks.comparison import Comparison, Contender, Goal, check_equal
from benchmarks.tables import Order
from howdah import AsyncRepository


class Overhead(Comparison):
    name = "overhead"
    description = (
        "read {size} orders by their keys, one by one, each in a new session, so that each read is one statement"
    )
    unit = "reads"
    size = 200
    quick_size = 100

    async def set_up(self) -> None:
        self.ids = table_data.shuffle(await table_data.fill_orders(self.connections.driver, self.count))
        self.sum = await self.connections.driver.fetchval("SELECT sum(total_cents) FROM orders")

    def contenders(self) -> list[Contender]:
        return [
            Contender("howdah AsyncRepository.get", "howdah", self.run_howdah, self.count),
            Contender("session.get, howdah's session", "baseline", self.run_same_session, self.count),
            Contender("session.get, SQLAlchemy's session", "reference", self.run_sqlalchemy, self.count),
        ]

    def goals(self) -> list[Goal]:
        return [
            Goal("howdah AsyncRepository.get", "of the time", 1.05, "session.get, howdah's session"),
            Goal("howdah AsyncRepository.get", "of the time", 1.05, "session.get, SQLAlchemy's session"),
        ]

    def rounds(self) -> int:
        return 30 * self.requested_rounds  # the differences are only a few percent

    async def run_howdah(self) -> int:
        total = 0
        for id in self.ids:
            async with self.connections.database.session() as session:
                order = await AsyncRepository(session, Order).get(id)
                assert order is not None
                total += order.total_cents
        return total

    async def run_same_session(self) -> int:
        total = 0
        for id in self.ids:
            async with self.connections.database.session() as session:
                order = await session.get(Order, id)
                assert order is not None
                total += order.total_cents
        return total

    async def run_sqlalchemy(self) -> int:
        total = 0
        for id in self.ids:
            async with self.connections.sessions() as session:
                order = await session.get(Order, id)
                assert order is not None
                total += order.total_cents
        return total

    async def reset(self, contender: Contender) -> None:
        """Nothing is written, so there is nothing to restore."""

    async def verify(self, contender: Contender, returned: Any) -> None:
        check_equal("sum of the totals", returned, self.sum)
