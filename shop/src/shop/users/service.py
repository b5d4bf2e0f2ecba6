"""What is done with users."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, JsonView, JsonViewReader, bulk
from shop.orders.models import OrderStatus
from shop.orders.repository import OrderRepository, Totals
from shop.users.models import User
from shop.users.schemas import UserOut, UserWithOrdersOut


@dataclass(frozen=True, slots=True)
class UserViews:
    """Users as they are shown."""

    with_orders: JsonViewReader[User]
    listed: JsonViewReader[User]


@asynccontextmanager
async def open_user_views(database: Database) -> AsyncIterator[UserViews]:
    async with (
        JsonView(User, UserWithOrdersOut).open(database) as with_orders,
        JsonView(User, UserOut).open(database) as listed,
    ):
        yield UserViews(with_orders, listed)


async def bulk_create_users(db: AsyncSession, users_data: Iterable[Mapping[str, Any]], chunk_size: int = 1000) -> int:
    """Insert many users and return how many; all or none. Nothing of them stays in the session.

    Any iterable will do, and only `chunk_size` rows are held at a time. Addresses are put into lower case. Raises
    `UniqueViolation` and its like, whose `row_index` says which row.
    """
    rows = ({**row, "email": row["email"].lower()} if "email" in row else row for row in users_data)
    return (await bulk.insert_many(db, User, rows, chunk_size=chunk_size, keys=False)).count


async def get_user_order_summary(db: AsyncSession, user_id: UUID) -> dict[str, Any] | None:
    """The user and what they ordered, or None if there is no such user.

    `total_orders`, `total_spent_cents` and `avg_order_cents` are of the orders that stand (neither cancelled nor
    refunded), and so is `by_month`, whose keys are the months in UTC in which any was placed (`2026-11`), in the order
    of time; `by_status` has the number and the total of every status. All come from one statement and so from one
    snapshot; no order is loaded.
    """
    user = await db.get(User, user_id)
    if user is None:
        return None
    by_status: defaultdict[OrderStatus, Totals] = defaultdict(Totals)
    by_month: defaultdict[str, Totals] = defaultdict(Totals)
    for (month, status), totals in (await OrderRepository(db).totals_of(user_id)).items():
        by_status[status] += totals
        if status.counts_as_sale:
            by_month[month] += totals
    standing = sum(by_month.values(), Totals())
    return {
        "user": user,
        "total_orders": standing.orders,
        "total_spent_cents": standing.total_cents,
        "avg_order_cents": standing.total_cents / standing.orders if standing.orders else 0.0,
        "by_status": dict(sorted(by_status.items())),
        "by_month": dict(by_month),
    }
