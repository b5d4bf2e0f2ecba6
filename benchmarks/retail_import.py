"""import: import a retail file into Shop's tables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import make_url

from benchmarks.comparison import Comparison, Contender, Goal, Measured, check_equal
from benchmarks.postgres import connect_driver
from benchmarks.processes import run_module

if TYPE_CHECKING:
    from benchmarks.postgres import Connections

FILE_VARIABLE: Final = "HOWDAH_RETAIL_FILE"
SHOP, COPY = "shop import", "asyncpg COPY of ready-made tuples"


class RetailImport(Comparison):
    name = "import"
    description = (
        "import the {size} accepted lines of a retail file into Shop's tables; the peak memory includes the interpreter"
    )
    unit = "lines"
    has_warm_up = False

    def __init__(self, connections: Connections, size: int, *, rounds: int = 5, is_quick: bool = False) -> None:
        super().__init__(connections, size, rounds=rounds, is_quick=is_quick)
        url = make_url(connections.url)
        self.database = f"{url.database}_shop"
        self.url = url.set(database=self.database).render_as_string(hide_password=False)

    async def skip_reason(self) -> str | None:
        return None if FILE_VARIABLE in os.environ else f"set {FILE_VARIABLE} to the path of the Online Retail II file"

    async def set_up(self) -> None:
        from shop.importing.retail import read_retail

        self.file = Path(os.environ[FILE_VARIABLE])
        self.summary = read_retail(self.file).summary
        self.count = self.summary.sale_lines + self.summary.cancellation_lines

    def contenders(self) -> list[Contender]:
        return [
            Contender(SHOP, "howdah", self.run_shop, self.count),
            Contender(COPY, "baseline", self.run_copy, self.count),
        ]

    def goals(self) -> list[Goal]:
        return [Goal(SHOP, "times as fast", 0.5, COPY), Goal(SHOP, "MB", 300)]

    def rounds(self) -> int:
        return min(self.requested_rounds, 3)

    async def reset(self, contender: Contender) -> None:
        await self.connections.driver.execute(f'DROP DATABASE IF EXISTS "{self.database}" WITH (FORCE)')
        await self.connections.driver.execute(f'CREATE DATABASE "{self.database}"')
        await run_module("benchmarks.retail_loads", "migrate", self.url, str(self.file))

    async def run_shop(self) -> Measured:
        return await run_module("benchmarks.retail_loads", "shop", self.url, str(self.file))

    async def run_copy(self) -> Measured:
        return await run_module("benchmarks.retail_loads", "copy", self.url, str(self.file))

    async def verify(self, contender: Contender, returned: Any) -> None:
        expected = self.summary
        async with connect_driver(self.url) as connection:
            found = await connection.fetchrow(
                """
                SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM orders), (SELECT count(*) FROM order_items),
                    (SELECT sum(total_cents) FROM orders), (SELECT sum(quantity * unit_price_cents) FROM order_items),
                    (SELECT count(cancels_id) FROM orders), (SELECT count(*) FROM orders WHERE status = 'cancelled'),
                    (SELECT max(version) FROM orders)
                """
            )
        cents = expected.sales_cents + expected.cancellations_cents
        orders = expected.sales + expected.cancellations
        check_equal(
            "users, orders, items, sum of orders, sum of items, linked, cancelled, version",
            tuple(found),
            (expected.customers, orders, self.count, cents, cents, expected.linked, expected.cancelled, 1),
        )

    async def tear_down(self) -> None:
        await self.connections.driver.execute(f'DROP DATABASE IF EXISTS "{self.database}" WITH (FORCE)')
