"""bulk-update-rows: many rows, each to values of its own."""

from __future__ import annotations

from typing import Any

from advanced_alchemy.repository import SQLAlchemyAsyncRepository

from benchmarks import contents
from benchmarks.comparison import Comparison, Contender, Goal, same
from benchmarks.tables import Order
from howdah import AsyncRepository, utcnow

BY_HAND = """
    UPDATE orders SET status = given.status, total_cents = given.total_cents, updated_at = $4, version = version + 1
    FROM unnest($1::uuid[], $2::text[], $3::int[]) AS given (id, status, total_cents)
    WHERE orders.id = given.id
"""

# It finds a versioned class's rows with a parameter a key, of which a statement has 32,767 at most.
PEERS_PART = 30_000


class Repository(SQLAlchemyAsyncRepository[Order]):
    model_type = Order


class BulkUpdateRows(Comparison):
    name = "bulk-update-rows"
    work = (
        "set status and total of {size} orders, every second of the table, from dicts in any order, in one transaction"
    )
    unit = "rows"

    async def set_up(self) -> None:
        ids = await contents.fill_orders(self.connections.driver, 2 * self.count)
        statuses = ("paid", "shipped", "delivered")
        self.rows = [
            {"id": id, "status": statuses[number % 3], "total_cents": number}
            for number, id in enumerate(contents.shuffled(ids[::2]))
        ]

    def contenders(self) -> list[Contender]:
        return [
            Contender("howdah update_many", "howdah", self.howdah, self.count),
            Contender("asyncpg UPDATE … FROM unnest", "limit", self.by_hand, self.count),
            Contender("advanced-alchemy update_many", "peer", self.advanced_alchemy, self.count),
        ]

    def goals(self) -> list[Goal]:
        return [
            Goal("howdah update_many", "times as fast", 0.85, "asyncpg UPDATE … FROM unnest"),
            Goal("howdah update_many", "times as fast", 5, "advanced-alchemy update_many"),
        ]

    async def reset(self, contender: Contender) -> None:
        await contents.restore_orders(self.connections.driver)

    async def howdah(self) -> int:
        async with self.connections.database.begin() as session:
            return (await AsyncRepository(session, Order).update_many(self.rows)).count

    async def by_hand(self) -> int:
        columns = ([row[name] for row in self.rows] for name in ("id", "status", "total_cents"))
        async with self.connections.driver.transaction():
            done = await self.connections.driver.execute(BY_HAND, *columns, utcnow())
        return int(done.removeprefix("UPDATE "))

    async def advanced_alchemy(self) -> int:
        # SQLAlchemy's bulk UPDATE of a versioned class wants the version that the row has.
        async with self.connections.sessions() as db, db.begin():
            orders = [Order(**row, version=1) for row in self.rows]
            for first in range(0, len(orders), PEERS_PART):
                await Repository(session=db).update_many(orders[first : first + PEERS_PART])
            return len(orders)

    async def verify(self, contender: Contender, returned: Any) -> None:
        same("rows counted", returned, self.count)
        found = await self.connections.driver.fetchrow(
            """
            SELECT count(*), count(*) FILTER (
                WHERE now.user_id = before.user_id AND now.created_at = before.created_at
                AND CASE WHEN given.id IS NULL
                    THEN now.status = 'pending' AND now.version = 1 AND now.updated_at = before.updated_at
                        AND now.total_cents = before.total_cents
                    ELSE now.status = given.status AND now.total_cents = given.total_cents AND now.version = 2
                        AND now.updated_at > before.updated_at END
            )
            FROM orders now JOIN orders_before before USING (id)
            LEFT JOIN unnest($1::uuid[], $2::text[], $3::int[]) AS given (id, status, total_cents) USING (id)
            """,
            *([row[name] for row in self.rows] for name in ("id", "status", "total_cents")),
        )
        same("orders, and those that are as they should be", tuple(found), (2 * self.count, 2 * self.count))
