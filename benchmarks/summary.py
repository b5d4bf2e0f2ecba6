"""summary: a user with the number and the sum of their orders."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import func, select

from benchmarks import contents, reference
from benchmarks.comparison import Comparison, Contender, Goal, close, same
from benchmarks.tables import Order, User
from howdah import AsyncRepository

RUNS = {10: 100, 1_000: 50, 100_000: 2}
"""Summaries in one run, by the number of the user's orders."""


class Summary(Comparison):
    name = "summary"
    work = "a user with the number, sum and mean of their orders, among {size} orders of others"
    unit = "summaries"

    async def set_up(self) -> None:
        driver = self.connections.driver
        await contents.fill_orders(driver, self.count)
        self.users: dict[int, UUID] = {}
        for orders in RUNS:
            (row,) = contents.people(1, first=orders)
            async with self.connections.database.begin() as session:
                user = await AsyncRepository(session, User).create(**row)
                rows = ({"user_id": user.id, "total_cents": 1 + number % 5000} for number in range(orders))
                await AsyncRepository(session, Order).create_many(rows, keys=False)
            self.users[orders] = user.id
        await driver.execute("VACUUM ANALYZE")

    def contenders(self) -> list[Contender]:
        found = []
        for orders, runs in RUNS.items():
            user_id = self.users[orders]
            found += [
                Contender(f"one aggregate, {orders:,} orders", "howdah", partial(self._howdah, user_id, runs), runs),
                Contender(f"reference, {orders:,} orders", "reference", partial(self._reference, user_id, runs), runs),
            ]
        return found

    def goals(self) -> list[Goal]:
        return [
            Goal(f"one aggregate, {orders:,} orders", "of the time", 0.5, f"reference, {orders:,} orders")
            for orders in RUNS
            if orders >= 1000
        ]

    async def _howdah(self, user_id: UUID, runs: int) -> dict[str, Any]:
        for _ in range(runs):
            async with self.connections.database.session(read_only=True) as session:
                user = await AsyncRepository(session, User).get_one(user_id)
                totals = select(func.count(), func.sum(Order.total_cents)).where(Order.user_id == user_id)
                orders, spent = (await session.execute(totals)).one()
        spent = int(spent or 0)
        return {
            "user": user,
            "total_orders": orders,
            "total_spent_cents": spent,
            "avg_order_cents": spent / orders if orders else 0.0,
        }

    async def _reference(self, user_id: UUID, runs: int) -> dict[str, Any] | None:
        for _ in range(runs):
            async with self.connections.sessions() as db:
                summary = await reference.get_user_order_summary(db, user_id)
        return summary

    async def reset(self, contender: Contender) -> None:
        """Nothing is written."""

    async def verify(self, contender: Contender, returned: Any) -> None:
        orders = next(count for count in RUNS if f", {count:,} orders" in contender.name)
        spent = sum(1 + number % 5000 for number in range(orders))
        same("user", returned["user"].id, self.users[orders])
        same("orders and sum", (returned["total_orders"], returned["total_spent_cents"]), (orders, spent))
        close("mean", returned["avg_order_cents"], spent / orders)
