"""Array parameters: one array for each column, with the values of all rows.

So a statement has the same text and the same number of parameters for any number of rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import repeat
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BindParameter,
    Column,
    ColumnElement,
    Dialect,
    Float,
    Integer,
    TableValuedAlias,
    bindparam,
    cast,
    column,
    func,
    literal_column,
)
from sqlalchemy import values as values_table
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.dialects.postgresql.asyncpg import AsyncpgARRAY
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import TypeDecorator, TypeEngine

_DIALECT: Final[Dialect] = asyncpg.dialect()  # type: ignore[no-untyped-call]

_SINGLE_PRECISION: Final = re.compile(r"REAL|FLOAT\(([1-9]|1\d|2[0-4])\)")


class Array(AsyncpgARRAY):
    """The type of an array parameter.

    The parameter is cast to the type of its items without their length. A cast to `VARCHAR(5)[]` would silently
    truncate a longer text. Without a length the whole text is sent: the column rejects it, and a comparison with it is
    false. If an item is a list (a JSON value), it is still one item, and not a second dimension of the array.
    """

    def __init__(self, item_type: TypeEngine[Any]) -> None:
        super().__init__(item_type, dimensions=1)

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        process = super().bind_processor(dialect)

        def items(values: Any) -> Any:
            bound = values if process is None else process(values)
            if bound is None or list not in {*map(type, bound)}:
                return bound
            # The items are multiranges, or arrays of a DOMAIN. The driver encodes a list in a list as a second
            # dimension of the array, but not a tuple in a list.
            return [tuple(item) if type(item) is list else item for item in bound]

        return items


class WithoutLength(TypeEngine[Any]):
    """The type of a parameter that is compared with a column: the column's type without its length or precision.

    SQLAlchemy casts a parameter to the whole type. A cast to `NUMERIC(10, 2)` would round 9.991 to 9.99 before the
    comparison, and a cast to `CHAR(5)` would truncate a text.
    """

    render_bind_cast = True

    def __init__(self, item_type: TypeEngine[Any]) -> None:
        self.item_type = item_type

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        return self.item_type.dialect_impl(dialect).bind_processor(dialect)


@compiles(WithoutLength, "postgresql")
def _compile_item_without_length(type_: WithoutLength, compiler: Any, **options: Any) -> str:
    if is_single_precision(type_.item_type):
        return "REAL"
    return _remove_length(compiler.process(type_.item_type.dialect_impl(compiler.dialect), **options))


@compiles(Array, "postgresql")
def compile_without_length(array: AsyncpgARRAY, compiler: Any, **options: Any) -> str:
    """The name of the array's type without the length of its items, for the cast of a parameter."""
    if is_single_precision(array.item_type):
        return "REAL[]"
    return _remove_length(compiler.visit_ARRAY(array, **options))


def _remove_length(text: str) -> str:
    if '"' in text:  # a quoted name may contain parentheses itself
        return text
    text = re.sub(r"\(\d+(, ?\d+)?\)", "", text)
    # Without a length, CHAR means one character, and BIT means one bit.
    text = re.sub(r"^CHAR\b", "BPCHAR", text)
    return re.sub(r"^BIT\b(?! VARYING)", "BIT VARYING", text)


def build_array(values: Iterable[Any], item_type: TypeEngine[Any]) -> BindParameter[Any]:
    """A parameter with all the values.

    SQLAlchemy names the parameters of an INSERT or UPDATE after the columns, and rejects a second parameter with the
    same name. So this parameter has a name that a column is unlikely to have.
    """
    return bindparam("howdah parameter", [*values], Array(item_type), unique=True)


def resolve_postgresql_type(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """The type that is used on PostgreSQL: its variant for PostgreSQL, without a `TypeDecorator` around it."""
    plain = kind.dialect_impl(_DIALECT)
    while isinstance(plain, TypeDecorator):
        plain = plain.impl_instance
    return plain


def is_single_precision(kind: TypeEngine[Any]) -> bool:
    """Whether this is PostgreSQL's `real`: `REAL`, or a `Float` of at most 24 bits.

    SQLAlchemy casts a parameter of such a type to `FLOAT`, which is double precision, and 0.1 is another number there.
    """
    if not isinstance(resolve_postgresql_type(kind), Float):
        return False
    return _SINGLE_PRECISION.fullmatch(kind.compile(dialect=_DIALECT)) is not None


def writes_by_expression(kind: TypeEngine[Any]) -> bool:
    """Whether SQLAlchemy wraps parameters of this type in an SQL expression."""
    plain = kind.dialect_impl(_DIALECT)
    while isinstance(plain, TypeDecorator) and type(plain).bind_expression is TypeDecorator.bind_expression:
        plain = plain.impl_instance
    return type(plain).bind_expression is not TypeEngine.bind_expression


def fits_in_array(column: Column[Any]) -> bool:
    """Whether the column's values can be items of an array parameter.

    Arrays can't be items, because `unnest` would flatten them. Values that the column's type writes by an SQL
    expression can't be items either. `list_values` sends both.
    """
    return not isinstance(resolve_postgresql_type(column.type), ARRAY) and not writes_by_expression(column.type)


def unnest_arrays(
    columns: Mapping[str, tuple[Column[Any], Iterable[Any]]], *, name: str = "howdah_values"
) -> tuple[TableValuedAlias, dict[str, Any]]:
    """A table of the values (`unnest` of arrays), and for each name an expression for use in the statement.

    `columns` maps each name to a mapped column, whose type is used, and to the values. The expression for a name is
    usually a column of the table. If the values are an `itertools.repeat`, all rows have the same value: the expression
    is then a parameter, and the table has no such column. `name` is the name of the table.
    """
    varying = {name: (each, values) for name, (each, values) in columns.items() if not isinstance(values, repeat)}
    arrays = [build_array(values, each.type) for each, values in varying.values()]
    named = [column(name, each.type) for name, (each, _) in varying.items()]
    table = func.unnest(*arrays).table_valued(*named).render_derived(name=name)
    expressions = {
        name: bindparam("howdah parameter", next(values), each.type, unique=True)
        if isinstance(values, repeat)
        else table.c[name]
        for name, (each, values) in columns.items()
    }
    return table, expressions


def list_values(
    columns: Mapping[str, tuple[Column[Any], Iterable[Any]]], *, position: str, name: str
) -> dict[str, Any]:
    """The columns, by name, of a table of values of any type (`VALUES`), with a parameter for each value.

    There is also a column `position`, which counts the rows from 0. A statement can have at most 32,767
    parameters.
    """
    types = {key: each.type for key, (each, _) in columns.items()}
    rows = [
        # Most of the time is spent compiling, so the position is no parameter.
        (literal_column(str(number), Integer), *map(_build_listed_value, row, types.values()))
        for number, row in enumerate(zip(*(items for _, items in columns.values()), strict=True))
    ]
    named = [column(position, Integer), *(column(key, kind) for key, kind in types.items())]
    table = values_table(*named, name=name).data(rows)
    return {key: table.c[key] for key in (position, *columns)}


def _build_listed_value(value: Any, kind: TypeEngine[Any]) -> ColumnElement[Any]:
    parameter = bindparam("howdah parameter", value, kind, unique=True)
    if not isinstance(kind, TypeDecorator):
        return parameter
    # SQLAlchemy adds no cast if a `TypeDecorator` is around another one.
    plain = resolve_postgresql_type(kind)
    return cast(parameter, Array(plain.item_type)) if isinstance(plain, ARRAY) else parameter
