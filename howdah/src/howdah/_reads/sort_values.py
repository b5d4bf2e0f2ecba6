"""Sort values: PostgreSQL's text of a value, and the type to cast the text to.

A cursor holds no Python values. The page selects `CAST(sort key AS TEXT)` and PostgreSQL's type of the sort key. The
next page compares the sort key with `CAST(text AS type)`. So neither conversions of Python types nor SQLAlchemy's
assumptions about the type of an expression matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import ARRAY, ColumnElement, Enum, Text, TypeDecorator, case, cast, func, literal, null, or_, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import CITEXT, DOMAIN, ENUM, HSTORE, OID
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import Null
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType, TypeEngine, UserDefinedType

DIALECT: Final = postgresql.dialect()  # type: ignore[no-untyped-call]

# The types that have an order and an exact text, with the OIDs of the type and of its array. These OIDs never change.
# `money` isn't here, because its text depends on lc_monetary, nor `tsvector` and `tsquery`, whose input is normalized.
_BUILT_IN: Final[dict[str, tuple[int, int]]] = {
    "bit": (1560, 1561),
    "bool": (16, 1000),
    "bpchar": (1042, 1014),
    "bytea": (17, 1001),
    "char": (18, 1002),
    "cidr": (650, 651),
    "date": (1082, 1182),
    "datemultirange": (4535, 6155),
    "daterange": (3912, 3913),
    "float4": (700, 1021),
    "float8": (701, 1022),
    "inet": (869, 1041),
    "int2": (21, 1005),
    "int4": (23, 1007),
    "int4multirange": (4451, 6150),
    "int4range": (3904, 3905),
    "int8": (20, 1016),
    "int8multirange": (4536, 6157),
    "int8range": (3926, 3927),
    "interval": (1186, 1187),
    "jsonb": (3802, 3807),
    "macaddr": (829, 1040),
    "macaddr8": (774, 775),
    "name": (19, 1003),
    "numeric": (1700, 1231),
    "nummultirange": (4532, 6151),
    "numrange": (3906, 3907),
    "oid": (26, 1028),
    "pg_lsn": (3220, 3221),
    "text": (25, 1009),
    "time": (1083, 1183),
    "timestamp": (1114, 1115),
    "timestamptz": (1184, 1185),
    "timetz": (1266, 1270),
    "tsmultirange": (4533, 6152),
    "tsrange": (3908, 3909),
    "tstzmultirange": (4534, 6153),
    "tstzrange": (3910, 3911),
    "uuid": (2950, 2951),
    "varbit": (1562, 1563),
    "varchar": (1043, 1015),
    "xid8": (5069, 271),
}
_NAMES: Final[dict[int, str]] = {
    oid: name for scalar, oids in _BUILT_IN.items() for name, oid in zip((scalar, f"_{scalar}"), oids, strict=True)
}


def _get_oids(*names: str) -> frozenset[int | None]:
    return frozenset(oid for name in names for oid in _BUILT_IN[name])


# The types whose text depends on a setting, and the values of the setting with which the text is exact.
_FLOATS: Final = _get_oids("float4", "float8")
_INTERVALS: Final = _get_oids("interval")
_EXACT_INTERVALS: Final = ("postgres", "iso_8601")
_DATES: Final = _get_oids(
    *("date", "daterange", "datemultirange"),
    *("timestamp", "tsrange", "tsmultirange"),
    *("timestamptz", "tstzrange", "tstzmultirange"),
)

# The type to cast a text to: the OID of a built-in type, or None for the type of the mapping. An enum, citext and other
# types of extensions have another OID in each database, so a cursor can't name them.
TypeOid = int | None


class _BuiltIn(UserDefinedType[Any]):
    """A built-in type of PostgreSQL by its quoted name, without a length.

    A cast to an unquoted `bit` would truncate to one bit, and a cast to `numeric(10, 2)` would round. The schema makes
    the name independent of the `search_path`.
    """

    cache_ok = True

    def __init__(self, name: str) -> None:
        self.name = name

    def get_col_spec(self, **_: Any) -> str:
        return f'pg_catalog."{self.name}"'


_TYPES: Final = {oid: _BuiltIn(name) for oid, name in _NAMES.items()}


class SortValue(NamedTuple):
    """One value of a sort key: PostgreSQL's text of it (None for NULL), and the type to cast the text to."""

    text: str | None
    oid: TypeOid

    @property
    def is_null(self) -> bool:
        return self.text is None


