"""The bodies of requests and responses, and the parameters of lists."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from howdah import Filter, Filters, Sort
from howdah.fastapi import DecimalDigits, ExportFormat, PageParameters, RFC3339Datetime, VisibleText
from shop.orders.models import Order, OrderStatus
from shop.web.fields import EXAMPLE_ID, OTHER_EXAMPLE_ID, Currency

MAX_CHANGED_ORDERS: Final = 100_000
# An id takes 40 bytes in JSON: 36 characters, two quotation marks, a comma and a space.
MAX_STATUS_CHANGE_BYTES: Final = 40 * MAX_CHANGED_ORDERS + 65_536

Total = Annotated[int, Field(ge=0, le=2**63 - 1), DecimalDigits]


class OrderItemIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sku: Annotated[str, VisibleText(max_length=64)] = Field(examples=["85048"])
    description: Annotated[str, VisibleText(max_length=500, min_length=0)] | None = Field(
        default=None, examples=["15CM CHRISTMAS GLASS BALL 20 LIGHTS"]
    )
    # The largest total, 1,000 items × 1,000,000 × 1,000,000,000, is below 2**63, the limit of bigint.
    quantity: int = Field(ge=1, le=1_000_000, strict=True, examples=[12])
    unit_price_cents: int = Field(ge=0, le=1_000_000_000, strict=True, examples=[695])


class OrderIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    user_id: UUID | None = Field(
        default=None, examples=[EXAMPLE_ID], description="By default the user who is signed in"
    )
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


class OrderFilters(Filters):
    user_id: Annotated[UUID | None, Filter(Order.user_id)] = None
    status: Annotated[OrderStatus | None, Filter(Order.status)] = None
    placed_from: Annotated[RFC3339Datetime | None, Filter(Order.placed_at, ">=")] = None
    placed_before: Annotated[RFC3339Datetime | None, Filter(Order.placed_at, "<")] = None
    total_from: Annotated[Total | None, Filter(Order.total_cents, ">=")] = Field(
        default=None, description="At least this, in the currency's smallest unit"
    )
    total_to: Annotated[Total | None, Filter(Order.total_cents, "<=")] = Field(
        default=None, description="At most this, in the currency's smallest unit"
    )
    sort: Annotated[
        Literal["placed_at", "-placed_at", "total_cents", "-total_cents"],
        Sort({"placed_at": Order.placed_at, "total_cents": Order.total_cents}),
    ] = "placed_at"


class OrderPageParameters(OrderFilters, PageParameters):
    pass


class OrderExportParameters(OrderFilters):
    format: ExportFormat = ExportFormat.NDJSON
    raw: bool = Field(
        default=False,
        description="Whether a text in CSV that a spreadsheet would execute, such as `=1+1`, is written without an "
        "apostrophe in front",
    )


class StatusChangeIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    order_ids: list[UUID] = Field(min_length=1, max_length=MAX_CHANGED_ORDERS, examples=[[EXAMPLE_ID]])
    status: OrderStatus = Field(examples=["shipped"])


class StatusChangeOut(BaseModel):
    model_config = ConfigDict(extra="forbid")

    updated: int
    missing: list[UUID] = Field(description="The ids that don't exist, in the order of the request")


class PaymentIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    from_account_id: UUID = Field(examples=[EXAMPLE_ID])
    to_account_id: UUID = Field(examples=[OTHER_EXAMPLE_ID])
