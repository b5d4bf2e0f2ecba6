"""What goes in and out over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, EmailStr, Field, StringConstraints

from howdah.fastapi import PageParameters, RFC3339Datetime
from shop.orders.models import OrderStatus
from shop.web.fields import STORABLE

Email = Annotated[EmailStr, AfterValidator(str.lower), Field(max_length=255, examples=["ada@example.com"])]
Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=100, pattern=STORABLE),
    Field(examples=["Ada"]),
]
Country = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100, pattern=STORABLE)]


class UserIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    email: Email
    name: Name
    country: Country | None = Field(default=None, examples=["United Kingdom"])


class UserChange(BaseModel):
    """What isn't named stays as it is."""

    model_config = ConfigDict(extra="forbid")

    # a factory makes the field optional without making null one of its values
    email: Email = Field(default_factory=str)
    name: Name = Field(default_factory=str)
    country: Country | None = None


class UserOut(BaseModel):
    model_config = ConfigDict(extra="forbid", from_attributes=True)

    id: UUID
    email: str
    name: str
    country: str | None
    created_at: datetime
    updated_at: datetime
    version: int


class UserOrderOut(BaseModel):
    model_config = ConfigDict(extra="forbid", from_attributes=True)

    id: UUID
    reference: str | None
    status: OrderStatus
    currency: str
    total_cents: int
    placed_at: datetime


class UserWithOrdersOut(UserOut):
    orders: list[UserOrderOut] = Field(description="In the order of placing")


class UserPageParameters(PageParameters):
    email_prefix: Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=STORABLE)] | None = Field(
        default=None, description="What the address begins with, in whatever case"
    )
    country: Annotated[str, StringConstraints(max_length=100, pattern=STORABLE)] | None = None
    created_from: RFC3339Datetime | None = Field(default=None, description="From then on")
    created_before: RFC3339Datetime | None = Field(default=None, description="Before then")


class BulkCreatedOut(BaseModel):
    model_config = ConfigDict(extra="forbid")

    created: int = Field(examples=[1000])


class TotalsOut(BaseModel):
    model_config = ConfigDict(extra="forbid", from_attributes=True)

    orders: int
    total_cents: int


class OrderSummaryOut(BaseModel):
    """The totals are of orders that stand: not cancelled, not refunded; `by_month`, too. `by_status` has them all."""

    model_config = ConfigDict(extra="forbid", from_attributes=True)

    user: UserOut
    total_orders: int = Field(examples=[3])
    total_spent_cents: int = Field(examples=[4500])
    avg_order_cents: float = Field(examples=[1500.0])
    by_status: dict[OrderStatus, TotalsOut] = Field(
        examples=[{"cancelled": {"orders": 1, "total_cents": 700}, "paid": {"orders": 3, "total_cents": 4500}}]
    )
    by_month: dict[str, TotalsOut] = Field(
        description="By the month of placing, in UTC; in the order of time, without months in which nothing stands",
        examples=[{"2026-09": {"orders": 1, "total_cents": 500}, "2026-11": {"orders": 2, "total_cents": 4000}}],
    )
