"""The types of a viewer's attributes. A value is converted exactly to the type of the compared column, or rejected.

The conversion runs before anything is sent, so a wrong value fails only its own call. All values of one attribute have
the same SQL type, without a length or precision: a cast to `VARCHAR(5)` would truncate a longer text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import asyncpg.pgproto.pgproto
from sqlalchemy import (
    BigInteger,
    Boolean,
    Date,
    DateTime,
    Enum,
    Float,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    SmallInteger,
    String,
    Uuid,
)
from sqlalchemy.dialects.postgresql import CITEXT, INTERVAL
from sqlalchemy.dialects.postgresql import asyncpg as asyncpg_dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

from howdah._arrays import Array, writes_by_expression
from howdah._rejected_values import RejectedValue
from howdah._sqlalchemy import cache_key_of
from howdah._types.integers import to_exact_integer
from howdah.errors import InvalidValue

_DIALECT: Final = asyncpg_dialect.dialect()  # type: ignore[no-untyped-call]
_UUIDS: Final = frozenset({UUID, asyncpg.pgproto.pgproto.UUID})

SUPPORTED: Final = (
    "a UUID, an integer, a text, a boolean, an enum, a Numeric, a date, a time stamp, an interval, bytes, or a list"
)


class _Refused(ValueError):
    """A value that can't be converted exactly. The text completes the sentence "its value …"."""


@dataclass(frozen=True)
class ViewerType:
    """The type of one attribute of a viewer. With `is_list` the attribute is a collection of such values."""

    kind: TypeEngine[Any]
    convert_item: Callable[[Any], Any]
    has_exact_items: bool
    """Whether two converted values are equal in Python if and only if they are the same value for PostgreSQL."""
    is_list: bool = False
    source: object = None
    """Identifies the converter of an enum or a custom type. Types with different sources are different types."""

    @property
    def parameter_type(self) -> TypeEngine[Any]:
        """The type of the parameter with one viewer's value."""
        return Array(self.kind) if self.is_list else self.kind

    def convert(self, value: Any, name: str) -> Any:
        """The value for sending, with a tuple for a list. Raises `InvalidValue` if the value isn't of this type."""
        if value is None:
            return None  # SQL NULL, which is equal to nothing
        try:
            if not self.is_list:
                return self.convert_item(value)
            if isinstance(value, str | bytes | bytearray | Mapping) or not isinstance(value, Iterable):
                raise _Refused(f"is a {type(value).__name__}, not a list")
            return tuple(None if item is None else self.convert_item(item) for item in value)
        except Exception as error:  # a custom type may raise anything
            reason = str(error) if isinstance(error, _Refused) else f"isn't of type {self.kind!r}"
            if isinstance(error, RejectedValue):
                reason = f"isn't valid: {error}"
            raise InvalidValue(
                None, None, RejectedValue(f"a viewer was rejected: its value for {name!r} {reason}")
            ) from error


def merge_types(first: ViewerType, second: ViewerType) -> ViewerType | None:
    """The type of an attribute that is compared with both: for integers the larger one, None for different types."""
    if first.is_list is not second.is_list or first.source != second.source:
        return None
    if isinstance(first.kind, Integer) and isinstance(second.kind, Integer):
        return max(first, second, key=lambda each: _get_integer_bits(each.kind))
    return first if repr(first.kind) == repr(second.kind) else None


def find_viewer_type(kind: TypeEngine[Any], *, is_list: bool) -> ViewerType | None:
    """The type for values that are compared with an expression of type `kind`; None if it isn't supported."""
    original, plain = kind, kind.dialect_impl(_DIALECT)
    decorators: list[TypeDecorator[Any]] = []
    while isinstance(plain, TypeDecorator):
        if type(plain).bind_processor is not TypeDecorator.bind_processor:
            return None  # a conversion that can't be called for one value
        if type(plain).process_bind_param is not TypeDecorator.process_bind_param:
            decorators.append(plain)
        original, plain = plain.impl_instance, plain.impl_instance.dialect_impl(_DIALECT)
    if writes_by_expression(kind) or not type(plain).__module__.startswith("sqlalchemy."):
        return None
    found = _find_plain_type(plain, original)
    if found is None or not decorators:
        return (
            None
            if found is None
            else ViewerType(*found, is_list=is_list, source=cache_key_of(kind) if isinstance(plain, Enum) else None)
        )
    sent, convert, is_exact = found

    def decorate(value: Any) -> Any:
        for decorator in decorators:
            value = decorator.process_bind_param(value, _DIALECT)
        return None if value is None else convert(value)

    return ViewerType(sent, decorate, is_exact, is_list=is_list, source=cache_key_of(kind))


