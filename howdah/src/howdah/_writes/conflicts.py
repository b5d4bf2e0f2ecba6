"""Expressions for the condition of ON CONFLICT DO UPDATE: whether the row changes, and which rows conflict.

Both the count of the conflicts and the existing row are recorded in a setting of the transaction. It contains the
number of the statement too, so no statement has to reset it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Integer,
    Select,
    String,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    null,
    select,
    true,
)
from sqlalchemy.types import UserDefinedType

# A setting of PostgreSQL, which needs no table and no extension.
_SETTING: Final = "howdah.conflicts"


class _Record(UserDefinedType[Any]):
    """The type of `ROW(…)`, for a cast.

    Without the cast PostgreSQL applies an operator between two `ROW(…)` to their columns, which have no operator `*<>`.
    """

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "RECORD"


def is_stored_differently(old: Iterable[Any], new: Iterable[Any]) -> ColumnElement[bool]:
    """Whether the binary images of the values differ. Both lists must have the same types in the same order.

    This also compares types that have no operator `=`, such as json.
    """
    differs: ColumnElement[bool] = cast(func.row(*old), _Record()).op("*<>", is_comparison=True)(
        cast(func.row(*new), _Record())
    )
    return differs


def count_conflict(number: int) -> ColumnElement[Any]:
    """An expression that adds one to a counter each time PostgreSQL evaluates it. It is never NULL.

    If the setting contains the number of another statement, counting starts at 1.
    """
    current = f"current_setting('{_SETTING}', true)"
    token: ColumnElement[str] = bindparam("howdah_number", str(number), String)
    is_same_statement = literal_column(f"split_part({current}, ':', 1)", String) == token
    one_more = literal_column(f"(split_part({current}, ':', 2)::bigint + 1)::text", String)
    value = case((is_same_statement, one_more), else_=literal_column("'1'", String))
    return func.set_config(literal_column(f"'{_SETTING}'"), token + literal_column("':'", String) + value, true())


def select_conflict_count(number: int) -> Select[tuple[int]]:
    """A SELECT of the number of rows that conflicted with an existing row in the statement with this number."""
    current = f"current_setting('{_SETTING}', true)"
    is_same_statement = literal_column(f"split_part({current}, ':', 1)", String) == str(number)
    return select(case((is_same_statement, literal_column(f"split_part({current}, ':', 2)::bigint", Integer)), else_=0))


def record_conflict(number: int, table: str) -> ColumnElement[Any]:
    """An expression that records where the existing row is. It is never NULL. `table` is the quoted name."""
    token: ColumnElement[str] = bindparam("howdah_number", str(number), String)
    location = literal_column(f"concat(':', {table}.tableoid, ':', {table}.ctid)", String)
    return func.set_config(literal_column(f"'{_SETTING}'"), token + location, true())


def is_recorded_conflict(number: int, table: str) -> ColumnElement[bool]:
    """A condition that is true for the row that was recorded in the statement with this number.

    PostgreSQL has locked the row, so it stays in its place until the end of the transaction.
    """
    current = f"current_setting('{_SETTING}', true)"
    is_same_statement = literal_column(f"split_part({current}, ':', 1)", String) == str(number)
    # PostgreSQL reads the row by its place (a TID scan) only if the condition on `ctid` is a comparison of its own.
    # After the transaction that has set it, the setting is empty.
    place = case((is_same_statement, literal_column(f"nullif(split_part({current}, ':', 3), '')::tid")), else_=null())
    is_same_table = literal_column(f"{table}.tableoid = nullif(split_part({current}, ':', 2), '')::oid", Boolean)
    return and_(literal_column(f"{table}.ctid") == place, is_same_table)
