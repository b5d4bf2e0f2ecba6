"""What goes in and out over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from howdah.fastapi import PageParameters
from shop.transfers.models import TransferState
from shop.transfers.requests import MAX_AMOUNT, MAX_LINKED, MAX_PENDING_SECONDS, BookedTransfer, Refusal
from shop.web.fields import EXAMPLE_ID, OTHER_EXAMPLE_ID, STORABLE, Metadata, Moment

Key = Annotated[
    str,
    StringConstraints(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$"),
    Field(description="Chosen by the client, one for each transfer that it means", examples=["6b3f1a52-0c7e"]),
]
Amount = Annotated[int, Field(ge=1, le=MAX_AMOUNT, strict=True)]


class TransferIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    from_account_id: UUID = Field(examples=[EXAMPLE_ID])
    to_account_id: UUID = Field(examples=[OTHER_EXAMPLE_ID])
    amount: Amount = Field(description="In the smallest unit", examples=[1250])
    description: Annotated[str, StringConstraints(max_length=500, pattern=STORABLE)] | None = Field(
        default=None, examples=["rent for May"]
    )
    metadata: Metadata | None = None
    effective_at: Moment | None = Field(
        default=None, description="When it counts from, if that isn't now; it is booked now all the same"
    )
    pending_seconds: Annotated[int, Field(ge=1, le=MAX_PENDING_SECONDS, strict=True)] | None = Field(
        default=None,
        description="Only hold the amount, for so long at most: until it is posted or voided",
        examples=[None],
    )


class LinkedIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    transfers: Annotated[list[TransferIn], Field(min_length=2, max_length=MAX_LINKED)]


class PartIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    amount: Amount | None = Field(default=None, description="Null for all there is", examples=[250])


class VoidIn(BaseModel):
    """Nothing: a pending transfer is voided whole. To let a part go, post the rest."""

    model_config = ConfigDict(extra="forbid")


class TransferOut(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: UUID
    state: TransferState
    from_account_id: UUID
    to_account_id: UUID
    amount: int
    currency: str
    description: str | None
    metadata: dict[str, str]
    effective_at: datetime
    expires_at: datetime | None = Field(description="Of a pending one")
    group_id: UUID | None = Field(description="Shared by those that were made together")
    reverses_id: UUID | None
    reversed_total: int | None = Field(description="Of a reversal: how much has been taken back with it in all")
    from_version: int | None = Field(description="The number of its entry among the account's")
    to_version: int | None
    created_at: datetime


class LinkedOut(BaseModel):
    """In the order of the request."""

    model_config = ConfigDict(extra="forbid")

    transfers: list[TransferOut]


class TransferPageParameters(PageParameters):
    group_id: UUID | None = Field(default=None, description="Only those that were made together")


class BatchLineIn(TransferIn):
    idempotency_key: Key
    linked: bool = Field(
        default=False, strict=True, description="Made together with the transfer of the next line, or neither"
    )


class BatchLineOut(BaseModel):
    """The answer to one line of a batch, lines counted from 1."""

    model_config = ConfigDict(extra="forbid")

    line: int
    outcome: Literal["posted", "pending", "refused", "invalid"]
    transfer: TransferOut | None = None
    refusal: Refusal | None = None
    replayed: bool = False
    detail: str | None = Field(default=None, description="What is wrong with a line that can't be read")


def shown(transfer: BookedTransfer) -> dict[str, Any]:
    """As `TransferOut` has it."""
    return {
        "id": transfer.id,
        "state": transfer.state,
        "from_account_id": transfer.from_account_id,
        "to_account_id": transfer.to_account_id,
        "amount": transfer.amount,
        "currency": transfer.currency,
        "description": transfer.description,
        "metadata": transfer.details or {},
        "effective_at": transfer.effective_at,
        "expires_at": transfer.expires_at,
        "group_id": transfer.group_id,
        "reverses_id": transfer.reverses_id,
        "reversed_total": transfer.reversed_total,
        "from_version": transfer.from_version,
        "to_version": transfer.to_version,
        "created_at": transfer.created_at,
    }


def rendered(content: dict[str, Any]) -> bytes:
    """JSON as Pydantic would write it, in a fifth of the time."""
    return orjson.dumps(content, default=str, option=orjson.OPT_UTC_Z)  # str for the driver's own class of UUIDs
