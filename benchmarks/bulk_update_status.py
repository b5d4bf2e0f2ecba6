"""bulk-update-status: set the same new value in many rows, selected by their keys."""

from __future__ import annotations

from typing import Any

from benchmarks import reference, table_data
from benchmarks.comparison import Comparison, Contender, Goal, check_equal
from benchmarks.tables import Order
from howdah import bulk, utcnow

BASELINE_SQL = """
    UPDATE orders SET status = $2, updated_at = $3, version = version + 1 WHERE id = ANY($1::uuid[])
"""
CHUNK = 30_000
"""A statement has at most 32,767 parameters. Larger chunks are faster."""


class BulkUpdateStatus(Comparison):
    name = "bulk-update-status"
    description = (
        "set the status of {size} orders, half of the table (every other row), by their ids in random order, in one "
        "transaction"
    )
    unit = "rows"

    async def set_up(self) -> None:
        ids = await table_data.fill_orders(self.connections.driver, 2 * self.count)
        self.ids = table_data.shuffle(ids[::2])

    def contenders(self) -> list[Contender]:
        return [
            Contender("howdah update_by_key", "howdah", self.run_howdah, self.count),
            Contender("asyncpg UPDATE … = ANY", "baseline", self.run_baseline, self.count),
            Contender("reference, IN in chunks", "reference", self.run_reference, self.count),
        ]

    def rounds(self) -> int:
        return 2 * self.requested_rounds  # the differences are small

    def goals(self) -> list[Goal]:
        return [
            Goal("howdah update_by_key", "times as fast", 0.95, "asyncpg UPDATE … = ANY"),
            Goal("howdah update_by_key", "times as fast", 1.5, "reference, IN in chunks"),
        ]

    async def reset(self, contender: Contender) -> None:
        await table_data.restore_orders(self.connections.driver)

    async def run_howdah(self) -> int:
        async with self.connections.database.begin() as session:
            return (await bulk.update_by_key(session, Order, self.ids, {"status": "paid"})).count

    async def run_baseline(self) -> int:
        async with self.connections.driver.transaction():
            done = await self.connections.driver.execute(BASELINE_SQL, self.ids, "paid", utcnow())
        return int(done.removeprefix("UPDATE "))

    async def run_reference(self) -> int:
        async with self.connections.sessions() as db, db.begin():
            return sum(
                [
                    await reference.bulk_update_status(db, self.ids[first : first + CHUNK], "paid")
                    for first in range(0, self.count, CHUNK)
                ]
            )

    async def verify(self, contender: Contender, returned: Any) -> None:
        check_equal("number of rows", returned, self.count)
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
        check_equal("number of orders, and of correct orders", tuple(found), (2 * self.count, 2 * self.count))
