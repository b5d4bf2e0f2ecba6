"""bulk-update-rows: update many rows, each with its own values."""

from __future__ import annotations

from typing import Any

from advanced_alchemy.repository import SQLAlchemyAsyncRepository

from benchmarks import table_data
from benchmarks.comparison import Comparison, Contender, Goal, check_equal
from benchmarks.tables import Order
from howdah import AsyncRepository, utcnow

BASELINE_SQL = """
    UPDATE orders SET status = input.status, total_cents = input.total_cents, updated_at = $4, version = version + 1
    FROM unnest($1::uuid[], $2::text[], $3::int[]) AS input (id, status, total_cents)
    WHERE orders.id = input.id
"""

PEER_CHUNK = 30_000
"""advanced-alchemy selects the rows of a versioned class with one parameter per key. A statement has at most 32,767."""


class Repository(SQLAlchemyAsyncRepository[Order]):
    model_type = Order


class BulkUpdateRows(Comparison):
    name = "bulk-update-rows"
    description = (
        "set status and total of {size} orders, half of the table (every other row), from dicts in random order, in "
        "one transaction"
    )
    unit = "rows"

    async def set_up(self) -> None:
        ids = await table_data.fill_orders(self.connections.driver, 2 * self.count)
        statuses = ("paid", "shipped", "delivered")
        self.rows = [
            {"id": id, "status": statuses[number % 3], "total_cents": number}
            for number, id in enumerate(table_data.shuffle(ids[::2]))
        ]

    def contenders(self) -> list[Contender]:
        return [
            Contender("howdah update_many", "howdah", self.run_howdah, self.count),
            Contender("asyncpg UPDATE … FROM unnest", "baseline", self.run_baseline, self.count),
            Contender("advanced-alchemy update_many", "peer", self.run_advanced_alchemy, self.count),
        ]

    def goals(self) -> list[Goal]:
        return [
            Goal("howdah update_many", "times as fast", 0.85, "asyncpg UPDATE … FROM unnest"),
            Goal("howdah update_many", "times as fast", 5, "advanced-alchemy update_many"),
        ]

    async def reset(self, contender: Contender) -> None:
        await table_data.restore_orders(self.connections.driver)

    async def run_howdah(self) -> int:
        async with self.connections.database.begin() as session:
            return (await AsyncRepository(session, Order).update_many(self.rows)).count

    async def run_baseline(self) -> int:
        columns = ([row[name] for row in self.rows] for name in ("id", "status", "total_cents"))
        async with self.connections.driver.transaction():
            done = await self.connections.driver.execute(BASELINE_SQL, *columns, utcnow())
        return int(done.removeprefix("UPDATE "))

    async def run_advanced_alchemy(self) -> int:
        # SQLAlchemy's bulk UPDATE of a versioned class needs the row's current version.
        async with self.connections.sessions() as db, db.begin():
            orders = [Order(**row, version=1) for row in self.rows]
            for first in range(0, len(orders), PEER_CHUNK):
                await Repository(session=db).update_many(orders[first : first + PEER_CHUNK])
            return len(orders)

    async def verify(self, contender: Contender, returned: Any) -> None:
        check_equal("number of rows", returned, self.count)
        found = await self.connections.driver.fetchrow(
            """
            SELECT count(*), count(*) FILTER (
                WHERE now.user_id = before.user_id AND now.created_at = before.created_at
                AND CASE WHEN input.id IS NULL
                    THEN now.status = 'pending' AND now.version = 1 AND now.updated_at = before.updated_at
                        AND now.total_cents = before.total_cents
                    ELSE now.status = input.status AND now.total_cents = input.total_cents AND now.version = 2
                        AND now.updated_at > before.updated_at END
            )
            FROM orders now JOIN orders_before before USING (id)
            LEFT JOIN unnest($1::uuid[], $2::text[], $3::int[]) AS input (id, status, total_cents) USING (id)
            """,
            *([row[name] for row in self.rows] for name in ("id", "status", "total_cents")),
        )
        check_equal("number of orders, and of correct orders", tuple(found), (2 * self.count, 2 * self.count))
