"""SQL expressions that write one column's value as Pydantic does: a renderer for each type of Pydantic field.

The arguments of a renderer are the value, its type in PostgreSQL (`get_stored_type`), the field's node and the model's
config. It returns an expression that `row_to_json` writes as the model does. It returns None if the field's type can't
be rendered from a column of this type; `rendering` then raises `ViewCompileError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy import (
    Boolean,
    Date,
    DateTime,
    Double,
    Float,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    String,
    Text,
    Time,
    Uuid,
    and_,
    case,
    cast,
    func,
    literal,
    literal_column,
    null,
)
from sqlalchemy import Enum as SqlEnum
from sqlalchemy.dialects.postgresql import DOMAIN, INTERVAL, asyncpg
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.types import NullType, TypeDecorator, TypeEngine

from howdah.errors import ViewCompileError
from howdah.models import AwareDateTime

Render = Callable[[ColumnElement[Any], TypeEngine[Any], Any, Mapping[str, Any]], ColumnElement[Any] | None]

_DAY_SECONDS: Final = 86_400
# A timedelta must be shorter than this (`timedelta.max` has 999,999,999 days).
_MAX_TIMEDELTA_SECONDS: Final = _DAY_SECONDS * 10**9
_DIALECT: Final = asyncpg.dialect()  # type: ignore[no-untyped-call]

_OTHER_WAY: Final = "map the column with another type, or read the row with a repository"

# The methods with which a type converts the values that are read, in Python or in SQL.
_CONVERSIONS: Final = ("column_expression", "process_result_value", "result_processor")


def get_stored_type(kind: TypeEngine[Any], path: str) -> TypeEngine[Any]:
    """The type of a column in PostgreSQL. Raises `ViewCompileError` if the type converts stored values in Python."""
    if isinstance(kind, NullType):
        raise ViewCompileError(
            path, "its type isn't known: give the expression a type, func.length(..., type_=Integer)"
        )
    if not isinstance(kind, AwareDateTime) and any(_is_overridden(type(kind), name) for name in _CONVERSIONS):
        raise ViewCompileError(path, f"{kind!r} converts its values in Python: {_OTHER_WAY}")
    stored: TypeEngine[Any] = kind.dialect_impl(_DIALECT)  # applies variants and load_dialect_impl()
    if isinstance(stored, DOMAIN):
        inner = get_stored_type(stored.data_type, path)
        if isinstance(inner, SqlEnum) or not (isinstance(inner, _READ_WITHOUT_CONVERSION) or is_decimal(inner)):
            raise ViewCompileError(
                path, f"SQLAlchemy doesn't convert the values of a domain over {stored.data_type!r}: {_OTHER_WAY}"
            )
        return inner
    if not isinstance(stored, TypeDecorator) or isinstance(stored, Interval):
        return stored
    if (
        type(stored).process_result_value is not TypeDecorator.process_result_value
        or type(stored).result_processor is not TypeDecorator.result_processor
    ) and not isinstance(stored, AwareDateTime):
        raise ViewCompileError(path, f"{kind!r} converts its values in Python: {_OTHER_WAY}")
    return get_stored_type(stored.impl_instance, path)


def quote_literal(text: str) -> str:
    """The text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def _is_overridden(kind: type[Any], name: str) -> bool:
    """Whether a class outside of SQLAlchemy defines the method."""
    method = getattr(kind, name, None)
    return method is not None and not (method.__module__ or "").startswith("sqlalchemy.")


# SQLAlchemy has no result processor for a domain. So the domain's base type must be one that needs none.
_READ_WITHOUT_CONVERSION: Final = (Boolean, Date, DateTime, Integer, LargeBinary, String)


def _render_unchanged(*kinds: type[TypeEngine[Any]]) -> Render:
    """A renderer for fields that `row_to_json` writes like Pydantic if the column has one of these types."""

    def render(
        value: ColumnElement[Any], kind: TypeEngine[Any], _node: Any, _config: Mapping[str, Any]
    ) -> ColumnElement[Any] | None:
        return value if isinstance(kind, kinds) and not isinstance(kind, SqlEnum) else None

    return render


def _render_text(
    value: ColumnElement[Any], kind: TypeEngine[Any], node: Any, _config: Mapping[str, Any]
) -> ColumnElement[Any] | None:
    if isinstance(kind, SqlEnum):
        return (
            _render_member_values(value, kind) if kind.enum_class is None or issubclass(kind.enum_class, str) else None
        )
    if isinstance(kind, Uuid) and not kind.as_uuid:  # SQLAlchemy reads it as a text
        return _render_uuid(value, kind, node, _config)
    return value if isinstance(kind, String) else None


