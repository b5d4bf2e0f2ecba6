"""Columns of values as parameters: one array each, so that a statement's text and its number of parameters are the same
for any number of rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import repeat
from typing import Any, Final

from sqlalchemy import ARRAY, BindParameter, Column, Dialect, TableValuedAlias, bindparam, column, func
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.dialects.postgresql.asyncpg import AsyncpgARRAY
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import TypeDecorator, TypeEngine

_DIALECT: Final[Dialect] = asyncpg.dialect()  # type: ignore[no-untyped-call]


class Array(AsyncpgARRAY):
    """The type of an array parameter. It is cast without the length of its items: a cast to `VARCHAR(5)[]` would cut
    a longer text silently, where the column refuses it and a comparison finds it different. An item that is a list
    (of JSON) is an item, not a further dimension."""

    def __init__(self, item_type: TypeEngine[Any]) -> None:
        super().__init__(item_type, dimensions=1)

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        process = super().bind_processor(dialect)

        def items(values: Any) -> Any:
            bound = values if process is None else process(values)
            if bound is None or list not in {*map(type, bound)}:
                return bound
            # A multirange, or an array of a DOMAIN. The driver takes a list in a list for a further dimension.
            return [tuple(item) if type(item) is list else item for item in bound]

        return items


@compiles(Array, "postgresql")
def _without_length(array: Array, compiler: Any, **options: Any) -> str:
    text: str = compiler.visit_ARRAY(array, **options)
    if '"' in text:  # a name of its own, which may have anything in it
        return text
    text = re.sub(r"\(\d+(, ?\d+)?\)", "", text)
    # without a length these two mean one character and one bit
    text = re.sub(r"^CHAR\b", "BPCHAR", text)
    return re.sub(r"^BIT\b(?! VARYING)", "BIT VARYING", text)


def array_of(values: Iterable[Any], item_type: TypeEngine[Any]) -> BindParameter[Any]:
    """The values as one parameter. Its name isn't one that a column is likely to have: SQLAlchemy names a parameter
    of an INSERT or UPDATE by its column, and refuses a second one of the same name."""
    return bindparam("howdah parameter", [*values], Array(item_type), unique=True)


def postgresql_type(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """The type that this one is on PostgreSQL: a variant is chosen, a `TypeDecorator` taken off."""
    plain = kind.dialect_impl(_DIALECT)
    while isinstance(plain, TypeDecorator):
        plain = plain.impl_instance
    return plain


def fits_in_array(column: Column[Any]) -> bool:
    """Whether the column's values can come from an array: not arrays themselves, which unnest would take apart, nor
    what is written by an SQL expression of its type."""
    return not isinstance(postgresql_type(column.type), ARRAY) and not column.type._has_bind_expression


def given(
    columns: Mapping[str, tuple[Column[Any], Iterable[Any]]], *, name: str = "howdah_given"
) -> tuple[TableValuedAlias, dict[str, Any]]:
    """A table whose columns have these names, the types of these columns of a table, and these values; and
    what a write takes, by the same names: its columns, or where a value is the same in all rows, an
    `itertools.repeat`, a parameter. `name` is the table's own."""
    varying = {name: (each, values) for name, (each, values) in columns.items() if not isinstance(values, repeat)}
    arrays = [array_of(values, each.type) for each, values in varying.values()]
    named = [column(name, each.type) for name, (each, _) in varying.items()]
    table = func.unnest(*arrays).table_valued(*named).render_derived(name=name)
    taken = {
        name: bindparam("howdah parameter", next(values), each.type, unique=True)
        if isinstance(values, repeat)
        else table.c[name]
        for name, (each, values) in columns.items()
    }
    return table, taken
