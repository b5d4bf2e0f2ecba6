"""Columns of values as parameters: one array each, so that a statement's text and its number of parameters are the same
for any number of rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import Any

from sqlalchemy import ARRAY, Column, TableValuedAlias, column, func, literal
from sqlalchemy.dialects.postgresql import DOMAIN
from sqlalchemy.dialects.postgresql.asyncpg import AsyncpgARRAY
from sqlalchemy.dialects.postgresql.ranges import AbstractMultiRange
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import TypeDecorator, TypeEngine


class Array(AsyncpgARRAY):
    """The type of an array parameter. It is cast without the length of its items: a cast to `VARCHAR(5)[]` would cut
    a longer text silently, where the column refuses it and a comparison finds it different. An item that is a list
    (of JSON) is an item, not a further dimension."""

    def __init__(self, item_type: TypeEngine[Any]) -> None:
        super().__init__(item_type, dimensions=1)


@compiles(Array, "postgresql")
def _without_length(array: Array, compiler: Any, **options: Any) -> str:
    text: str = compiler.visit_ARRAY(array, **options)
    if '"' in text:  # a name of its own, which may have anything in it
        return text
    text = re.sub(r"\(\d+(, ?\d+)?\)", "", text)
    # without a length these two mean one character and one bit
    text = re.sub(r"^CHAR\b", "BPCHAR", text)
    return re.sub(r"^BIT\b(?! VARYING)", "BIT VARYING", text)


def fits_in_array(column: Column[Any]) -> bool:
    """Whether the column's values can come from an array: not arrays themselves, which unnest would take apart, nor
    multiranges, which the driver takes for arrays, nor what is written by an SQL expression of its type."""
    kind = column.type
    plain = kind.impl_instance if isinstance(kind, TypeDecorator) else kind
    while isinstance(plain, DOMAIN):
        plain = plain.data_type
    return not isinstance(plain, ARRAY | AbstractMultiRange) and not kind._has_bind_expression


def given(columns: Mapping[str, tuple[Column[Any], Iterable[Any]]]) -> tuple[TableValuedAlias, dict[str, Any]]:
    """A table whose columns have these names, the types of these columns of a table, and these values; and
    what a write takes, by the same names: its columns, or where a value is the same in all rows, an
    `itertools.repeat`, a parameter."""
    varying = {name: (each, values) for name, (each, values) in columns.items() if not isinstance(values, repeat)}
    arrays = [literal([*values], Array(each.type)) for each, values in varying.values()]
    named = [column(name, each.type) for name, (each, _) in varying.items()]
    table = func.unnest(*arrays).table_valued(*named).render_derived(name="howdah_given")
    taken = {
        name: literal(next(values), each.type) if isinstance(values, repeat) else table.c[name]
        for name, (each, values) in columns.items()
    }
    return table, taken