def _render_integer(
    value: ColumnElement[Any], kind: TypeEngine[Any], _node: Any, _config: Mapping[str, Any]
) -> ColumnElement[Any] | None:
    if isinstance(kind, SqlEnum):
        return (
            _render_member_values(value, kind)
            if kind.enum_class is not None and issubclass(kind.enum_class, int)
            else None
        )
    return value if isinstance(kind, Integer) else None


def _render_literal(
    value: ColumnElement[Any], kind: TypeEngine[Any], _node: Any, _config: Mapping[str, Any]
) -> ColumnElement[Any] | None:
    if isinstance(kind, SqlEnum):
        plain = kind.enum_class is None or issubclass(kind.enum_class, str | int)
        return _render_member_values(value, kind) if plain else None
    return value if isinstance(kind, String | Integer | Boolean) else None


def _render_uuid(
    value: ColumnElement[Any], kind: TypeEngine[Any], _node: Any, _config: Mapping[str, Any]
) -> ColumnElement[Any] | None:
    if not isinstance(kind, Uuid):
        return None
    return value if kind.native_uuid else cast(value, Uuid())  # stored as CHAR(32), without dashes


def _render_decimal(
    value: ColumnElement[Any], kind: TypeEngine[Any], _node: Any, _config: Mapping[str, Any]
) -> ColumnElement[Any] | None:
    return cast(value, Text) if isinstance(kind, Integer) or is_decimal(kind) else None


def is_decimal(kind: TypeEngine[Any]) -> bool:
    """Whether the values of this type are decimals in PostgreSQL and in Python."""
    return isinstance(kind, Numeric) and not isinstance(kind, Float) and kind.asdecimal


def is_float(kind: TypeEngine[Any]) -> bool:
    """Whether the values of this type are floats in PostgreSQL and in Python.

    With `asdecimal` SQLAlchemy truncates their digits.
    """
    return isinstance(kind, Float) and not kind.asdecimal


def _render_date_or_datetime(
    value: ColumnElement[Any], kind: TypeEngine[Any], node: Any, _config: Mapping[str, Any]
) -> ColumnElement[Any] | None:
    """A date or a datetime. As in Python, infinities are the minimum and the maximum of the type.

    Other values outside of the years 1 to 9999 raise an error in PostgreSQL, as they would in Python.
    """
    minimum, maximum, first, end = ("0001-01-01", "9999-12-31", "'0001-01-01'", "'10000-01-01'")
    if node["type"] == "datetime":
        zone = "Z" if getattr(kind, "timezone", False) else ""
        first, end = f"'0001-01-01 00:00{zone}'", f"'10000-01-01 00:00{zone}'"
        minimum, maximum = f"{minimum}T00:00:00{zone}", f"{maximum}T23:59:59.999999{zone}"
        moment = func.timezone(literal_column("'UTC'"), value) if zone else value
        text = func.to_char(
            moment, literal_column(quote_literal('YYYY-MM-DD"T"HH24:MI:SS.US' + (zone and f'"{zone}"')))
        )
        finite = func.replace(text, literal_column(f"'.000000{zone}'"), literal_column(f"'{zone}'"))
    else:
        finite = func.to_char(value, literal_column("'YYYY-MM-DD'"))
    if not isinstance(kind, DateTime if node["type"] == "datetime" else Date):
        return None
    return case(
        (and_(value >= literal_column(first), value < literal_column(end)), finite),
        (value.is_(None), null()),
        (value == literal_column("'infinity'"), literal_column(quote_literal(maximum))),
        (value == literal_column("'-infinity'"), literal_column(quote_literal(minimum))),
        else_=_raise_in_postgres(value, "not in the years 1 to 9999"),
    )


def _render_time(
    value: ColumnElement[Any], kind: TypeEngine[Any], _node: Any, _config: Mapping[str, Any]
) -> ColumnElement[Any] | None:
    if not isinstance(kind, Time) or kind.timezone:  # PostgreSQL writes +02, which Pydantic rejects
        return None
    text = func.to_char(cast(value, INTERVAL), literal_column("'HH24:MI:SS.US'"))
    without_fraction = func.replace(text, literal_column("'.000000'"), literal_column("''"))
    error = _raise_in_postgres(value, "Python has no such time")
    return case((value == literal_column("'24:00'"), error), else_=without_fraction)


