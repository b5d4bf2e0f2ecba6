"""Expressions for the condition of ON CONFLICT DO UPDATE: whether the row changes, and a count of the conflicts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import ColumnElement, Integer, Select, String, bindparam, case, cast, func, literal_column, select, true
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

    The counter is a setting of the transaction. The setting contains the number of the statement and the count. If it
    contains the number of another statement, counting starts at 1. So no statement has to reset the setting.
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
