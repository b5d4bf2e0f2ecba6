"""JSON columns: a value is written exactly, or rejected."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any
from uuid import UUID

import orjson

from howdah._rejected_values import RejectedValue
from howdah._types.times import InfiniteDate


def dump_json(value: Any) -> str:
    """The JSON text of a value. Raises `RejectedValue` for NaN, infinities and types that JSON doesn't have."""
    try:
        dumped = orjson.dumps(value, default=_to_text)
    except orjson.JSONEncodeError as error:
        raise RejectedValue(f"a value can't be written as JSON: {error}") from error
    # orjson writes NaN and infinities as null.
    if b"null" in dumped and not _has_only_finite_numbers(value):
        raise RejectedValue("NaN or an infinity can't be written as JSON: store None or a text in its place")
    return dumped.decode()


def _to_text(value: Any) -> str:
    if isinstance(value, UUID | InfiniteDate):  # a subclass, such as the driver's
        return str(value)
    raise TypeError


def _has_only_finite_numbers(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_has_only_finite_numbers, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_has_only_finite_numbers, value))
    if is_dataclass(value):
        return all(_has_only_finite_numbers(getattr(value, field.name)) for field in fields(value))
    return True
