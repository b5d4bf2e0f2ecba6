"""Integers that are stored exactly, or rejected.

For an integer the driver calls `int()` on the value, so it would store 1 for 1.99. PostgreSQL's cast would store 2.
The types here check each value of an integer type first: scalars, items of arrays, and bounds of ranges and
multiranges. They apply to every statement of a `Database`'s engine whose parameters have a type, and to COPY.

- An `int`, an `IntEnum`, a `bool` (True is 1) and any value with `__index__`, such as numpy's integers, are stored.
- Another number is stored if it is equal to an integer: `1.0`, `Decimal("1.00")`, `Fraction(2, 2)`. Keys have the same
  rule.
- All other values that `int()` accepts are rejected with `InvalidValue`: fractions, NaN, infinities, and objects that
  aren't equal to their integer, such as a `UUID`.

Two kinds of parameters aren't checked, so the driver truncates their values: parameters without a type, such as those
of a `text()` without `bindparams`, and parameters of a `DOMAIN` of integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from operator import index
from types import NoneType
from typing import Any, Final

from sqlalchemy import ARRAY, BigInteger, Dialect, Engine, Integer, SmallInteger
from sqlalchemy.dialects.postgresql import INT4MULTIRANGE, INT4RANGE, INT8MULTIRANGE, INT8RANGE, OID
from sqlalchemy.dialects.postgresql.asyncpg import (
    AsyncpgARRAY,
    AsyncpgBigInteger,
    AsyncpgInteger,
    AsyncpgOID,
    AsyncpgSmallInteger,
)
from sqlalchemy.dialects.postgresql.ranges import AbstractMultiRange, AbstractSingleRange
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import TypeEngine

from howdah._arrays import Array, compile_without_length
from howdah._rejected_values import RejectedValue

_INTEGER_OR_NULL: Final = frozenset({int, NoneType})

# 2 ** 64 has twenty digits. Without this limit, int() of Decimal("1E+999999999") would take all memory.
_MAX_DIGITS: Final = 20


def use_exact_integers(engine: Engine) -> None:
    """Use the types of this module for every statement of the engine.

    Call it before the first statement, because SQLAlchemy keeps the implementation that it has chosen for a type.
    """
    dialect = engine.dialect
    types: dict[Any, Any] = {**dialect.colspecs}
    exact_range = type("ExactRange", (_ExactRangeMixin, types[AbstractSingleRange]), {})
    exact_multirange = type("ExactMultiRange", (_ExactMultirangeMixin, types[AbstractMultiRange]), {})
    dialect.colspecs = types | {
        Integer: _ExactInteger,
        SmallInteger: _ExactSmallInteger,
        BigInteger: _ExactBigInteger,
        OID: _ExactOID,
        ARRAY: _ExactARRAY,
        Array: _ExactArray,
        INT4RANGE: exact_range,
        INT8RANGE: exact_range,
        INT4MULTIRANGE: exact_multirange,
        INT8MULTIRANGE: exact_multirange,
    }


def is_exact_integer_type(kind: TypeEngine[Any]) -> bool:
    """Whether this is an integer type of this module. Its `bind_processor` returns every `int` and None unchanged."""
    return isinstance(kind, _ExactIntegerType)


def has_only_integers(values: Sequence[Any]) -> bool:
    """Whether all the values are integers or None. It may return False even if they are."""
    try:
        # A sum is an `int` only if no value is a float, Decimal or Fraction. It takes 3 ns for each value, and checking
        # the types takes 25 ns.
        total: object = sum(values)
    except Exception:  # one is None, or can't be added
        total = None
    return type(total) is int or _INTEGER_OR_NULL.issuperset(map(type, values))


def to_exact_integer(value: Any) -> Any:
    """The integer that is equal to the value. Raises `RejectedValue` if there is none.

    None, and a value that the driver itself rejects, is returned unchanged.
    """
    if type(value) is int or value is None:
        return value
    try:
        return index(value)
    except TypeError:
        pass
    if not hasattr(type(value), "__int__"):
        return value
    name = type(value).__name__
    if isinstance(value, Decimal) and value.adjusted() >= _MAX_DIGITS:
        raise RejectedInteger(
            f"a {name} of more than {_MAX_DIGITS} digits was rejected: an integer has at most 64 bits"
        )
    try:
        whole = int(value)
        is_equal = bool(whole == value)
    except (TypeError, ValueError, ArithmeticError):  # NaN and infinities
        is_equal = False
    if not is_equal:
        raise RejectedValue(
            f"a {name} that isn't a whole number was rejected for an integer: pass an int, such as round(value), or "
            "use a column of type Numeric or Float"
        )
    return whole


class RejectedInteger(RejectedValue, OverflowError):
    """A number beyond every integer type. The caller gets an `OutOfRange` with this text."""


class _ExactIntegerType:
    """Mixin of an integer type. It rejects a value that would be stored as a different number."""

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        return to_exact_integer

    def literal_processor(self, dialect: Dialect) -> Callable[[Any], str]:
        return lambda value: str(int(to_exact_integer(value)))


class _ExactInteger(_ExactIntegerType, AsyncpgInteger):
    pass


class _ExactSmallInteger(_ExactIntegerType, AsyncpgSmallInteger):
    pass


class _ExactBigInteger(_ExactIntegerType, AsyncpgBigInteger):
    pass


class _ExactOID(_ExactIntegerType, AsyncpgOID):
    pass


class _ExactItemsMixin:
    """Mixin of an array type. It rejects a text.

    It checks a list of integers at once, because a call for each item is ten times slower.
    """

    item_type: TypeEngine[Any]
    dimensions: int | None

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        process: Callable[[Any], Any] | None = super().bind_processor(dialect)  # type: ignore[misc]
        has_integers = is_exact_integer_type(self.item_type.dialect_impl(dialect)) and self.dimensions in {None, 1}

        def bind_items(values: Any) -> Any:
            if has_integers and isinstance(values, list | tuple) and has_only_integers(values):
                return [*values]
            if isinstance(values, str | bytes):  # SQLAlchemy would make an array of the characters
                raise RejectedValue(f"a {type(values).__name__} was rejected for an array: pass a list")
            return values if process is None else process(values)

        return bind_items


class _ExactARRAY(_ExactItemsMixin, AsyncpgARRAY):
    pass


# SQLAlchemy casts a parameter to the type of its column. A cast to `VARCHAR(5)[]` would silently truncate a longer
# text, without the error of the column.
compiles(_ExactARRAY, "postgresql")(compile_without_length)


class _ExactArray(_ExactItemsMixin, Array):
    pass


class _ExactRangeMixin:
    """Mixin of a range type whose bounds are integers."""

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        return _check_after_binding(_check_bounds, super().bind_processor(dialect))  # type: ignore[misc]


class _ExactMultirangeMixin:
    """Mixin of a multirange type whose bounds are integers."""

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        return _check_after_binding(_check_ranges, super().bind_processor(dialect))  # type: ignore[misc]


def _check_after_binding(check: Callable[[Any], None], process: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    """A bind processor that applies `process`, if there is one, and checks its result."""

    def bind(value: Any) -> Any:
        bound = value if process is None else process(value)
        check(bound)
        return bound

    return bind


def _check_bounds(value: Any) -> None:
    """Check the bounds of the driver's range. The driver also accepts a list or tuple of the two bounds."""
    is_pair = isinstance(value, list | tuple)
    for bound in value if is_pair else (getattr(value, "lower", None), getattr(value, "upper", None)):
        to_exact_integer(bound)


def _check_ranges(value: Any) -> None:
    if isinstance(value, list | tuple):
        for each in value:
            _check_bounds(each)
