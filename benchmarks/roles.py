"""roles: the time that a role of a pool, and a role with a setting of a transaction, add to reading one row."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Final
from uuid import UUID

from sqlalchemy import make_url, select
from sqlalchemy.ext.asyncio import AsyncConnection

from benchmarks import table_data
from benchmarks.comparison import Comparison, Contender, Goal, check_equal
from benchmarks.schemas import OrderOut
from benchmarks.tables import Order
from howdah import Database, JsonView, JsonViewReader
from howdah.tenancy import login_role_statements

_LOGIN: Final = "howdah_benchmarks_login"
_ROLE: Final = "howdah_benchmarks_role"
_SETTING: Final = "app.user_id"

_OrderView: Final = JsonView(Order, OrderOut)


class Roles(Comparison):
    name = "roles"
    description = (
        "read {size} orders by their keys, one by one: as the owner, through a pool whose connections have a role, and "
        "with a role and a setting for each transaction; the table has a policy for the role"
    )
    unit = "reads"
    size = 200
    quick_size = 100

    async def set_up(self) -> None:
        self._stack = AsyncExitStack()
        driver = self.connections.driver
        self.ids = table_data.shuffle(await table_data.fill_orders(driver, self.count))
        for statement in (
            *login_role_statements(_LOGIN, roles=[_ROLE]),
            f"GRANT SELECT ON orders TO {_ROLE}",
            "ALTER TABLE orders ENABLE ROW LEVEL SECURITY",
            f"CREATE POLICY benchmark ON orders TO {_ROLE} USING (current_setting('{_SETTING}', true) IS NULL OR "
            f"current_setting('{_SETTING}') = '1')",
        ):
            await driver.execute(statement)
        url = make_url(self.connections.url).set(username=_LOGIN)
        self.owner = self.connections.database
        self.pool = await self._stack.enter_async_context(Database(url, role=_ROLE))
        login = await self._stack.enter_async_context(Database(url))
        self.scoped = login.with_settings({_SETTING: 1}, role=_ROLE)
        self.owner_view = await self._stack.enter_async_context(_OrderView.open(self.owner))
        view = await self._stack.enter_async_context(_OrderView.open(login))
        self.scoped_view = view.scoped(self.scoped)

    async def tear_down(self) -> None:
        await self._stack.aclose()

    def contenders(self) -> list[Contender]:
        return [
            Contender("read, owner", "baseline", self._times(_read, self.owner), self.count),
            Contender("read, Database(role)", "howdah", self._times(_read, self.pool), self.count),
            Contender("read, with_settings", "howdah", self._times(_read, self.scoped), self.count),
            Contender("session, owner", "baseline", self._times(_read_in_session, self.owner), self.count),
            Contender("session, Database(role)", "howdah", self._times(_read_in_session, self.pool), self.count),
            Contender("session, with_settings", "howdah", self._times(_read_in_session, self.scoped), self.count),
            Contender("view, owner", "baseline", self._times(_read_view, self.owner_view), self.count),
            Contender("view, with_settings", "howdah", self._times(_read_view, self.scoped_view), self.count),
        ]

    def goals(self) -> list[Goal]:
        return [
            Goal("read, Database(role)", "of the time", 1.1, "read, owner"),
            Goal("session, Database(role)", "of the time", 1.1, "session, owner"),
            Goal("session, with_settings", "of the time", 1.25, "session, owner"),
            # BEGIN and COMMIT are round trips of their own, instead of one for the statement
            Goal("read, with_settings", "of the time", 3.0, "read, owner"),
            # one round trip, but PostgreSQL executes two statements
            Goal("view, with_settings", "of the time", 2.0, "view, owner"),
        ]

    def rounds(self) -> int:
        return 6 * self.requested_rounds

    def _times(self, read: Callable[[Any, UUID], Awaitable[int]], source: Any) -> Callable[[], Awaitable[int]]:
        async def run() -> int:
            total = 0
            for id_ in self.ids:
                total += await read(source, id_)
            return total

        return run

    async def reset(self, contender: Contender) -> None:
        """Nothing is written, so there is nothing to restore."""

    async def verify(self, contender: Contender, returned: Any) -> None:
        check_equal("number of rows", returned, self.count)


async def _read(database: Database, id_: UUID) -> int:
    async def work(connection: AsyncConnection) -> int:
        return len((await connection.execute(select(Order.total_cents).where(Order.id == id_))).all())

    return await database.read(work)


async def _read_in_session(database: Database, id_: UUID) -> int:
    async with database.session() as session:
        return len((await session.execute(select(Order.total_cents).where(Order.id == id_))).all())


async def _read_view(view: JsonViewReader[Order], id_: UUID) -> int:
    return 1 if await view.get(id_) else 0
