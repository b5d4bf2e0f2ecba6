"""What goes in and out over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from howdah.fastapi import DecimalDigits, PageParameters, RFC3339Datetime
from shop.ledger.http.transfer_schemas import Key
from shop.ledger.models import AccountPurpose, AccountState, Direction, EntryKind
from shop.web.fields import STORABLE, Currency, ListOrder, Metadata

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
    purpose: AccountPurpose | None = Field(
        default=None, description="What one of the house is for; one of a purpose and currency", examples=[None]
    )
    allows_negative: bool = Field(default=False, strict=True, description="For accounts that money enters the books by")
    overdraft_limit: OverdraftLimit = 0
    balance_limit: BalanceLimit | None = Field(default=None, description="What the balance may not exceed")
    metadata: Metadata = Field(default_factory=dict)


class AccountLineIn(AccountIn):
    idempotency_key: Key


class OpeningRefusal(StrEnum):
    """Why an account isn't opened. The codes are part of the API and don't change."""

    UNKNOWN_USER = "unknown_user"
    PURPOSE_TAKEN = "purpose_taken"
    KEY_REUSED = "key_reused"

    @property
    def explanation(self) -> str:
        return _EXPLANATIONS[self]


_EXPLANATIONS: Final[Mapping[OpeningRefusal, str]] = {
    OpeningRefusal.UNKNOWN_USER: "user_id: there is no such user",
    OpeningRefusal.PURPOSE_TAKEN: "purpose: there is an account for this purpose and currency already",
    OpeningRefusal.KEY_REUSED: "the idempotency key was used for another request",
}


class AccountChange(BaseModel):
    """The fields to change. The others stay as they are."""

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
    purpose: AccountPurpose | None
    state: AccountState
    balance: int = Field(description="In the currency's smallest unit")
    held: int = Field(description="The amount that unexpired pending transfers reserve")
    available: int = Field(description="Balance less `held`; the overdraft limit comes on top")
    allows_negative: bool
    overdraft_limit: int
    balance_limit: int | None
    details: dict[str, str] = Field(serialization_alias="metadata")
    entry_count: int = Field(description="How many entries it has")
    created_at: datetime
    updated_at: datetime


class AccountLineOut(BaseModel):
    """The result of one line of a batch. Lines are numbered from 1."""

    model_config = ConfigDict(extra="forbid")

    line: int
    outcome: Literal["opened", "refused", "invalid"]
    account: AccountOut | None = Field(default=None, description="As it was when it was opened")
    refusal: OpeningRefusal | None = None
    replayed: bool = False
    detail: str | None = Field(default=None, description="Why the account wasn't opened")


class EntryOut(BaseModel):
    model_config = ConfigDict(extra="forbid", from_attributes=True)

    entry_number: int
    transfer_id: UUID
    amount: int = Field(description="Positive for a credit, negative for a debit")
    balance_after: int
    counterparty_account_id: UUID = Field(description="The other account of the transfer")
    kind: EntryKind = Field(description="What created the entry: a transfer, the posting of a hold, or a reversal")
    description: str | None
    details: dict[str, str] = Field(serialization_alias="metadata")
    effective_at: datetime = Field(description="When the transfer takes effect")
    group_id: UUID | None = Field(description="Shared by transfers that were posted together or not at all")
    reverses_id: UUID | None = Field(description="Of a reversal: the transfer that it reverses")
    created_at: datetime = Field(description="When it was posted")


class EntryPageParameters(PageParameters):
    """Filters, all of which must match."""

    order: ListOrder = Field(default="oldest", description="The order of the entry numbers (`entry_number`)")
    created_from: RFC3339Datetime | None = Field(default=None, description="Posted from then on")
    created_before: RFC3339Datetime | None = Field(default=None, description="Posted before then")
    effective_from: RFC3339Datetime | None = Field(default=None, description="Effective from then on")
    effective_before: RFC3339Datetime | None = Field(default=None, description="Effective before then")
    counterparty_account_id: UUID | None = Field(default=None, description="The other account of the transfer")
    direction: Direction | None = Field(default=None, description="`debit`: money went out; `credit`: money came in")
    kind: EntryKind | None = None


class AccountPageParameters(PageParameters):
    user_id: UUID | None = None
    currency: Currency | None = None
    purpose: AccountPurpose | None = None


class BalanceParameters(BaseModel):
    """One of these, or none for the balance now."""

    model_config = ConfigDict(extra="forbid")

    at: RFC3339Datetime | None = Field(default=None, description="After the last entry posted up to this time")
    entry_number: Annotated[int, Field(ge=0, le=2**62), DecimalDigits] | None = Field(
        default=None, description="After this entry"
    )
    effective_at: RFC3339Datetime | None = Field(
        default=None, description="The sum of the entries that take effect up to this time, whenever they were posted"
    )

    @model_validator(mode="after")
    def _one_at_most(self) -> Self:
        if len(self.model_fields_set) > 1:
            raise ValueError("at, entry_number and effective_at exclude each other")
        return self


class BalanceOut(BaseModel):
    model_config = ConfigDict(extra="forbid")

    account_id: UUID
    at: datetime | None
    effective_at: datetime | None
    balance: int
    held: int | None = Field(description="Reserved by pending transfers; null unless it is the current balance")
    available: int | None = Field(description="Balance less `held`; null unless it is the current balance")
    entry_number: int | None = Field(description="The number of its last entry; null for a balance by `effective_at`")
