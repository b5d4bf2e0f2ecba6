"""import: a retail file into Shop's tables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from sqlalchemy import make_url

from benchmarks.comparison import Comparison, Contender, Goal, Measured, same
from benchmarks.processes import measured
from benchmarks.server import driver

FILE: Final = "HOWDAH_RETAIL_FILE"
SHOP, COPY = "shop import", "asyncpg COPY of ready-made tuples"


class RetailImport(Comparison):
    name = "import"
    work = "load the {size} accepted lines of a retail file into Shop's tables; peak of the whole process"
    unit = "lines"
    warm_up = False

    async def left_out(self) -> str | None:
        return None if FILE in os.environ else f"{FILE} doesn't name the Online Retail II file"

    async def set_up(self) -> None:
        from shop.importing.retail import read_retail

        self.file = Path(os.environ[FILE])
        self.summary = read_retail(self.file).summary
        self.count = self.summary.sale_lines + self.summary.cancellation_lines
        url = make_url(self.connections.url)
        self.database = f"{url.database}_shop"
        self.url = url.set(database=self.database).render_as_string(hide_password=False)

    def contenders(self) -> list[Contender]:
        return [Contender(SHOP, "howdah", self.shop, self.count), Contender(COPY, "limit", self.copy, self.count)]

    def goals(self) -> list[Goal]:
        return [Goal(SHOP, "times as fast", 0.5, COPY), Goal(SHOP, "MB", 300)]

    def rounds(self, asked: int) -> int:
        return min(asked, 3)

    async def reset(self, contender: Contender) -> None:
        await self.connections.driver.execute(f'DROP DATABASE IF EXISTS "{self.database}" WITH (FORCE)')
        await self.connections.driver.execute(f'CREATE DATABASE "{self.database}"')
        await measured("benchmarks.retail_loads", "migrate", self.url, str(self.file))

    async def shop(self) -> Measured:
        return await measured("benchmarks.retail_loads", "shop", self.url, str(self.file))

    async def copy(self) -> Measured:
        return await measured("benchmarks.retail_loads", "copy", self.url, str(self.file))

    async def verify(self, contender: Contender, returned: Any) -> None:
        wanted = self.summary
        async with driver(self.url) as connection:
            found = await connection.fetchrow(
                """
                SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM orders), (SELECT count(*) FROM order_items),
                    (SELECT sum(total_cents) FROM orders), (SELECT sum(quantity * unit_price_cents) FROM order_items),
                    (SELECT count(cancels_id) FROM orders), (SELECT count(*) FROM orders WHERE status = 'cancelled'),
                    (SELECT max(version) FROM orders)
                """
            )
        cents = wanted.sales_cents + wanted.cancellations_cents
        orders = wanted.sales + wanted.cancellations
        same(
            "users, orders, items, sum of orders, sum of items, linked, cancelled, version",
            tuple(found),
            (wanted.customers, orders, self.count, cents, cents, wanted.linked, wanted.cancelled, 1),
        )
        await self.connections.driver.execute(f'DROP DATABASE "{self.database}" WITH (FORCE)')
