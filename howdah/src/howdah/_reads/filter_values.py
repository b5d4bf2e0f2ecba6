"""The values of declared filters: which types a column can be compared with, and which values PostgreSQL accepts."""

from __future__ import annotations

import re
import struct
import types
from collections.abc import Callable, Iterator
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum as PythonEnum
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin
from uuid import UUID

from pydantic import AwareDatetime, EmailStr, NaiveDatetime
from pydantic_core import PydanticCustomError
from sqlalchemy import BigInteger, DateTime, Enum, Float, Integer, Numeric, SmallInteger, String, TypeDecorator
from sqlalchemy.dialects.postgresql import CITEXT, TSVECTOR
from sqlalchemy.types import TypeEngine

from howdah._arrays import is_single_precision, resolve_postgresql_type, writes_by_expression

_COLLECTIONS: Final = (list, set, frozenset)
_SCALARS: Final = (bool, int, float, Decimal, str, UUID, datetime, date, time)
_RANGE_OPERATORS: Final = frozenset({"<", "<=", ">", ">="})
_NULL_OPERATORS: Final = frozenset({"is null", "is not null"})
_TEXT_OPERATORS: Final = frozenset({"prefix", "full text"})

_MAX_NUMERIC_DIGITS: Final = 131_072
# PostgreSQL rejects a tsquery with a longer word.
_MAX_QUERY_BYTES: Final = 2_046
# PostgreSQL's parser of a tsquery holds at most 32 operators, and a further one is an internal error. Before a word,
# two of them may be AND and OR, and each "-" is one. It skips other characters that aren't in a word.
_MAX_MINUS_SIGNS: Final = 30
_TOO_MANY_MINUS_SIGNS: Final = re.compile(rf'(?:-[^\w"-]*){{{_MAX_MINUS_SIGNS + 1}}}')
# The largest number of digits after the decimal point in PostgreSQL's `numeric`.
_MAX_NUMERIC_SCALE: Final = 16_383


def strip_optional(annotation: Any) -> Any:
    """The annotation without `Annotated` and without `| None`."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        members = [each for each in get_args(annotation) if each is not types.NoneType]
        if len(members) == 1:
            return strip_optional(members[0])
    return annotation


def get_item(annotation: Any) -> Any | None:
    """The type of the items if the annotation is a list or a set, otherwise None."""
    annotation = strip_optional(annotation)
    if get_origin(annotation) in _COLLECTIONS:
        return strip_optional(get_args(annotation)[0])
    return None


def iterate_nested(annotation: Any) -> Iterator[Any]:
    """The annotation, its arguments, and the metadata of each `Annotated` in it."""
    yield annotation
    for each in get_args(annotation):
        yield from iterate_nested(each)


def is_text(kind: TypeEngine[Any]) -> bool:
    """Whether the type is text that is compared byte by byte: not an enum, and not `citext`."""
    plain = resolve_postgresql_type(kind)
    return isinstance(plain, String) and not isinstance(plain, Enum | CITEXT)


def _converts(kind: TypeEngine[Any]) -> bool:
    """Whether the type converts parameters in Python."""
    return isinstance(kind, TypeDecorator) and (
        type(kind).process_bind_param is not TypeDecorator.process_bind_param
        or type(kind).bind_processor is not TypeDecorator.bind_processor
        or _converts(kind.impl_instance)
    )


def is_time(kind: TypeEngine[Any]) -> bool:
    return isinstance(resolve_postgresql_type(kind), DateTime)


def find_fault(annotation: Any, kind: TypeEngine[Any], operator: str, *, ignore_case: bool) -> str | None:
    """Why a parameter with this annotation can't be compared with a column of this type, or None."""
    value, item = strip_optional(annotation), get_item(annotation)
    plain = resolve_postgresql_type(kind)
    if operator in _NULL_OPERATORS:
        return None if value is bool else f"the operator '{operator}' needs a bool, not {_show(value)}"
    if operator == "in":
        if item is None:
            return f"the operator 'in' needs a list of values, such as list[{_show(value)}]"
        value = item
    elif item is not None:
        return f"the operator '{operator}' compares with one value, not with {_show(value)}: use 'in'"
    if (operator in _TEXT_OPERATORS or ignore_case) and _converts(kind):
        return f"{kind!r} converts values before they are stored, so a part of a text can't be compared: use Condition"
    if operator == "full text":
        if not is_text(kind) and not isinstance(plain, TSVECTOR):
            return f"the operator 'full text' needs a column of text or tsvector, not {kind!r}"
        return None if value is str else f"the operator 'full text' needs a str, not {_show(value)}"
    if (operator == "prefix" or ignore_case) and not is_text(kind):
        option = "ignore_case" if ignore_case else "the operator 'prefix'"
        return f"{option} needs a column of text, not {kind!r}"
    if operator in _RANGE_OPERATORS and (isinstance(plain, Enum) or value is bool):
        return f"the operator '{operator}' needs values with an order, which {_show(value)} doesn't have"
    return _find_type_fault(value, kind, plain)


