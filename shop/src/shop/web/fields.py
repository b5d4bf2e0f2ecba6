"""Types of fields that schemas of several features share."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import AfterValidator, Field, StringConstraints, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from howdah.fastapi import RFC3339Datetime, VisibleText
from shop.limits import EARLIEST, LATEST, MAX_METADATA, MAX_METADATA_NAME, MAX_METADATA_VALUE

EXAMPLE_ID: Final = "01977f1e-7c3a-7000-8000-000000000000"
OTHER_EXAMPLE_ID: Final = "01977f1e-7c3a-7000-8000-000000000001"


def _reject_equal_names(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Reject names that become equal when they are normalized, because only one of them could be kept."""
    metadata = validate(value)
    if len(metadata) < len(value):
        raise PydanticCustomError(
            "equal_names", "two names are equal after normalization (Unicode NFC, trimmed): remove one"
        )
    return metadata


_Text = Annotated[str, VisibleText(max_length=MAX_METADATA_VALUE, min_length=0, multiline=True)]
_Name = Annotated[str, VisibleText(max_length=MAX_METADATA_NAME)]
Metadata: TypeAlias = Annotated[
    Annotated[dict[_Name, _Text], Field(max_length=MAX_METADATA)],
    WrapValidator(_reject_equal_names),
    Field(
        description="Up to 50 names with values, chosen by the client",
        examples=[{"region": "north"}],
    ),
]


def _in_utc(moment: datetime) -> datetime:
    if not EARLIEST <= moment <= LATEST:
        raise ValueError("a time must be from 0001-01-02 to 9999-12-30, in UTC")
    return moment.astimezone(UTC)


Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$"), Field(description="ISO 4217", examples=["GBP"])]

Moment = Annotated[RFC3339Datetime, AfterValidator(_in_utc)]
"""A time that is stored. It is converted to UTC."""


ListOrder: TypeAlias = Literal["oldest", "newest"]
"""The order of a list: the parameter `order` of its route."""
