"""How values are written to JSON columns."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any
from uuid import UUID

import orjson

from howdah._types.times import InfiniteDate
from howdah.errors import RefusedValue


def dump_json(value: Any) -> str:
    try:
        dumped = orjson.dumps(value, default=_plain)
    except orjson.JSONEncodeError as error:
        raise RefusedValue(f"a value can't be written as JSON: {error}") from error
    if b"null" in dumped and not _is_finite(value):
        raise RefusedValue("a value can't be written as JSON: it has no NaN and no infinity")  # orjson writes null
    return dumped.decode()


def _plain(value: Any) -> str:
    if isinstance(value, UUID | InfiniteDate):  # a subclass, such as the driver's
        return str(value)
    raise TypeError


def _is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    if is_dataclass(value):
        return all(_is_finite(getattr(value, field.name)) for field in fields(value))
    return True
