"""What goes in and out over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from shop.transfers.service import MAX_AMOUNT, Refusal
from shop.web.fields import EXAMPLE_ID, OTHER_EXAMPLE_ID, STORABLE

Key = Annotated[
    str,
    StringConstraints(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$"),
    Field(description="Chosen by the client, one for each transfer that it means", examples=["6b3f1a52-0c7e"]),
]


class TransferIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    from_account_id: UUID = Field(examples=[EXAMPLE_ID])
    to_account_id: UUID = Field(examples=[OTHER_EXAMPLE_ID])
    amount: int = Field(ge=1, le=MAX_AMOUNT, strict=True, description="In the smallest unit", examples=[1250])
    description: Annotated[str, StringConstraints(max_length=500, pattern=STORABLE)] | None = Field(
        default=None, examples=["rent for May"]
    )


class ReversalIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    amount: int | None = Field(
        default=None, ge=1, le=MAX_AMOUNT, strict=True, description="Null for all that is left", examples=[250]
    )


class TransferOut(BaseModel):
    model_config = ConfigDict(extra="forbid", from_attributes=True)

    id: UUID
    from_account_id: UUID
    to_account_id: UUID
    amount: int
    currency: str
    description: str | None
    reverses_id: UUID | None
    reversed_total: int | None = Field(description="Of a reversal: how much has been taken back with it in all")
    created_at: datetime


class BatchLineIn(TransferIn):
    idempotency_key: Key


class BatchLineOut(BaseModel):
    """The answer to one line of a batch, lines counted from 1."""

    model_config = ConfigDict(extra="forbid")

    line: int
    outcome: Literal["posted", "refused", "invalid"]
    transfer: TransferOut | None = None
    refusal: Refusal | None = None
    replayed: bool = False
    detail: str | None = Field(default=None, description="What is wrong with a line that can't be read")
