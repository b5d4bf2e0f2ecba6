"""pages: one page of a long listing, the first and a deep one, by cursor and by OFFSET."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from sqlalchemy import Select, select, text

from benchmarks import contents
from benchmarks.comparison import Comparison, Contender, Goal, same
from benchmarks.tables import Order
from howdah import AsyncRepository

LIMIT = 50
AT_A_TIME = 50
"""Pages in one run; by OFFSET, which takes a good part of a second, two."""

ORDERS: dict[str, Select[Any]] = {
    "by time": select(Order).order_by(Order.created_at, Order.id),
    "by total": select(Order).order_by(Order.total_cents),
}


class Pages(Comparison):
    name = "pages"
    work = (
        f"a page of {LIMIT} orders, the first and the one behind {{size}} rows, "
        "by (created_at, id) and by the total, which many share"
    )
    unit = "pages"
    size = 1_000_000

    async def set_up(self) -> None:
        # Half as many lie behind the deep page: of a few, PostgreSQL would read and sort all.
        await contents.fill_orders(self.connections.driver, self.count + self.count // 2)
        self.deep = {name: await self._cursor(listing) for name, listing in ORDERS.items()}
        self.expected = {
            (name, depth): await self._by_offset(listing, depth)
            for name, listing in ORDERS.items()
            for depth in (0, self.count)
        }

    async def _cursor(self, listing: Select[Any]) -> str:
        """That of the page behind `size` rows. A cursor holds the values of the row before the page, whatever else is
        in the table: so that row and the next one are put into an empty table for a moment."""
        two = listing.order_by(Order.id).offset(self.count - 1).limit(2).with_only_columns(Order.id)
        async with self.connections.database.session() as session:
            ids = list((await session.scalars(two)).all())
            await session.execute(text("TRUNCATE orders"))
            copy = text("INSERT INTO orders SELECT * FROM orders_before WHERE id = ANY(:ids)")
            await session.execute(copy, {"ids": ids})
            page = await AsyncRepository(session, Order).page(listing, limit=1)
            assert page.next is not None
            return page.next  # and the session rolls back

    async def _by_offset(self, listing: Select[Any], depth: int) -> list[Any]:
        async with self.connections.database.session(read_only=True) as session:
            orders = await AsyncRepository(session, Order).list(listing, offset=depth, limit=LIMIT)
            return [order.id for order in orders]

    def contenders(self) -> list[Contender]:
        def times(count: int, page: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
            async def run() -> Any:
                for _ in range(count):
                    last = await page()
                return last

            return run

        found = []
        for name, listing in ORDERS.items():
            first, deep = partial(self._page, listing, None), partial(self._page, listing, self.deep[name])
            found += [
                Contender(f"first page, {name}", "howdah", times(AT_A_TIME, first), AT_A_TIME),
                Contender(f"deep page, {name}", "howdah", times(AT_A_TIME, deep), AT_A_TIME),
                Contender(f"deep OFFSET, {name}", "reference", times(2, partial(self._offset, listing)), 2, self.few),
            ]
        return found

    def rounds(self, asked: int) -> int:
        self.few = asked
        return 5 * asked  # so small a difference needs more of them

    def goals(self) -> list[Goal]:
        return [Goal(f"deep page, {name}", "of the time", 1.2, f"first page, {name}") for name in ORDERS]

    async def _page(self, listing: Select[Any], after: str | None) -> list[Any]:
        async with self.connections.database.session(read_only=True) as session:
            page = await AsyncRepository(session, Order).page(listing, limit=LIMIT, after=after)
            return [order.id for order in page.items]

    async def _offset(self, listing: Select[Any]) -> list[Any]:
        async with self.connections.sessions() as session:
            ordered = listing.order_by(Order.id).offset(self.count).limit(LIMIT)
            return [order.id for order in await session.scalars(ordered)]

    async def reset(self, contender: Contender) -> None:
        """Nothing is written."""

    async def verify(self, contender: Contender, returned: Any) -> None:
        kind, _, name = contender.name.partition(", ")
        same("ids of the page", returned, self.expected[name, 0 if kind == "first page" else self.count])
