"""Finding and adding up orders."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, select

from howdah import AsyncRepository
from shop.orders.models import Order, OrderStatus


@dataclass(frozen=True, slots=True)
class StatusTotals:
    orders: int
    total_cents: int


class OrderRepository(AsyncRepository[Order]):
    async def get_with_items(self, order_id: UUID) -> Order | None:
        """The order with its items, in their order."""
        return await self.get(order_id, load=[Order.items])

    async def totals_by_status(self, user_id: UUID) -> dict[OrderStatus, StatusTotals]:
        """The number and the total of a user's orders of each status that occurs."""
        totals = (
            select(Order.status, func.count(), func.sum(Order.total_cents))
            .where(Order.user_id == user_id)
            .group_by(Order.status)
            .order_by(Order.status)
        )
        rows = await self.session.execute(totals)
        return {status: StatusTotals(orders, int(total_cents)) for status, orders, total_cents in rows}


def matching(
    *,
    user_id: UUID | None = None,
    status: OrderStatus | None = None,
    placed_from: datetime | None = None,
    placed_before: datetime | None = None,
) -> Select[Any]:
    """Orders in the order of placing. None leaves a filter out."""
    found = select(Order).order_by(Order.placed_at, Order.id)
    if user_id is not None:
        found = found.where(Order.user_id == user_id)
    if status is not None:
        found = found.where(Order.status == status)
    if placed_from is not None:
        found = found.where(Order.placed_at >= placed_from)
    if placed_before is not None:
        found = found.where(Order.placed_at < placed_before)
    return found
