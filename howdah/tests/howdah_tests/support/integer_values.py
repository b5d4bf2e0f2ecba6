"""A table of integers, values that are equal to an integer, and values that aren't."""

from __future__ import annotations

import enum
import math
from decimal import Decimal
from fractions import Fraction
from ipaddress import IPv4Address
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Dialect,
    Integer,
    MetaData,
    SmallInteger,
    TypeDecorator,
)
from sqlalchemy.dialects.postgresql import ARRAY as PG_ARRAY
from sqlalchemy.dialects.postgresql import (
    INT4RANGE,
    INT8MULTIRANGE,
    INT8RANGE,
    OID,
    Range,
)
from sqlalchemy.dialects.postgresql.ranges import MultiRange
from sqlalchemy.orm import Mapped, mapped_column

from howdah import Base


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class Doubled(TypeDecorator[float]):
    """Stores the double of a value."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return None if value is None else value * 2


class Tally(Separate):
    """A column of every integer type."""

    __tablename__ = "tallies"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    small: Mapped[int | None] = mapped_column(SmallInteger)
    whole: Mapped[int | None]
    big: Mapped[int | None] = mapped_column(BigInteger)
    doubled: Mapped[float | None] = mapped_column(Doubled)
    wholes: Mapped[list[int] | None] = mapped_column(ARRAY(Integer))
    bigs: Mapped[list[Any] | None] = mapped_column(PG_ARRAY(BigInteger))
    span: Mapped[Range[int] | None] = mapped_column(INT4RANGE)
    big_span: Mapped[Range[int] | None] = mapped_column(INT8RANGE)
    spans: Mapped[MultiRange[int] | None] = mapped_column(INT8MULTIRANGE)
    span_array: Mapped[list[Range[int]] | None] = mapped_column(ARRAY(INT8RANGE))
    object_id: Mapped[int | None] = mapped_column(OID)


class Whole(Integer):
    """A subclass, as an application may write it."""


class Suit(enum.IntEnum):
    CLUBS = 1


class Index:
    """An integer of another library, such as numpy's."""

    def __index__(self) -> int:
        return 1

    def __int__(self) -> int:
        return 1


class HalfFloat:
    """A float of another library, such as numpy's."""

    def __int__(self) -> int:
        return 1

    def __float__(self) -> float:
        return 1.5


class NoIndex:
    """Its `__index__` raises TypeError, like that of a numpy array with one float."""

    def __index__(self) -> int:
        raise TypeError

    def __int__(self) -> int:
        return 1


INEXACT = [
    1.99,
    -0.5,
    Decimal("1.99"),
    Fraction(3, 2),
    math.nan,
    Decimal("NaN"),
    Decimal("sNaN"),
    math.inf,
    Decimal("-Infinity"),
    HalfFloat(),
    NoIndex(),
    UUID(int=1),
    IPv4Address("0.0.0.1"),
]
FEW_INEXACT = [1.99, Decimal("1.99"), Fraction(3, 2), math.nan]
EXACT = [1, True, Suit.CLUBS, Index(), 1.0, Decimal(1), Decimal("1.00"), Fraction(2, 2)]
