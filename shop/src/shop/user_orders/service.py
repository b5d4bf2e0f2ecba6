"""Users with their orders, and the order summary of a user."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from howdah import JsonView
from shop.orders.models import OrderStatus
from shop.orders.repository import OrderRepository, Totals
from shop.user_orders.schemas import UserWithOrdersOut
from shop.users.models import User

USER_WITH_ORDERS_VIEW: Final = JsonView(User, UserWithOrdersOut)


async def get_user_order_summary(db: AsyncSession, user_id: UUID) -> dict[str, Any] | None:
    """The user and the totals of their orders. None if there is no such user.

    `total_orders`, `total_spent_cents`, `avg_order_cents` and `by_month` leave out cancelled and refunded orders.
    `by_status` has all orders. The keys of `by_month` are months in UTC (`2026-11`), oldest first. Months without
    orders are left out. All totals come from one statement, and so from one snapshot. No order is loaded.
    """
    user = await db.get(User, user_id)
    if user is None:
        return None
    by_status: defaultdict[OrderStatus, Totals] = defaultdict(Totals)
    by_month: defaultdict[str, Totals] = defaultdict(Totals)
    for (month, status), totals in (await OrderRepository(db).sum_totals(user_id)).items():
        by_status[status] += totals
        if status.counts_as_sale:
            by_month[month] += totals
    sales = sum(by_month.values(), Totals())
    return {
        "user": user,
        "total_orders": sales.orders,
        "total_spent_cents": sales.total_cents,
        "avg_order_cents": sales.total_cents / sales.orders if sales.orders else 0.0,
        "by_status": dict(sorted(by_status.items())),
        "by_month": dict(by_month),
    }
