"""The declaration of the order of a list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic_core import PydanticCustomError
from sqlalchemy import (
    ColumnElement,
    SQLColumnExpression,
    UnaryExpression,
)
from sqlalchemy.sql import operators

from howdah._reads.filter_markers import FilterMarker, require_column
from howdah._reads.filter_values import (
    get_item,
    strip_optional,
)


class Sort(FilterMarker):
    """The order of the list, from a closed list of names.

    sort: Annotated[Literal["placed_at", "-placed_at"], Sort({"placed_at": Order.placed_at})] = "-placed_at"

    Each member of the `Literal` is a name in `columns`, or "-" and a name for the descending order. With
    `list[Literal[...]]` a client may send several names. A name has one column, or several as a sequence.

    NULLs come last in the ascending order and first in the descending one, as in PostgreSQL. A column with
    `.nulls_last()` or `.nulls_first()` has its NULLs there in both.
    """

    def __init__(self, columns: Mapping[str, SQLColumnExpression[Any] | Sequence[SQLColumnExpression[Any]]]) -> None:
        if not columns or any(not name or name.startswith("-") for name in columns):
            raise ValueError("Sort needs at least one name, and a name must not be empty or begin with '-'")
        self._columns = {
            name: [_parse_sort_column(each) for each in (value if isinstance(value, Sequence) else [value])]
            for name, value in columns.items()
        }

    def describe(self) -> str:
        return "The order; `-` means descending"

    def check(self, value: Any) -> Any:
        names = [each.removeprefix("-") for each in _to_names(value)]
        if len({*names}) < len(names):
            raise PydanticCustomError("repeated_name", "each name can occur only once")
        return value

    def get_columns(self) -> Iterator[ColumnElement[Any]]:
        yield from (column for columns in self._columns.values() for column, _ in columns)

    def find_fault(self, annotation: Any) -> str | None:
        kind = get_item(annotation) or strip_optional(annotation)
        if get_origin(kind) is not Literal:
            return "the type must be a Literal of the names, or a list of it"
        members = {*get_args(kind)}
        if unknown := members - {sign + name for name in self._columns for sign in ("", "-")}:
            return f"Sort has no column for {', '.join(map(repr, sorted(unknown)))}"
        if unused := self._columns.keys() - {str(each).removeprefix("-") for each in members}:
            return f"Sort has {', '.join(map(repr, sorted(unused)))}, which the Literal lacks"
        return None

    def get_members(self, annotation: Any) -> tuple[str, ...]:
        """The members of the field's `Literal`."""
        return get_args(get_item(annotation) or strip_optional(annotation))

    def build_order(self, value: str | Sequence[str] | None) -> list[ColumnElement[Any]]:
        """The clauses for ORDER BY."""
        return [
            _build_clause(column, nulls, is_descending=name.startswith("-"))
            for name in _to_names(value)
            for column, nulls in self._columns[name.removeprefix("-")]
        ]


def _parse_sort_column(column: Any) -> tuple[ColumnElement[Any], Any]:
    """The column, and `operators.nulls_first_op` or `nulls_last_op` if the declaration has one of these."""
    clause, nulls = require_column(column), None
    while isinstance(clause, UnaryExpression) and clause.modifier is not None:
        if clause.modifier in (operators.asc_op, operators.desc_op):
            raise ValueError(f"{clause} has a direction: write the column alone. The client chooses the direction")
        clause, nulls = clause.element, clause.modifier
    return clause, nulls


def _build_clause(column: ColumnElement[Any], nulls: Any, *, is_descending: bool) -> ColumnElement[Any]:
    """The clause for ORDER BY. A declared place of NULLs is the same in both directions."""
    clause = column.desc() if is_descending else column.asc()
    match nulls:
        case None:
            return clause
        case operators.nulls_first_op:
            return clause.nulls_first()
    return clause.nulls_last()


def _to_names(value: str | Sequence[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else [*value]
