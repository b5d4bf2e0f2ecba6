"""What goes in and out over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from shop.accounts.models import AccountState
from shop.orders.schemas import Currency
from shop.web.fields import STORABLE, Metadata

AccountName = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=100, pattern=STORABLE),
    Field(examples=["Current account"]),
]
OverdraftLimit = Annotated[
    int, Field(ge=0, le=2**62, strict=True, description="How far below zero the balance may go", examples=[0])
]
BalanceLimit = Annotated[int, Field(ge=0, le=2**62, strict=True, examples=[1_000_000])]


class AccountIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: AccountName
    currency: Currency
    user_id: UUID | None = Field(default=None, description="Whose it is; null for one of the house")
    allows_negative: bool = Field(default=False, strict=True, description="For accounts that money enters the books by")
    overdraft_limit: OverdraftLimit = 0
    balance_limit: BalanceLimit | None = Field(default=None, description="What the balance may not exceed")
    metadata: Metadata = Field(default_factory=dict)


class AccountChange(BaseModel):
    """What isn't named stays as it is."""

    model_config = ConfigDict(extra="forbid")

    # a factory makes the field optional without making null one of its values
    name: AccountName = Field(default_factory=str)
    state: AccountState = Field(default_factory=lambda: AccountState.OPEN, examples=["open"])
    overdraft_limit: OverdraftLimit = Field(default_factory=int)
    balance_limit: BalanceLimit | None = None
    metadata: Metadata = Field(default_factory=dict)


class AccountOut(BaseModel):
    model_config = ConfigDict(extra="forbid", from_attributes=True)

    id: UUID
    user_id: UUID | None
    name: str
    currency: str
    state: AccountState
    balance: int = Field(description="In the currency's smallest unit")
    allows_negative: bool
    overdraft_limit: int
    balance_limit: int | None
    details: dict[str, str] = Field(serialization_alias="metadata")
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