def _find_type_fault(value: Any, kind: TypeEngine[Any], plain: TypeEngine[Any]) -> str | None:
    """Why a value of this type can't be compared with a column, or None."""
    if isinstance(plain, Enum):
        return _find_enum_fault(value, plain)
    column_type = _get_python_type(kind, plain)
    if column_type is datetime:
        expected: Any = AwareDatetime if getattr(plain, "timezone", False) else NaiveDatetime
        hint = "RFC3339Datetime or AwareDatetime" if expected is AwareDatetime else "NaiveDatetime"
        return None if value is expected else f"declare {hint}, not {_show(value)}: the column is {kind!r}"
    if column_type not in _SCALARS or writes_by_expression(kind):
        return f"values of {kind!r} can't be compared with a parameter: use Condition"
    kinds = {type(each) for each in get_args(value)} if get_origin(value) is Literal else {value}
    for declared in kinds:
        each = str if declared is EmailStr else declared
        is_wrong_subclass = (each is bool) is not (column_type is bool) or (each is datetime and column_type is date)
        is_exact = column_type is Decimal and each is int
        if is_wrong_subclass or not (is_exact or (isinstance(each, type) and issubclass(each, column_type))):
            return f"declare {column_type.__name__}, not {_show(value)}: the column is {kind!r}"
    return None


def _find_enum_fault(value: Any, plain: Enum) -> str | None:
    if plain.enum_class is not None:
        expected = plain.enum_class
        return (
            None if value is expected else f"declare {expected.__name__}, not {_show(value)}: other values are errors"
        )
    if get_origin(value) is Literal and {*get_args(value)} <= {*plain.enums}:
        return None
    return f"declare Literal[{', '.join(map(repr, plain.enums))}], not {_show(value)}: other values are errors"


def _get_python_type(kind: TypeEngine[Any], plain: TypeEngine[Any]) -> Any:
    if isinstance(plain, Numeric) and not isinstance(plain, Float):
        return Decimal  # with asdecimal=False, too: a float is hardly ever equal to a decimal number
    for each in (kind, plain):
        try:
            python_type = each.python_type
        except NotImplementedError:
            continue
        if python_type is not object:  # the default of a TypeDecorator
            return python_type
    return None


def _show(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def make_value_check(get_type: Callable[[], TypeEngine[Any]], operator: str) -> Callable[[Any], Any]:
    """A validator that raises `PydanticCustomError` for values that PostgreSQL would reject with an error."""

    def check(value: Any) -> Any:
        items = value if isinstance(value, _COLLECTIONS) else (value,)
        for item in items:
            _check_item(item, get_type, operator)
        return value

    return check


def _check_item(item: Any, get_type: Callable[[], TypeEngine[Any]], operator: str) -> None:
    """Raise `PydanticCustomError` for a value that can't be sent, or that is out of the column's range."""
    match item:
        case None | bool() | UUID():
            return
        case PythonEnum():  # the annotation is the column's own enum, so every member is valid
            return
        case str():
            _check_text(item, operator)
        case int():
            low, high = _get_bounds(get_type())
            if not low <= item <= high:
                raise PydanticCustomError(
                    "out_of_range", "the column holds integers from {low} to {high}", {"low": low, "high": high}
                )
        case float() if is_single_precision(get_type()) and not _fits_in_single_precision(item):
            raise PydanticCustomError("out_of_range", "the number is too large for the column")
        case Decimal() if item.is_finite() and not _fits_in_numeric(item):
            raise PydanticCustomError("out_of_range", "the number has too many digits")
        case time() if (item.tzinfo is not None) is not getattr(resolve_postgresql_type(get_type()), "timezone", False):
            raise PydanticCustomError(
                "time_zone", "the column holds times " + ("without an offset" if item.tzinfo else "with an offset")
            )
        case datetime() if item.utcoffset() is not None and not _fits(item):
            raise PydanticCustomError("out_of_range", "the time is outside of the years 1 to 9999 in UTC")


def _fits_in_single_precision(number: float) -> bool:
    try:
        struct.pack("<f", number)  # without "<" a too large number becomes infinite
    except OverflowError:
        return False
    return True


def _fits_in_numeric(number: Decimal) -> bool:
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)  # it is finite
    return -_MAX_NUMERIC_DIGITS < number.adjusted() < _MAX_NUMERIC_DIGITS and exponent >= -_MAX_NUMERIC_SCALE


def _check_text(text: str, operator: str) -> None:
    if "\0" in text:
        raise PydanticCustomError(
            "nul_character", "a text can't have the character U+0000, which PostgreSQL can't store"
        )
    try:
        length = len(text.encode())
    except UnicodeEncodeError as error:
        raise PydanticCustomError("surrogate", "a text can't have half of a surrogate pair") from error
    if operator == "full text" and length > _MAX_QUERY_BYTES:
        raise PydanticCustomError(
            "too_long", "a search can have at most {limit} bytes in UTF-8", {"limit": _MAX_QUERY_BYTES}
        )
    if operator == "full text" and _TOO_MANY_MINUS_SIGNS.search(text):
        raise PydanticCustomError(
            "too_many_signs", "a search can have at most {limit} times '-' without a word", {"limit": _MAX_MINUS_SIGNS}
        )


def _get_bounds(kind: TypeEngine[Any]) -> tuple[int, int]:
    plain = resolve_postgresql_type(kind)
    bits = 0
    match plain:
        case SmallInteger():
            bits = 15
        case BigInteger():
            bits = 63
        case Integer():
            bits = 31
        case _:  # numeric
            return -(10**_MAX_NUMERIC_DIGITS), 10**_MAX_NUMERIC_DIGITS
    return -(2**bits), 2**bits - 1


def _fits(moment: datetime) -> bool:
    offset = moment.utcoffset()
    assert offset is not None
    try:
        moment.replace(tzinfo=None) - offset
    except OverflowError:
        return False
    return True
