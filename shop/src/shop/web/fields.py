"""Types of fields that schemas of several features share."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import AfterValidator, Field, StringConstraints

from howdah.fastapi import RFC3339Datetime
from shop.limits import EARLIEST, LATEST, MAX_METADATA, MAX_METADATA_NAME, MAX_METADATA_VALUE

# PostgreSQL's text can't store NUL.
STORABLE: Final = r"^[^\x00]*$"
EXAMPLE_ID: Final = "01977f1e-7c3a-7000-8000-000000000000"
OTHER_EXAMPLE_ID: Final = "01977f1e-7c3a-7000-8000-000000000001"

_Text = Annotated[str, StringConstraints(max_length=MAX_METADATA_VALUE, pattern=STORABLE)]
_Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_METADATA_NAME, pattern=STORABLE)]
Metadata: TypeAlias = Annotated[
    dict[_Name, _Text],
    Field(
        max_length=MAX_METADATA,
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
