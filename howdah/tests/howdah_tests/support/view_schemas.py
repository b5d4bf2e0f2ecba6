"""Pydantic models for views of the sample tables, and the comparison of a view's JSON with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, create_model

from howdah_tests.support.sample_models import Status


class Out(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class OrderOut(Out):
    id: UUID
    status: Status
    total_cents: int
    placed_at: datetime | None
    weight: Decimal | None
    details: dict[str, Any] | None


class UserOut(Out):
    id: UUID
    email: str
    name: str
    age: int | None
    nickname: str
    created_at: datetime
    name_length: int
    orders: list[OrderOut]


class SpecimenOut(Out):
    id: int
    whole: int | None
    big: int | None
    words: str | None
    code: str | None
    moment: datetime | None
    day: date | None
    hour: time | None
    exact: Decimal | None
    rounded: float | None
    real: float | None
    state: Status | None
    place: Status | None
    token: UUID | None
    flag: bool | None
    raw: bytes | None
    span: timedelta | None
    anything: Any
    nothing: Any
    plain_json: Any
    tags: list[str] | None
    notes: str | None
    doubled: int | None
    alias: str | None
    half: int | None


def keys_of(value: Any) -> Any:
    """The keys of all objects in a JSON value, in their order."""
    if isinstance(value, dict):
        return [(key, keys_of(inner)) for key, inner in value.items()]
    return [keys_of(inner) for inner in value] if isinstance(value, list) else None


def texts_of(value: Any) -> Any:
    """All texts in a JSON value, except those with several forms for one value: durations, decimals with and without an
    exponent, and infinite floats."""
    if isinstance(value, dict):
        return [texts_of(inner) for key, inner in value.items() if key not in ("span", "exact", "real")]
    return (
        [texts_of(inner) for inner in value] if isinstance(value, list) else value if isinstance(value, str) else None
    )


def assert_same(body: bytes, schema: type[BaseModel], row: object) -> None:
    expected = schema.model_validate(row)
    assert schema.model_validate_json(body) == expected
    written, wanted = json.loads(body), json.loads(expected.model_dump_json(by_alias=True))
    assert keys_of(written) == keys_of(wanted)
    assert texts_of(written) == texts_of(wanted)


def create_schema(fields: Mapping[str, Any], base: type[BaseModel] = Out) -> type[BaseModel]:
    """A model `Schema` with required fields of these types."""
    definitions: dict[str, Any] = {name: (kind, ...) for name, kind in fields.items()}
    schema: type[BaseModel] = create_model("Schema", __base__=base, **definitions)
    return schema
