"""Find orders, and sum their totals."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, select

from howdah import AsyncRepository
from shop.orders.models import Order, OrderStatus


@dataclass(frozen=True, slots=True)
class Totals:
    orders: int = 0
    total_cents: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(self.orders + other.orders, self.total_cents + other.total_cents)


class OrderRepository(AsyncRepository[Order]):
    async def sum_totals(self, user_id: UUID) -> dict[tuple[str, OrderStatus], Totals]:
        """The number and the total of a user's orders, by month and status. Months without orders are left out.

        A month is in UTC, as `YYYY-MM`. The result is in the order of the months.
        """
        # The caller sums these totals by month and by status. With GROUPING SETS the query would take twice as long.
        month = func.date_trunc("month", func.timezone("UTC", Order.placed_at)).label("month")
        totals = (
            select(month, Order.status, func.count(), func.sum(Order.total_cents))
            .where(Order.user_id == user_id)
            .group_by(month, Order.status)
            .order_by(month, Order.status)
        )
        rows = await self.session.execute(totals)
        return {
            (placed.isoformat()[:7], status): Totals(orders, int(total_cents))
            for placed, status, orders, total_cents in rows
        }


def select_orders(
    *,
    user_id: UUID | None = None,
    status: OrderStatus | None = None,
    placed_from: datetime | None = None,
    placed_before: datetime | None = None,
    total_from: int | None = None,
    total_to: int | None = None,
) -> Select[Any]:
    """A list query: orders by the time when they were placed. None means no filter."""
    selected = select(Order).order_by(Order.placed_at, Order.id)
    if user_id is not None:
        selected = selected.where(Order.user_id == user_id)
    if status is not None:
        selected = selected.where(Order.status == status)
    if placed_from is not None:
        selected = selected.where(Order.placed_at >= placed_from)
    if placed_before is not None:
        selected = selected.where(Order.placed_at < placed_before)
    if total_from is not None:
        selected = selected.where(Order.total_cents >= total_from)
    if total_to is not None:
        selected = selected.where(Order.total_cents <= total_to)
    return selected