def _render_timedelta(
    value: ColumnElement[Any], kind: TypeEngine[Any], _node: Any, config: Mapping[str, Any]
) -> ColumnElement[Any] | None:
    """An ISO 8601 duration in days and seconds, or with `ser_json_timedelta="float"` a number of seconds."""
    if isinstance(kind, INTERVAL):
        # EXTRACT counts 365.25 days for a year, the driver 365. The difference is a quarter of a day.
        seconds = func.extract("epoch", value) - func.extract("year", value) * (_DAY_SECONDS // 4)
    elif isinstance(kind, Interval):  # SQLAlchemy stores it as a timestamp, counted from 1970
        seconds = func.extract("epoch", value)
    else:
        return None
    size = func.abs(seconds)
    json_value: Any = seconds
    error: Any = _raise_in_postgres(value, "too long for a timedelta")
    if config.get("ser_json_timedelta", "iso8601") == "float":
        error = cast(error, Numeric)
    else:  # days and seconds, because Pydantic reads at most 32 bits of seconds
        sign = case((seconds < 0, "-"), else_="")
        json_value = func.concat(sign, "P", func.div(size, _DAY_SECONDS), "DT", func.mod(size, _DAY_SECONDS), "S")
    return case((value.is_(None), null()), (size < _MAX_TIMEDELTA_SECONDS, json_value), else_=error)


def _render_bytes(
    value: ColumnElement[Any], kind: TypeEngine[Any], _node: Any, config: Mapping[str, Any]
) -> ColumnElement[Any] | None:
    if not isinstance(kind, LargeBinary):
        return None
    written_as = config.get("ser_json_bytes", "utf8")
    if written_as == "hex":
        return func.encode(value, "hex")
    if written_as == "base64":  # RFC 4648, section 5, without PostgreSQL's line breaks
        return func.translate(func.encode(value, "base64"), "+/\n", "-_")
    return func.convert_from(value, "UTF8")


def _render_float(
    value: ColumnElement[Any], kind: TypeEngine[Any], _node: Any, _config: Mapping[str, Any]
) -> ColumnElement[Any] | None:
    if isinstance(kind, Float):
        if not is_float(kind):
            return None
        return value if isinstance(value.type, Double) else cast(value, Double)  # with as many digits as in Python
    return value if isinstance(kind, Numeric | Integer) else None


def _render_enum(
    value: ColumnElement[Any], kind: TypeEngine[Any], node: Any, _config: Mapping[str, Any]
) -> ColumnElement[Any] | None:
    if isinstance(kind, SqlEnum):
        return _render_member_values(value, kind) if kind.enum_class in (None, node["cls"]) else None
    return value if isinstance(kind, String | Integer) else None


def _render_member_values(value: ColumnElement[Any], kind: SqlEnum) -> ColumnElement[Any] | None:
    """The values of the enum members, or None if they aren't all texts or all integers. PostgreSQL stores labels."""
    if kind.enum_class is None:
        return value
    to_member: Any = kind.result_processor(_DIALECT, None)  # type: ignore[no-untyped-call]
    value_by_label = {label: to_member(label).value for label in kind.enums}
    if all(label == member_value for label, member_value in value_by_label.items()):
        return value
    (type_, *others) = {type(member_value) for member_value in value_by_label.values()}
    if others or not issubclass(type_, str | int):
        return None
    # For an unknown label SQLAlchemy raises LookupError. Here a cast fails, and its error shows the label.
    label = cast(value, Text)
    unknown = _raise_in_postgres(value, "unknown label")
    return case(value_by_label, value=label, else_=cast(unknown, Integer) if issubclass(type_, int) else unknown)


def _raise_in_postgres(value: ColumnElement[Any], reason: str) -> ColumnElement[str]:
    """A cast of a text to an integer, which fails in PostgreSQL. Its error message has the reason and the value."""
    return cast(cast(literal(f"{reason}: ").concat(cast(value, Text)), Integer), Text)


SCALARS: Final[Mapping[str, Render]] = {
    "any": _render_unchanged(String, Integer, Boolean),
    "bool": _render_unchanged(Boolean),
    "bytes": _render_bytes,
    "date": _render_date_or_datetime,
    "datetime": _render_date_or_datetime,
    "decimal": _render_decimal,
    "enum": _render_enum,
    "float": _render_float,
    "int": _render_integer,
    "literal": _render_literal,
    "str": _render_text,
    "time": _render_time,
    "timedelta": _render_timedelta,
    "uuid": _render_uuid,
}
