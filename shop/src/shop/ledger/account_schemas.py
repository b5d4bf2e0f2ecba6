"""Request and response schemas of `/accounts`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator

from howdah.fastapi import DecimalDigits, PageParameters, RFC3339Datetime, VisibleText
from shop.ledger.models import AccountPurpose, AccountState, Direction, EntryKind
from shop.ledger.transfer_schemas import Key
from shop.web.fields import Currency, ListOrder, Metadata

AccountName = Annotated[str, VisibleText(max_length=100), Field(examples=["Current account"])]
OverdraftLimit = Annotated[
    int, Field(ge=0, le=2**62, strict=True, description="How far the available balance may go below zero", examples=[0])
]
BalanceLimit = Annotated[int, Field(ge=0, le=2**62, strict=True, examples=[1_000_000])]


class AccountIn(BaseModel):
    """A new account."""

    model_config = ConfigDict(extra="forbid")

    name: AccountName
    currency: Currency
    user_id: UUID | None = Field(
        default=None,
        description="The owner of the account; null for a system account. Customers open accounts only for themselves, "
        "and may leave it out",
    )
    purpose: AccountPurpose | None = Field(
        default=None,
        description="The purpose of a system account. There is at most one account for each purpose and currency",
        examples=[None],
    )
    allows_negative: bool = Field(
        default=False,
        strict=True,
        description="Whether the balance may go below zero without limit. This is for accounts through which money "
        "enters or leaves the ledger. The default is true for the purposes `cash_in` and `cash_out`",
    )
    overdraft_limit: OverdraftLimit = 0
    balance_limit: BalanceLimit | None = Field(
        default=None, description="The largest allowed balance; null for no limit"
    )
    metadata: Metadata = Field(default_factory=dict)


class AccountLineIn(AccountIn):
    """A line of a batch: an account and its idempotency key."""

    idempotency_key: Key


class OpeningRefusal(StrEnum):
    """Why an account was not opened. The codes are part of the API and don't change."""

    UNKNOWN_USER = "unknown_user"
    PURPOSE_TAKEN = "purpose_taken"
    KEY_REUSED = "key_reused"
    NOT_ALLOWED = "not_allowed"

    @property
    def explanation(self) -> str:
        """The reason in words. If a field of the request is the cause, the text begins with its name."""
        return _EXPLANATIONS[self]


_EXPLANATIONS: Final[Mapping[OpeningRefusal, str]] = {
    OpeningRefusal.UNKNOWN_USER: "user_id: the user doesn't exist",
    OpeningRefusal.PURPOSE_TAKEN: "purpose: there is already an account with this purpose and currency",
    OpeningRefusal.KEY_REUSED: "the idempotency key was used for another request",
    OpeningRefusal.NOT_ALLOWED: "only operators may set purpose, allows_negative and limits: leave them out",
}


class AccountChange(BaseModel):
    """The fields to change. The others stay as they are."""

    model_config = ConfigDict(extra="forbid")

    # Every field is optional. Only the fields that the client sent are used, so the defaults are never used. They are
    # factories, because the OpenAPI document shows a default that is a value.
    name: AccountName = Field(default_factory=str)
    state: AccountState = Field(default_factory=lambda: AccountState.OPEN, examples=["open"])
    overdraft_limit: OverdraftLimit = Field(default_factory=int)
    balance_limit: BalanceLimit | None = None
    metadata: Metadata = Field(default_factory=dict)


class AccountOut(BaseModel):
    """An account. Amounts are in the smallest unit of its currency."""

    model_config = ConfigDict(extra="forbid", from_attributes=True)

    id: UUID
    user_id: UUID | None
    name: str
    currency: str
    purpose: AccountPurpose | None
    state: AccountState
    balance: int = Field(description="The sum of the account's entries, in the currency's smallest unit")
    held: int = Field(description="The amount that pending transfers reserve. Expired holds reserve nothing")
    available: int = Field(description="`balance` less `held`, without the overdraft limit")
    allows_negative: bool
    overdraft_limit: int
    balance_limit: int | None
    details: dict[str, str] = Field(serialization_alias="metadata")
    entry_count: int = Field(description="The number of entries of the account")
    created_at: datetime
    updated_at: datetime


class AccountLineOut(BaseModel):
    """The result of a line of a batch. Lines are numbered from 1."""

    model_config = ConfigDict(extra="forbid")

    line: int
    outcome: Literal["opened", "refused", "invalid"]
    account: AccountOut | None = Field(default=None, description="The account as it was when it was opened")
    refusal: OpeningRefusal | None = None
    replayed: bool = False
    detail: str | None = Field(default=None, description="Why the account wasn't opened")


class EntryOut(BaseModel):
    """An entry of an account, with values of its transfer."""

    model_config = ConfigDict(extra="forbid", from_attributes=True)

    entry_number: int = Field(description="The position in the account's entries, from 1")
    transfer_id: UUID
    amount: int = Field(description="Positive for a credit, negative for a debit")
    balance_after: int = Field(description="The account's balance after this entry")
    counterparty_account_id: UUID = Field(description="The other account of the transfer")
    kind: EntryKind = Field(description="What created the entry: a transfer, the posting of a hold, or a reversal")
    description: str | None
    details: dict[str, str] = Field(serialization_alias="metadata")
    effective_at: datetime = Field(description="When the transfer takes effect")
    group_id: UUID | None = Field(description="The group of linked transfers, which were posted together")
    reverses_id: UUID | None = Field(description="For a reversal: the transfer that it reverses")
    created_at: datetime = Field(description="When it was posted")


class EntryPageParameters(PageParameters):
    """Page and filters. An entry must match all filters.

    They aren't declared with `Filter`, because `select_entries` finds the posting times by binary search.
    """

    order: ListOrder = Field(default="oldest", description="The order of `entry_number`")
    created_from: RFC3339Datetime | None = Field(default=None, description="Posted at or after this time")
    created_before: RFC3339Datetime | None = Field(default=None, description="Posted before this time")
    effective_from: RFC3339Datetime | None = Field(default=None, description="Effective at or after this time")
    effective_before: RFC3339Datetime | None = Field(default=None, description="Effective before this time")
    counterparty_account_id: UUID | None = Field(default=None, description="The other account of the transfer")
    direction: Direction | None = Field(default=None, description="`debit`: money went out. `credit`: money came in")
    kind: EntryKind | None = None


class BalanceParameters(BaseModel):
    """At most one of these parameters. Without one, the response has the current balance."""

    model_config = ConfigDict(extra="forbid")

    at: RFC3339Datetime | None = Field(
        default=None, description="The balance after the last entry posted at or before this time"
    )
    entry_number: Annotated[int, Field(ge=0, le=2**62), DecimalDigits] | None = Field(
        default=None, description="The balance after the entry with this number"
    )
    effective_at: RFC3339Datetime | None = Field(
        default=None,
        description="The sum of the entries that take effect at or before this time, whenever they were posted",
    )

    @model_validator(mode="after")
    def _require_at_most_one(self) -> Self:
        if len(self.model_fields_set) > 1:
            raise ValueError("at, entry_number and effective_at can't be sent together: send at most one of them")
        return self


class BalanceOut(BaseModel):
    """A current or past balance of an account."""

    model_config = ConfigDict(extra="forbid")

    account_id: UUID
    at: datetime | None
    effective_at: datetime | None
    balance: int
    held: int | None = Field(description="The amount that pending transfers reserve; null for a past balance")
    available: int | None = Field(description="`balance` less `held`; null for a past balance")
    entry_number: int | None = Field(
        description="The number of the last entry that this balance includes; null for a balance by `effective_at`"
    )
