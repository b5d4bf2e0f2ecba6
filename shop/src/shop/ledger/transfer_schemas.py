"""Request and response schemas of `/transfers`."""

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

from howdah.fastapi import PageParameters, RFC3339Datetime, VisibleText
from shop.ledger.models import TransferState
from shop.ledger.requests import MAX_AMOUNT, MAX_LINKED, MAX_PENDING_SECONDS, Refusal, TransferRecord
from shop.limits import MAX_DESCRIPTION
from shop.web.fields import EXAMPLE_ID, OTHER_EXAMPLE_ID, ListOrder, Metadata, Moment

Key = Annotated[
    str,
    StringConstraints(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$"),
    Field(
        description="Chosen by the client: one key for each request. A retry sends the same key",
        examples=["6b3f1a52-0c7e"],
    ),
]
Description = Annotated[str, VisibleText(max_length=MAX_DESCRIPTION, min_length=0, multiline=True)]
METADATA_PARAMETER: Final = re.compile(r"metadata\[(.*)\]", re.DOTALL)
"""The query parameter `metadata[name]`, which filters by this name of the metadata."""
Amount = Annotated[int, Field(ge=1, le=MAX_AMOUNT, strict=True)]


class TransferIn(BaseModel):
    """A transfer, or a hold if `pending_seconds` is set."""

    model_config = ConfigDict(extra="forbid")

    from_account_id: UUID = Field(examples=[EXAMPLE_ID])
    to_account_id: UUID = Field(examples=[OTHER_EXAMPLE_ID])
    amount: Amount = Field(description="In the currency's smallest unit", examples=[1250])
    description: Description | None = Field(default=None, examples=["rent for May"])
    metadata: Metadata | None = None
    effective_at: Moment | None = Field(
        default=None, description="When the transfer takes effect; by default now. It is always posted now"
    )
    pending_seconds: Annotated[int, Field(ge=1, le=MAX_PENDING_SECONDS, strict=True)] | None = Field(
        default=None,
        description="Only hold the amount, until it is posted or voided, for at most this number of seconds",
        examples=[None],
    )


class PostIn(BaseModel):
    """How to post a pending transfer."""

    model_config = ConfigDict(extra="forbid")

    amount: Amount | None = Field(
        default=None, description="The amount to post; null for the whole hold", examples=[250]
    )


class ReverseIn(BaseModel):
    """How to reverse a transfer."""

    model_config = ConfigDict(extra="forbid")

    amount: Amount | None = Field(
        default=None, description="The amount to reverse; null for all that isn't reversed yet", examples=[250]
    )
    description: Description | None = Field(
        default=None, description="By default `reversal of` and the id of the reversed transfer"
    )
    effective_at: Moment | None = Field(
        default=None,
        description="When the reversal takes effect: not before the reversed transfer. By default now, or at the "
        "`effective_at` of the reversed transfer if that is later",
    )


class VoidIn(BaseModel):
    """An empty object: a pending transfer can only be voided as a whole. To release a part, post the other part."""

    model_config = ConfigDict(extra="forbid")


class PostingIn(PostIn):
    """Post a pending transfer."""

    posts: UUID = Field(description="The pending transfer to post")


class VoidingIn(VoidIn):
    """Void a pending transfer."""

    voids: UUID = Field(description="The pending transfer to void")


class ReversalIn(ReverseIn):
    """Reverse a transfer."""

    reverses: UUID = Field(description="The transfer to reverse")


# The fields that name the transfer to post, void or reverse. The first one that is present decides the model.
_NAMING_FIELDS: Final = ("posts", "voids", "reverses")


def _validate_by_naming_field(*models: type[BaseModel]) -> WrapValidator:
    """Validate with the model whose naming field is present (`posts`, `voids` or `reverses`), or as a new transfer.

    So only the errors of that model are reported. A union would report the errors of all models.
    """
    transfer_model = next(model for model in models if issubclass(model, TransferIn))
    model_by_naming_field = {name: model for model in models for name in _NAMING_FIELDS if name in model.model_fields}
    all_fields = {name for model in models for name in model.model_fields}

    def validate(content: Any, _handler: Any) -> BaseModel:
        """Choose the model, and validate with it instead of the union."""
        if isinstance(content, models):
            return content
        naming_fields = [name for name in model_by_naming_field if name in content] if isinstance(content, dict) else []
        if not naming_fields:
            return transfer_model.model_validate(content)
        naming_field = naming_fields[0]
        model = model_by_naming_field[naming_field]
        fields = model.model_fields.keys()
        # These fields belong to other models. A field that no model has is rejected by `model_validate` below.
        excluded = [name for name in content if name in all_fields and name not in fields]
        if excluded:
            allowed = ", ".join(name for name in fields if name != naming_field)
            raise PydanticCustomError(
                "excluded",
                "{name} and {excluded} can't be sent together: with {name}, send {allowed}",
                {
                    "name": naming_field,
                    "excluded": ", ".join(excluded),
                    "allowed": f"at most {allowed}" if allowed else "nothing else",
                },
            )
        return model.model_validate(content)

    return WrapValidator(validate)


AnyTransferIn = TransferIn | PostingIn | VoidingIn | ReversalIn


class LinkedIn(BaseModel):
    """Linked transfers, which are posted together or not at all."""

    model_config = ConfigDict(extra="forbid")

    transfers: Annotated[
        list[Annotated[AnyTransferIn, _validate_by_naming_field(TransferIn, PostingIn, VoidingIn, ReversalIn)]],
        Field(min_length=2, max_length=MAX_LINKED),
    ]


class TransferOut(BaseModel):
    """A transfer in any state. Amounts are in the currency's smallest unit."""

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
    expires_at: datetime | None = Field(description="When the hold expires; null unless the transfer is pending")
    group_id: UUID | None = Field(description="The group of linked transfers, which are posted together")
    reverses_id: UUID | None = Field(description="For a reversal: the transfer that it reverses")
    reversed_total: int | None = Field(
        description="For a reversal: the amount reversed by this and all earlier reversals of the original transfer"
    )
    reversed_amount: int = Field(
        description="How much of this transfer has been reversed; 0 in the response to its POST, and in replays"
    )
    held_amount: int | None = Field(
        description="The amount that the transfer held or still holds; null if it was never pending"
    )
    from_entry_number: int | None = Field(
        description="The number of the debit in the entries of `from_account_id`; null unless the transfer is posted, "
        "and for customers who don't own the account"
    )
    from_balance: int | None = Field(
        description="The balance of `from_account_id` after this transfer; null unless it is posted, and for customers "
        "who don't own the account"
    )
    to_entry_number: int | None = Field(
        description="The number of the credit in the entries of `to_account_id`; null unless the transfer is posted, "
        "and for customers who don't own the account"
    )
    to_balance: int | None = Field(
        description="The balance of `to_account_id` after this transfer; null unless it is posted, and for customers "
        "who don't own the account"
    )
    created_at: datetime


class LinkedOut(BaseModel):
    """The linked transfers, in the order of the request."""

    model_config = ConfigDict(extra="forbid")

    transfers: list[TransferOut]


class TransferPageParameters(PageParameters):
    """Page and filters. A transfer must match all filters.

    They aren't declared with `Filter`, because `select_transfers` chooses the tables to read by them.
    The parameters `metadata[name]=value` are read by `get_metadata_filter`.
    """

    order: ListOrder = Field(default="oldest", description="The order of the ids")
    account_id: UUID | None = Field(default=None, description="Transfers from or to this account")
    from_account_id: UUID | None = None
    to_account_id: UUID | None = None
    created_from: RFC3339Datetime | None = Field(default=None, description="Created at or after this time")
    created_before: RFC3339Datetime | None = Field(default=None, description="Created before this time")
    effective_from: RFC3339Datetime | None = Field(default=None, description="Effective at or after this time")
    effective_before: RFC3339Datetime | None = Field(default=None, description="Effective before this time")
    state: TransferState | None = Field(default=None, description="An expired hold counts as voided")
    idempotency_key: Key | None = Field(
        default=None,
        description="The transfers that this client posted or held under this key, until the key is deleted",
    )
    reverses_id: UUID | None = Field(default=None, description="The reversals of this transfer")
    group_id: UUID | None = Field(default=None, description="The linked transfers of this group")

    @model_validator(mode="before")
    @classmethod
    def _drop_metadata_parameters(cls, parameters: Any) -> Any:
        if not isinstance(parameters, dict):
            return parameters
        return {name: value for name, value in parameters.items() if not METADATA_PARAMETER.fullmatch(name)}


class _Line(BaseModel):
    """The fields that every line of a batch has."""

    idempotency_key: Key
    linked: bool = Field(
        default=False, strict=True, description="Post this line and the next one together or not at all"
    )


class TransferLineIn(_Line, TransferIn):
    """A line of a batch: a transfer, or a hold."""


class PostingLineIn(_Line, PostingIn):
    """A line of a batch: post a pending transfer."""


class VoidingLineIn(_Line, VoidingIn):
    """A line of a batch: void a pending transfer."""


class ReversalLineIn(_Line, ReversalIn):
    """A line of a batch: reverse a transfer."""


AnyLineIn = TransferLineIn | PostingLineIn | VoidingLineIn | ReversalLineIn


class BatchLineIn(
    RootModel[
        Annotated[AnyLineIn, _validate_by_naming_field(TransferLineIn, PostingLineIn, VoidingLineIn, ReversalLineIn)],
    ]
):
    """A line of a batch: a new transfer, or the id of a transfer to post (`posts`), void (`voids`) or reverse
    (`reverses`)."""


class BatchLineOut(BaseModel):
    """The result of a line of a batch. Lines are numbered from 1."""

    model_config = ConfigDict(extra="forbid")

    line: int
    outcome: Literal["posted", "pending", "voided", "refused", "invalid"]
    transfer: TransferOut | None = None
    refusal: Refusal | None = None
    replayed: bool = False
    detail: str | None = Field(default=None, description="What is wrong with an invalid line")


def serialize_transfer(transfer: TransferRecord) -> dict[str, Any]:
    """The fields of `TransferOut`, for `encode_json`."""
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
    """The same JSON as Pydantic writes, in a fifth of the time."""
    return orjson.dumps(content, default=str, option=orjson.OPT_UTC_Z)  # asyncpg has its own UUID class: use `str`
