"""The bodies of responses."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from shop.orders.models import OrderStatus
from shop.users.schemas import UserOut


class UserOrderOut(BaseModel):
    model_config = ConfigDict(extra="forbid", from_attributes=True)

    id: UUID
    reference: str | None
    status: OrderStatus
    currency: str
    total_cents: int
    placed_at: datetime


class UserWithOrdersOut(UserOut):
    orders: list[UserOrderOut] = Field(description="By the time when they were placed")


class TotalsOut(BaseModel):
    model_config = ConfigDict(extra="forbid", from_attributes=True)

    orders: int
    total_cents: int


class OrderSummaryOut(BaseModel):
    """The totals and `by_month` leave out cancelled and refunded orders. `by_status` has all orders."""

    model_config = ConfigDict(extra="forbid", from_attributes=True)

    user: UserOut
    total_orders: int = Field(examples=[3])
    total_spent_cents: int = Field(examples=[4500])
    avg_order_cents: float = Field(examples=[1500.0])
    by_status: dict[OrderStatus, TotalsOut] = Field(
        examples=[{"cancelled": {"orders": 1, "total_cents": 700}, "paid": {"orders": 3, "total_cents": 4500}}]
    )
    by_month: dict[str, TotalsOut] = Field(
        description="The totals of each month in UTC, oldest first. Months without orders are left out",
        examples=[{"2026-09": {"orders": 1, "total_cents": 500}, "2026-11": {"orders": 2, "total_cents": 4000}}],
    )
