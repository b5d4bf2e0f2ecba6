"""What goes in and out over HTTP."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    StringConstraints,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from howdah.fastapi import PageParameters, RFC3339Datetime
from shop.ledger.models import TransferState
from shop.ledger.requests import MAX_AMOUNT, MAX_LINKED, MAX_PENDING_SECONDS, Refusal, TransferRecord
from shop.limits import MAX_DESCRIPTION
from shop.web.fields import EXAMPLE_ID, OTHER_EXAMPLE_ID, STORABLE, ListOrder, Metadata, Moment

Key = Annotated[
    str,
    StringConstraints(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$"),
    Field(description="Chosen by the client, one for each request that it means", examples=["6b3f1a52-0c7e"]),
]
Description = Annotated[str, StringConstraints(max_length=MAX_DESCRIPTION, pattern=STORABLE)]
METADATA_PARAMETER: Final = re.compile(r"metadata\[(.*)\]", re.DOTALL)
Amount = Annotated[int, Field(ge=1, le=MAX_AMOUNT, strict=True)]


class TransferIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    from_account_id: UUID = Field(examples=[EXAMPLE_ID])
    to_account_id: UUID = Field(examples=[OTHER_EXAMPLE_ID])
    amount: Amount = Field(description="In the smallest unit", examples=[1250])
    description: Description | None = Field(default=None, examples=["rent for May"])
    metadata: Metadata | None = None
    effective_at: Moment | None = Field(
        default=None, description="When the transfer takes effect: now by default. It is posted now in any case"
    )
    pending_seconds: Annotated[int, Field(ge=1, le=MAX_PENDING_SECONDS, strict=True)] | None = Field(
        default=None,
        description="Only hold the amount, for at most this time, until it is posted or voided",
        examples=[None],
    )


class PartIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    amount: Amount | None = Field(default=None, description="Null for all that is left", examples=[250])


class ReverseIn(PartIn):
    description: Description | None = Field(default=None, description="By default it names the reversed transfer")
    effective_at: Moment | None = Field(
        default=None,
        description="When the reversal takes effect: not before the transfer that it reverses. By default now, or "
        "together with that transfer if that is later",
    )


class VoidIn(BaseModel):
    """An empty object: a pending transfer is voided whole. To release a part, post the rest."""

    model_config = ConfigDict(extra="forbid")


class PostingIn(PartIn):
    posts: UUID = Field(description="The pending transfer that is posted")


class VoidingIn(VoidIn):
    """A pending transfer that is voided, all of it."""

    voids: UUID = Field(description="The pending transfer that is voided")


class ReversalIn(ReverseIn):
    reverses: UUID = Field(description="The transfer that is reversed")


def _of_its_kind(*kinds: type[BaseModel]) -> WrapValidator:
    """Validate with the model whose field is present: `posts`, `voids` or `reverses`, or with the plain transfer model.

    So the errors are those of one model. A union would report the errors of all models.
    """
    plain = next(kind for kind in kinds if issubclass(kind, TransferIn))
    by_name = {name: kind for kind in kinds for name in _NAMING if name in kind.model_fields}
    every = {name for kind in kinds for name in kind.model_fields}

    def validate(content: Any, _handler: Any) -> BaseModel:
        if isinstance(content, kinds):
            return content
        named = [name for name in by_name if name in content] if isinstance(content, dict) else []
        if not named:
            return plain.model_validate(content)
        kind = by_name[named[0]]
        if excluded := [name for name in content if name in every - kind.model_fields.keys()]:
            raise PydanticCustomError(
                "excluded",
                "{name} and {excluded} exclude each other: with {name} there may be {allowed}",
                {
                    "name": named[0],
                    "excluded": ", ".join(excluded),
                    "allowed": ", ".join(name for name in kind.model_fields if name != named[0]) or "nothing else",
                },
            )
        return kind.model_validate(content)

    return WrapValidator(validate)


_NAMING: Final = ("posts", "voids", "reverses")

AnyTransferIn = TransferIn | PostingIn | VoidingIn | ReversalIn


class LinkedIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    transfers: Annotated[
        list[Annotated[AnyTransferIn, _of_its_kind(TransferIn, PostingIn, VoidingIn, ReversalIn)]],
        Field(min_length=2, max_length=MAX_LINKED),
    ]


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
    group_id: UUID | None = Field(description="Shared by linked transfers")
    reverses_id: UUID | None
    reversed_total: int | None = Field(description="Of a reversal: how much of the original is reversed with it in all")
    reversed_amount: int = Field(
        description="How much of it has been reversed; 0 in the response that made it, and in its replays"
    )
    held_amount: int | None = Field(description="The amount that it held or still holds; null if it was never pending")
    from_entry_number: int | None = Field(description="The number of its entry among the account's")
    from_balance: int | None = Field(description="The account's balance after it; null unless it is posted")
    to_entry_number: int | None
    to_balance: int | None
    created_at: datetime


class LinkedOut(BaseModel):
    """In the order of the request."""

    model_config = ConfigDict(extra="forbid")

    transfers: list[TransferOut]


class TransferPageParameters(PageParameters):
    """Filters, all of which must match. `shop.ledger.http.transfer_routes` reads `metadata[name]=value`."""

    order: ListOrder = Field(default="oldest", description="The order of the ids")
    account_id: UUID | None = Field(default=None, description="From or to this account")
    from_account_id: UUID | None = None
    to_account_id: UUID | None = None
    created_from: RFC3339Datetime | None = Field(default=None, description="Created from then on")
    created_before: RFC3339Datetime | None = Field(default=None, description="Created before then")
    effective_from: RFC3339Datetime | None = Field(default=None, description="Effective from then on")
    effective_before: RFC3339Datetime | None = Field(default=None, description="Effective before then")
    state: TransferState | None = Field(default=None, description="An expired hold counts as voided")
    idempotency_key: Key | None = Field(
        default=None, description="Made under this key of this client, until the key is deleted"
    )
    reverses_id: UUID | None = Field(default=None, description="The reversals of this transfer")
    group_id: UUID | None = Field(default=None, description="Posted together or not at all")

    @model_validator(mode="before")
    @classmethod
    def _without_metadata(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if not METADATA_PARAMETER.fullmatch(name)}


class _Line(BaseModel):
    idempotency_key: Key
    linked: bool = Field(default=False, strict=True, description="Made together with the next line, or not at all")


class TransferLineIn(_Line, TransferIn):
    pass


class PostingLineIn(_Line, PostingIn):
    pass


class VoidingLineIn(_Line, VoidingIn):
    """A pending transfer that is voided, all of it."""


class ReversalLineIn(_Line, ReversalIn):
    pass


AnyLineIn = TransferLineIn | PostingLineIn | VoidingLineIn | ReversalLineIn


class BatchLineIn(
    RootModel[Annotated[AnyLineIn, _of_its_kind(TransferLineIn, PostingLineIn, VoidingLineIn, ReversalLineIn)],]
):
    """A transfer, or one that is posted (`posts`), voided (`voids`) or reversed (`reverses`)."""


class BatchLineOut(BaseModel):
    """The answer to one line of a batch, lines counted from 1."""

    model_config = ConfigDict(extra="forbid")

    line: int
    outcome: Literal["posted", "pending", "voided", "refused", "invalid"]
    transfer: TransferOut | None = None
    refusal: Refusal | None = None
    replayed: bool = False
    detail: str | None = Field(default=None, description="What is wrong with an invalid line")


def serialize_transfer(transfer: TransferRecord) -> dict[str, Any]:
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
        "reversed_amount": transfer.reversed_amount,
        "held_amount": transfer.held_amount,
        "from_entry_number": transfer.from_entry_number,
        "from_balance": transfer.from_balance,
        "to_entry_number": transfer.to_entry_number,
        "to_balance": transfer.to_balance,
        "created_at": transfer.created_at,
    }


def encode_json(content: dict[str, Any]) -> bytes:
    """JSON as Pydantic would write it, in a fifth of the time."""
    return orjson.dumps(content, default=str, option=orjson.OPT_UTC_Z)  # str for the driver's own class of UUIDs
