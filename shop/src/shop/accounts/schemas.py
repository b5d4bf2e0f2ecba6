"""What goes in and out over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from shop.orders.schemas import Currency
from shop.web.fields import STORABLE


class AccountIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100, pattern=STORABLE)] = (
        Field(examples=["Current account"])
    )
    currency: Currency
    user_id: UUID | None = Field(default=None, description="Whose it is; null for one of the house")
    allows_negative: bool = Field(default=False, strict=True, description="For accounts that money enters the books by")


class AccountOut(BaseModel):
    model_config = ConfigDict(extra="forbid", from_attributes=True)

    id: UUID
    user_id: UUID | None
    name: str
    currency: str
    balance: int = Field(description="In the currency's smallest unit")
    allows_negative: bool
    version: int = Field(description="How many entries it has")
    created_at: datetime
    updated_at: datetime


class EntryOut(BaseModel):
    model_config = ConfigDict(extra="forbid", from_attributes=True)

    version: int
    transfer_id: UUID
    amount: int = Field(description="What came in; negative for what went out")
    balance_after: int
    created_at: datetime


class EntryPageOut(BaseModel):
    model_config = ConfigDict(extra="forbid", from_attributes=True)

    items: list[EntryOut]
    next: str | None = Field(description="For `after`; null on the last page")
    previous: str | None = Field(description="For `before`; null on the first page")


class BalanceOut(BaseModel):
    """The balance after the last entry up to `at`."""

    model_config = ConfigDict(extra="forbid")

    account_id: UUID
    at: datetime
    balance: int
    version: int
