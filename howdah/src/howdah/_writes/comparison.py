"""Comparisons of column values in Python, and whether PostgreSQL would have the same result."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import CHAR, Date, Enum, Integer, LargeBinary, String, Uuid


def is_exact(column: Any) -> bool:
    """Whether values that differ in Python also differ in PostgreSQL."""
    kind = column.type
    return isinstance(kind, Integer | Date | LargeBinary) or (isinstance(kind, Uuid) and kind.as_uuid)


def is_stored_unchanged(column: Any, values: Sequence[Any]) -> bool:
    """Whether PostgreSQL stores these values of the column unchanged. False if that isn't known."""
    kind = column.type
    if not isinstance(kind, String) or isinstance(kind, Enum | CHAR):
        return is_exact(column)
    # VARCHAR(n) removes trailing blanks beyond its length.
    return {str}.issuperset(map(type, values)) and (kind.length is None or max(map(len, values)) <= kind.length)


def to_hashable(values: tuple[Any, ...]) -> Hashable:
    """The values, or their text if they can't be hashed."""
    try:
        hash(values)
    except TypeError:  # arrays and JSON
        return repr(values)
    return values


def build_sort_key(value: object) -> tuple[int, Any]:
    """A sort key for a value of any type. The order is the same in every process, so two upserts lock in one order."""
    if value is None:
        return 2, 0
    if isinstance(value, int | float | Decimal):
        return 0, value
    return 1, str(value)