class SortValues(FunctionElement[Any]):
    """The column that a page selects in addition to each row.

    It is an array of the text and the type's OID of each sort key, followed by the settings on which the texts depend.
    It is a single column, because SQLAlchemy takes three times as long to build one column for each value.
    """

    name = "sort_values"
    type = NullType()
    inherit_cache = True

    def __init__(self, keys: Sequence[tuple[ColumnElement[Any], TypeEngine[Any]]]) -> None:
        super().__init__(*(each for column, kind in keys for each in (column, _select_oid(column, kind))))


def _select_oid(column: ColumnElement[Any], kind: TypeEngine[Any]) -> ColumnElement[Any]:
    """An expression for the OID of the type to cast to, or `null()` for a mapped type with a fixed OID.

    For `null()`, `_compile_sort_values` writes `pg_typeof(column)`.

    The expression is NULL if the text can be cast to the mapped type, otherwise the OID of the column's type. A cast to
    the mapped type is only right if PostgreSQL compares the column as a value of that type. `nullif` shows this: it
    compares its arguments with `=`, and its result has the type in which they were compared. For example, an
    extension's type outside of the search_path is sorted as itself, but compared as text.
    """
    if not _lacks_fixed_oid(kind):
        return null()
    is_other = func.pg_typeof(func.nullif(column, null())) != func.pg_typeof(cast(null(), kind))
    oid = cast(func.pg_typeof(column), OID)
    # A built-in type is cast without the length that the mapping may give it.
    return case((or_(is_other, oid < _FIRST_USER_OID), oid))


# Types with a lower OID are PostgreSQL's own (FirstNormalObjectId in its sources).
_FIRST_USER_OID: Final = 16_384

# The role, the database or the session may set these. The subquery evaluates them once for each statement.
_SETTINGS: Final = ", ".join(
    f"current_setting('{name}')" for name in ("DateStyle", "IntervalStyle", "extra_float_digits")
)


@compiles(SortValues)
def _compile_sort_values(element: SortValues, compiler: Any, **options: Any) -> str:
    options["within_columns_clause"] = False
    parts, clauses = [], iter(element.clauses)
    for column, oid_clause in zip(clauses, clauses, strict=True):
        value = compiler.process(column, **options)
        has_fixed_oid = isinstance(oid_clause, Null)
        oid = f"CAST(pg_typeof({value}) AS OID)" if has_fixed_oid else compiler.process(oid_clause, **options)
        parts += [f"CAST({value} AS TEXT)", f"CAST({oid} AS TEXT)"]
    return f"ARRAY[{', '.join(parts)}, (SELECT concat_ws('|', {_SETTINGS}))]"


def cast_text(value: SortValue, kind: TypeEngine[Any]) -> ColumnElement[Any]:
    """The value as an SQL expression, for a comparison with a sort key of the mapped type `kind`."""
    return cast(literal(value.text, Text), kind if value.oid is None else _TYPES[value.oid])  # None: the mapped type


def has_allowed_type(value: SortValue, kind: TypeEngine[Any]) -> bool:
    """Whether a cursor for this sort key may have this type. Only the type becomes a part of the SQL text."""
    return _lacks_fixed_oid(kind) if value.oid is None else value.oid in _TYPES


