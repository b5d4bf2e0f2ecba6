"""pages: one page of a long list, the first and a deep one, with a keyset cursor and with OFFSET."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from sqlalchemy import Select, select, text

from benchmarks import table_data
from benchmarks.comparison import Comparison, Contender, Goal, check_equal
from benchmarks.tables import Order
from howdah import AsyncRepository

LIMIT = 50
PAGES_PER_RUN = 50
OFFSET_PAGES_PER_RUN = 2
"""A deep page with OFFSET takes a large part of a second."""

ORDERS: dict[str, Select[Any]] = {
    "by time": select(Order).order_by(Order.created_at, Order.id),
    "by total": select(Order).order_by(Order.total_cents),
}


class Pages(Comparison):
    name = "pages"
    description = (
        f"read the first page of {LIMIT} orders, and the page after {{size}} rows; ordered by (created_at, id), and by "
        "the total, which many orders share"
    )
    unit = "pages"
    size = 1_000_000
    quick_size = 20_000

    async def set_up(self) -> None:
        # Half as many rows follow the deep page. If only a few rows followed, PostgreSQL would sort all of them.
        await table_data.fill_orders(self.connections.driver, self.count + self.count // 2)
        self.deep = {name: await self._cursor(query) for name, query in ORDERS.items()}
        self.expected = {
            (name, depth): await self._ids_by_offset(query, depth)
            for name, query in ORDERS.items()
            for depth in (0, self.count)
        }

    async def _cursor(self, query: Select[Any]) -> str:
        """The cursor of the page after `size` rows.

        A cursor contains only the values of the last row before the page. So the cursor can be taken from a table that
        has only that row and the next one, and the earlier pages need not be read.
        """
        two = query.order_by(Order.id).offset(self.count - 1).limit(2).with_only_columns(Order.id)
        async with self.connections.database.session() as session:
            ids = list((await session.scalars(two)).all())
            await session.execute(text("TRUNCATE orders"))
            copy = text("INSERT INTO orders SELECT * FROM orders_before WHERE id = ANY(:ids)")
            await session.execute(copy, {"ids": ids})
            page = await AsyncRepository(session, Order).page(query, limit=1)
            assert page.next is not None
            return page.next  # without a commit, the session rolls back

    async def _ids_by_offset(self, query: Select[Any], depth: int) -> list[Any]:
        async with self.connections.database.session(read_only=True) as session:
            orders = await AsyncRepository(session, Order).list(query, offset=depth, limit=LIMIT)
            return [order.id for order in orders]

    def contenders(self) -> list[Contender]:
        def times(count: int, page: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
            async def run() -> Any:
                for _ in range(count):
                    last = await page()
                return last

            return run

        contenders = []
        for name, query in ORDERS.items():
            first, deep = partial(self._read_page, query, None), partial(self._read_page, query, self.deep[name])
            contenders += [
                Contender(f"first page, {name}", "howdah", times(PAGES_PER_RUN, first), PAGES_PER_RUN),
                Contender(f"deep page, {name}", "howdah", times(PAGES_PER_RUN, deep), PAGES_PER_RUN),
                Contender(
                    f"deep OFFSET, {name}",
                    "reference",
                    times(OFFSET_PAGES_PER_RUN, partial(self._read_page_by_offset, query)),
                    OFFSET_PAGES_PER_RUN,
                    self.requested_rounds,
                ),
            ]
        return contenders

    def rounds(self) -> int:
        return 5 * self.requested_rounds  # the differences are small

    def goals(self) -> list[Goal]:
        return [Goal(f"deep page, {name}", "of the time", 1.2, f"first page, {name}") for name in ORDERS]

    async def _read_page(self, query: Select[Any], after: str | None) -> list[Any]:
        async with self.connections.database.session(read_only=True) as session:
            page = await AsyncRepository(session, Order).page(query, limit=LIMIT, after=after)
            return [order.id for order in page.items]

    async def _read_page_by_offset(self, query: Select[Any]) -> list[Any]:
        async with self.connections.sessions() as session:
            ordered = query.order_by(Order.id).offset(self.count).limit(LIMIT)
            return [order.id for order in await session.scalars(ordered)]

    async def reset(self, contender: Contender) -> None:
        """Nothing is written, so there is nothing to restore."""

    async def verify(self, contender: Contender, returned: Any) -> None:
        kind, _, name = contender.name.partition(", ")
        check_equal("ids of the page", returned, self.expected[name, 0 if kind == "first page" else self.count])
