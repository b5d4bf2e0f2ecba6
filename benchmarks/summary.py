"""summary: a user, and the number, the sum and the mean of the user's orders."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import func, select

from benchmarks import reference, table_data
from benchmarks.comparison import Comparison, Contender, Goal, check_close, check_equal
from benchmarks.tables import Order, User
from howdah import AsyncRepository

SUMMARIES_PER_RUN = {10: 100, 1_000: 50, 100_000: 2}
"""The number of summaries in a run, by the number of the user's orders."""
QUICK_SUMMARIES_PER_RUN = {10: 20, 1_000: 10}


class Summary(Comparison):
    name = "summary"
    description = "read a user and the number, sum and mean of the user's orders; other users have {size} orders"
    unit = "summaries"

    @property
    def _summaries(self) -> dict[int, int]:
        return QUICK_SUMMARIES_PER_RUN if self.is_quick else SUMMARIES_PER_RUN

    async def set_up(self) -> None:
        driver = self.connections.driver
        await table_data.fill_orders(driver, self.count)
        self.users: dict[int, UUID] = {}
        for orders in self._summaries:
            (row,) = table_data.user_rows(1, first=orders)
            async with self.connections.database.begin() as session:
                user = await AsyncRepository(session, User).create(**row)
                rows = ({"user_id": user.id, "total_cents": 1 + number % 5000} for number in range(orders))
                await AsyncRepository(session, Order).create_many(rows, keys=False)
            self.users[orders] = user.id
        await driver.execute("VACUUM ANALYZE")

    def contenders(self) -> list[Contender]:
        contenders = []
        for orders, summaries in self._summaries.items():
            user_id = self.users[orders]
            contenders += [
                Contender(
                    f"one aggregate, {orders:,} orders",
                    "howdah",
                    partial(self._run_howdah, user_id, summaries),
                    summaries,
                ),
                Contender(
                    f"reference, {orders:,} orders",
                    "reference",
                    partial(self._run_reference, user_id, summaries),
                    summaries,
                ),
            ]
        return contenders

    def goals(self) -> list[Goal]:
        return [
            Goal(f"one aggregate, {orders:,} orders", "of the time", 0.5, f"reference, {orders:,} orders")
            for orders in self._summaries
            if orders >= 1000
        ]

    async def _run_howdah(self, user_id: UUID, summaries: int) -> dict[str, Any]:
        for _ in range(summaries):
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

    async def _run_reference(self, user_id: UUID, summaries: int) -> dict[str, Any] | None:
        for _ in range(summaries):
            async with self.connections.sessions() as db:
                summary = await reference.get_user_order_summary(db, user_id)
        return summary

    async def reset(self, contender: Contender) -> None:
        """Nothing is written, so there is nothing to restore."""

    async def verify(self, contender: Contender, returned: Any) -> None:
        orders = next(count for count in self._summaries if f", {count:,} orders" in contender.name)
        spent = sum(1 + number % 5000 for number in range(orders))
        check_equal("user", returned["user"].id, self.users[orders])
        check_equal(
            "number and sum of the orders", (returned["total_orders"], returned["total_spent_cents"]), (orders, spent)
        )
        check_close("mean", returned["avg_order_cents"], spent / orders)