def _find_plain_type(
    plain: TypeEngine[Any], original: TypeEngine[Any]
) -> tuple[TypeEngine[Any], Callable[[Any], Any], bool] | None:
    """The type that is sent, the conversion of a value, and `has_exact_items`."""
    match plain:
        case Uuid() if plain.native_uuid:
            return Uuid(), _to_uuid, True
        case Enum():
            return original, _convert_enum(plain), True
        case CITEXT():
            return CITEXT(), _to_text, True
        case String():
            return String(), _to_text, True
        case Integer():
            sent: TypeEngine[Any] = next(
                kind for kind in (SmallInteger(), BigInteger(), Integer()) if isinstance(plain, type(kind))
            )
            return sent, _convert_integer(_get_integer_bits(sent)), True
        case Boolean():
            return Boolean(), _convert_instance(bool), True
        case Float():  # a subclass of Numeric
            return None
        case Numeric():
            return Numeric(), _to_decimal, False
        case DateTime():
            return DateTime(timezone=plain.timezone), _convert_datetime(has_zone=plain.timezone), False
        case Date():
            return Date(), _to_date, False
        case INTERVAL():
            return Interval(), _convert_instance(timedelta), False
        case LargeBinary():
            return LargeBinary(), _to_bytes, True
    return None


def _to_uuid(value: Any) -> Any:
    if type(value) in _UUIDS:
        return value
    octets = value if isinstance(value, str) else getattr(value, "bytes", None)
    try:
        if isinstance(octets, str):
            return UUID(octets)
        if isinstance(octets, bytes):
            return UUID(bytes=octets)
    except ValueError:
        pass
    raise _Refused("isn't a UUID")


def _to_text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Refused(f"is a {type(value).__name__}, not a text")
    text = str.__str__(value)  # a subclass might have its own comparison
    if "\0" in text or not _is_encodable(text):
        raise _Refused("is a text that PostgreSQL can't store")
    return text


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _get_integer_bits(kind: TypeEngine[Any]) -> int:
    return 16 if isinstance(kind, SmallInteger) else 64 if isinstance(kind, BigInteger) else 32


def _convert_integer(bits: int) -> Callable[[Any], int]:
    bound = 2 ** (bits - 1)

    def convert(value: Any) -> int:
        whole = value if type(value) is int else to_exact_integer(value)
        if not isinstance(whole, int) or isinstance(value, bool):
            raise _Refused(f"is a {type(value).__name__}, not an integer")
        if not -bound <= whole < bound:
            raise _Refused(f"is an integer of more than {bits} bits")
        return int.__index__(whole)

    return convert


def _convert_enum(kind: Enum) -> Callable[[Any], str]:
    process: Any = kind.bind_processor(_DIALECT)  # type: ignore[no-untyped-call]

    def convert(value: Any) -> str:
        text = value if process is None else process(value)
        if not isinstance(text, str) or text not in kind.enums:
            raise _Refused(f"isn't one of {', '.join(kind.enums)}")
        return str.__str__(text)

    return convert


def _convert_instance(wanted: type) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if not isinstance(value, wanted):
            raise _Refused(f"is a {type(value).__name__}, not a {wanted.__name__}")
        return value

    return convert


def _to_decimal(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise _Refused(f"is a {type(value).__name__}, not a Decimal")
    number = Decimal(value)
    if not number.is_finite():
        raise _Refused("isn't a finite number")
    return number


def _convert_datetime(*, has_zone: bool) -> Callable[[Any], datetime]:
    def convert(value: Any) -> datetime:
        if not isinstance(value, datetime):
            raise _Refused(f"is a {type(value).__name__}, not a datetime")
        if (value.utcoffset() is not None) is not has_zone:
            raise _Refused("is a datetime without a time zone" if has_zone else "is a datetime with a time zone")
        return value

    return convert


def _to_date(value: Any) -> date:
    if isinstance(value, datetime) or not isinstance(value, date):
        raise _Refused(f"is a {type(value).__name__}, not a date")
    return value


def _to_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise _Refused(f"is a {type(value).__name__}, not bytes")
    return bytes.__getitem__(value, slice(None))  # a subclass might have its own comparison


def flatten(values: Sequence[Any]) -> tuple[list[Any], list[int | None], list[int | None]]:
    """The items of all lists, and the positions of each list's first and last item, counted from 1.

    PostgreSQL has no arrays of arrays with different lengths. A list that is None has no positions.
    """
    items: list[Any] = []
    starts: list[int | None] = []
    ends: list[int | None] = []
    for each in values:
        starts.append(None if each is None else len(items) + 1)
        items += each or ()
        ends.append(None if each is None else len(items))
    return items, starts, ends
