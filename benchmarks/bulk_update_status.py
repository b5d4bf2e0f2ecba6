"""bulk-update-status: the same new value for many rows, by their keys."""

from __future__ import annotations

from typing import Any

from benchmarks import contents, reference
from benchmarks.comparison import Comparison, Contender, Goal, same
from benchmarks.tables import Order
from howdah import bulk, utcnow

BY_HAND = """
    UPDATE orders SET status = $2, updated_at = $3, version = version + 1 WHERE id = ANY($1::uuid[])
"""
CHUNK = 30_000
"""A statement has 32,767 parameters at most; the largest chunks were the fastest."""


class BulkUpdateStatus(Comparison):
    name = "bulk-update-status"
    work = "set the status of {size} orders, every second of the table, in one transaction, by their ids in any order"
    unit = "rows"

    async def set_up(self) -> None:
        ids = await contents.fill_orders(self.connections.driver, 2 * self.count)
        self.ids = contents.shuffled(ids[::2])

    def contenders(self) -> list[Contender]:
        return [
            Contender("howdah update_by_key", "howdah", self.howdah, self.count),
            Contender("asyncpg UPDATE … = ANY", "limit", self.by_hand, self.count),
            Contender("reference, IN in chunks", "reference", self.chunked, self.count),
        ]

    def rounds(self, asked: int) -> int:
        return 2 * asked  # so small a difference needs more of them

    def goals(self) -> list[Goal]:
        return [
            Goal("howdah update_by_key", "times as fast", 0.95, "asyncpg UPDATE … = ANY"),
            Goal("howdah update_by_key", "times as fast", 1.5, "reference, IN in chunks"),
        ]

    async def reset(self, contender: Contender) -> None:
        await contents.restore_orders(self.connections.driver)

    async def howdah(self) -> int:
        async with self.connections.database.begin() as session:
            return (await bulk.update_by_key(session, Order, self.ids, {"status": "paid"})).count

    async def by_hand(self) -> int:
        async with self.connections.driver.transaction():
            done = await self.connections.driver.execute(BY_HAND, self.ids, "paid", utcnow())
        return int(done.removeprefix("UPDATE "))

    async def chunked(self) -> int:
        async with self.connections.sessions() as db, db.begin():
            return sum(
                [
                    await reference.bulk_update_status(db, self.ids[first : first + CHUNK], "paid")
                    for first in range(0, self.count, CHUNK)
                ]
            )

    async def verify(self, contender: Contender, returned: Any) -> None:
        same("rows counted", returned, self.count)
        found = await self.connections.driver.fetchrow(
            """
            SELECT count(*), count(*) FILTER (
                WHERE now.total_cents = before.total_cents AND now.created_at = before.created_at
                AND CASE WHEN now.id = ANY($1::uuid[])
                    THEN now.status = 'paid' AND now.version = 2 AND now.updated_at > before.updated_at
                    ELSE now.status = 'pending' AND now.version = 1 AND now.updated_at = before.updated_at END
            ) FROM orders now JOIN orders_before before USING (id)
            """,
            self.ids,
        )
        same("orders, and those that are as they should be", tuple(found), (2 * self.count, 2 * self.count))
