"""The bodies of requests and responses, and the parameters of lists."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from howdah.fastapi import DecimalDigits, PageParameters, RFC3339Datetime
from shop.orders.models import OrderStatus
from shop.web.fields import EXAMPLE_ID, OTHER_EXAMPLE_ID, STORABLE, Currency, ExportFormat

Total = Annotated[int, Field(ge=0, le=2**63 - 1), DecimalDigits]


class OrderItemIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sku: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64, pattern=STORABLE)] = (
        Field(examples=["85048"])
    )
    description: Annotated[str, StringConstraints(max_length=500, pattern=STORABLE)] | None = Field(
        default=None, examples=["15CM CHRISTMAS GLASS BALL 20 LIGHTS"]
    )
    # The largest total, 1,000 items × 1,000,000 × 1,000,000,000, is below 2**63, the limit of bigint.
    quantity: int = Field(ge=1, le=1_000_000, strict=True, examples=[12])
    unit_price_cents: int = Field(ge=0, le=1_000_000_000, strict=True, examples=[695])


class OrderIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    user_id: UUID = Field(examples=[EXAMPLE_ID])
    currency: Currency = "GBP"
    items: list[OrderItemIn] = Field(min_length=1, max_length=1000)


class OrderItemOut(BaseModel):
    model_config = ConfigDict(extra="forbid", from_attributes=True)

    line_no: int
    sku: str
    description: str | None
    quantity: int
    unit_price_cents: int


class OrderOut(BaseModel):
    model_config = ConfigDict(extra="forbid", from_attributes=True)

    id: UUID
    user_id: UUID
    reference: str | None
    status: OrderStatus
    currency: str
    total_cents: int
    placed_at: datetime
    cancels_id: UUID | None
    transfer_id: UUID | None
    created_at: datetime
    updated_at: datetime
    version: int


class OrderWithItemsOut(OrderOut):
    items: list[OrderItemOut]


class OrderFilters(BaseModel):
    model_config = ConfigDict(extra="forbid")

    user_id: UUID | None = None
    status: OrderStatus | None = None
    placed_from: RFC3339Datetime | None = Field(default=None, description="Placed at this time or later")
    placed_before: RFC3339Datetime | None = Field(default=None, description="Placed before this time")
    total_from: Total | None = Field(default=None, description="At least this, in the currency's smallest unit")
    total_to: Total | None = Field(default=None, description="At most this, in the currency's smallest unit")


class OrderPageParameters(OrderFilters, PageParameters):
    pass


class OrderExportParameters(OrderFilters):
    format: ExportFormat = ExportFormat.NDJSON


class StatusChangeIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    order_ids: list[UUID] = Field(min_length=1, max_length=100_000, examples=[[EXAMPLE_ID]])
    status: OrderStatus = Field(examples=["shipped"])


class StatusChangeOut(BaseModel):
    model_config = ConfigDict(extra="forbid")

    updated: int
    missing: list[UUID] = Field(description="The ids that don't exist, in the order of the request")


class PaymentIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    from_account_id: UUID = Field(examples=[EXAMPLE_ID])
    to_account_id: UUID = Field(examples=[OTHER_EXAMPLE_ID])
