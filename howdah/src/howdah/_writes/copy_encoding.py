"""Whether COPY stores a value as an INSERT does.

An INSERT sends a value as the type of the model's column (`$1::FLOAT`), and PostgreSQL converts it to the type of the
column in the database. COPY has no such conversion: the driver encodes the value for the column in the database. If the
two types differ, the driver may convert the value differently. For an integer column the driver truncates 1.7 to 1, but
PostgreSQL rounds it to 2. The driver interprets a naive time in the local time zone, but PostgreSQL uses the session's
time zone.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import ARRAY, Date, DateTime, Dialect, Float, Integer, Numeric, Time, TypeDecorator
from sqlalchemy.dialects.postgresql.ranges import AbstractRange
from sqlalchemy.types import TypeEngine

# For these types the driver's encoders convert a value of another Python type instead of rejecting it.
_CONVERTING: Final = frozenset(
    {"int2", "int4", "int8", "float4", "float8", "numeric", "date", "time", "timetz", "timestamp", "timestamptz"}
)

_INTEGER: Final = frozenset({"int2", "int4", "int8", "numeric", "float8"})
_FLOAT: Final = frozenset({"float4", "float8"})


def is_encoded_as_inserted(kind: TypeEngine[Any], found: str, dialect: Dialect) -> bool:
    """Whether COPY into a column of type `found` stores a value of type `kind` as an INSERT would.

    `kind` is the type of the model's column. `found` is the name in `pg_type` of the column's type in the database; for
    an array it is the name of the item type and `[]`. The result is also true if the driver rejects values of a wrong
    Python type for `found`. Then it stores no value that an INSERT would store differently.
    """
    plain = unwrap_type(kind, dialect)
    if not plain.render_bind_cast:  # an INSERT has no cast either, so it also uses the type in the database
        return True
    if found.endswith("[]"):
        return isinstance(plain, ARRAY) and is_encoded_as_inserted(plain.item_type, found[:-2], dialect)
    if isinstance(plain, AbstractRange):
        return kind.compile(dialect=dialect).lower() == found
    return found not in _CONVERTING or found in _get_encodable_types(plain)


def unwrap_type(kind: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    """The type that is sent to PostgreSQL, without a `TypeDecorator` around it."""
    kind = kind.dialect_impl(dialect)
    while isinstance(kind, TypeDecorator):
        kind = kind.impl_instance.dialect_impl(dialect)
    return kind


def _get_encodable_types(kind: TypeEngine[Any]) -> frozenset[str]:
    """The types of the database that this type's values can be encoded for."""
    if isinstance(kind, Integer):
        return _INTEGER
    if isinstance(kind, Float):  # before Numeric, of which it is a subclass in SQLAlchemy 2.0
        return _FLOAT
    if isinstance(kind, Numeric):
        return frozenset({"numeric"})
    if isinstance(kind, DateTime):
        return frozenset({"timestamptz" if kind.timezone else "timestamp"})
    if isinstance(kind, Time):
        return frozenset({"timetz" if kind.timezone else "time"})
    return frozenset({"date"}) if isinstance(kind, Date) else frozenset()