async def resolve_cast_types(
    connection: AsyncSession | AsyncConnection,
    keys: Sequence[tuple[ColumnElement[Any], TypeEngine[Any]]],
    selected: Sequence[str | None],
) -> list[TypeOid]:
    """The types to cast the texts of a row's `SortValues` to. `selected` is the array that was selected for the row.

    Raises `TypeError` for a type whose text isn't exact.
    """
    oids: list[TypeOid] = []
    settings = selected[-1] or ""
    # The array has text, OID, text, OID, …, settings.
    for (column, kind), selected_oid in zip(keys, selected[1:-1:2], strict=True):
        oid = None if selected_oid is None else int(selected_oid)
        if oid is not None and oid not in _NAMES:
            oid = await _find_base_type(connection, column, oid)
        _check_settings(column, kind, oid, settings)
        oids.append(oid)
    return oids


_BASE_TYPE: Final = text("""
    WITH RECURSIVE base AS (
        SELECT oid, typtype, typbasetype FROM pg_catalog.pg_type WHERE oid = :oid
        UNION ALL
        SELECT each.oid, each.typtype, each.typbasetype
        FROM base JOIN pg_catalog.pg_type AS each ON each.oid = base.typbasetype
    )
    SELECT oid, pg_catalog.format_type(:oid, NULL) FROM base WHERE typtype <> 'd'
    """)


async def _find_base_type(connection: AsyncSession | AsyncConnection, column: ColumnElement[Any], oid: int) -> int:
    """The OID of the base type of a DOMAIN over a built-in type. Raises `TypeError` for any other type."""
    base, name = (await connection.execute(_BASE_TYPE, {"oid": oid})).one()
    if base in _NAMES:
        return int(base)
    raise TypeError(
        f"a page can't be ordered by {column}: PostgreSQL has it as {name}, and a cursor can't hold that exactly. "
        "Map the column with that type if it is an enum or an extension's type, or order by a cast of it, "
        "such as cast(..., Text) or cast(..., Numeric)"
    )


def _check_settings(column: ColumnElement[Any], kind: TypeEngine[Any], oid: TypeOid, settings: str) -> None:
    """Raise `TypeError` if the text of this type isn't exact under the session's settings."""
    date_style, interval_style, float_digits = settings.split("|")
    # An extension's type may contain dates or floats, so it is rejected if any setting is inexact.
    may_depend = oid is None and not isinstance(_get_item_type(kind), _TEXTS)
    for depends, setting, is_exact, wanted in (
        (oid in _DATES, f"DateStyle = '{date_style}'", date_style.startswith("ISO"), "ISO"),
        (oid in _INTERVALS, f"IntervalStyle = '{interval_style}'", interval_style in _EXACT_INTERVALS, "postgres"),
        (oid in _FLOATS, f"extra_float_digits = {float_digits}", int(float_digits) > 0, "1"),
    ):
        if (depends or may_depend) and not is_exact:
            raise TypeError(
                f"a page can't be ordered by {column} under {setting}, which writes values that other sessions read "
                f"differently: set it to {wanted} for the role or the database"
            )


def _get_item_type(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """The PostgreSQL type without a `TypeDecorator`; of an array, the type of its items."""
    kind = kind.dialect_impl(DIALECT)  # the variant for PostgreSQL
    if isinstance(kind, TypeDecorator):
        return _get_item_type(kind.load_dialect_impl(DIALECT))
    if isinstance(kind, ARRAY):
        return _get_item_type(kind.item_type)
    return kind


# Types whose text depends on no setting.
_TEXTS: Final = (ENUM, Enum, CITEXT, HSTORE)


def _lacks_fixed_oid(kind: TypeEngine[Any]) -> bool:
    """Whether the type's OID differs between databases, so that it must be cast by its name."""
    item = _get_item_type(kind)
    if isinstance(item, DOMAIN):  # the operators of enums don't take a domain
        return _lacks_fixed_oid(item.data_type) and not isinstance(_get_item_type(item.data_type), Enum)
    return item.native_enum if isinstance(item, Enum) else isinstance(item, CITEXT | HSTORE | UserDefinedType)
