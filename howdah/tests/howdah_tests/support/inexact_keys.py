"""Tables whose keys have several spellings: PostgreSQL compares them as equal, Python doesn't."""

from __future__ import annotations

import enum
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    CHAR,
    DateTime,
    Dialect,
    Enum,
    Float,
    MetaData,
    Numeric,
    String,
    Text,
    TypeDecorator,
    Uuid,
    func,
)
from sqlalchemy.dialects.postgresql import CITEXT
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import UserDefinedType

from howdah import (
    Base,
    Versioned,
)


class Separate(Base):
    __abstract__ = True
    metadata = MetaData()


class Guid(TypeDecorator[UUID]):
    """Accepts a UUID or text, like the recipe in SQLAlchemy's documentation."""

    impl = Uuid
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> UUID | None:
        return UUID(value) if isinstance(value, str) else value


class Lower(UserDefinedType[str]):
    """Values are sent within an SQL expression."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "TEXT"

    def bind_expression(self, bindvalue):  # type: ignore[no-untyped-def]
        return func.lower(bindvalue)


class Size(enum.Enum):
    SMALL = "s"
    LARGE = "l"


class CitextKey(Separate):
    __tablename__ = "citext_keys"

    key: Mapped[str] = mapped_column(CITEXT, primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


class CharKey(Separate):
    __tablename__ = "char_keys"

    key: Mapped[str] = mapped_column(CHAR(5), primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


class CollatedKey(Separate):
    __tablename__ = "collated_keys"

    key: Mapped[str] = mapped_column(String(50, collation="howdah_any_case"), primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


class UndeclaredCollation(Separate):
    """Its collation is declared in the database only."""

    __tablename__ = "undeclared_collations"

    key: Mapped[str] = mapped_column(Text, primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


class EnumKey(Separate):
    __tablename__ = "enum_keys"

    key: Mapped[Size] = mapped_column(Enum(Size, name="size"), primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


class GuidKey(Separate):
    __tablename__ = "guid_keys"

    key: Mapped[UUID] = mapped_column(Guid, primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


class TextUuidKey(Separate):
    __tablename__ = "text_uuid_keys"

    key: Mapped[str] = mapped_column(Uuid(as_uuid=False), primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


class NumericKey(Separate):
    __tablename__ = "numeric_keys"

    key: Mapped[Decimal] = mapped_column(Numeric(10, 2), primary_key=True, autoincrement=False)
    value: Mapped[int] = mapped_column(default=0)


class FloatKey(Separate):
    __tablename__ = "float_keys"

    key: Mapped[float] = mapped_column(Float(53), primary_key=True, autoincrement=False)
    value: Mapped[int] = mapped_column(default=0)


class TimeKey(Separate):
    __tablename__ = "time_keys"

    key: Mapped[datetime] = mapped_column(DateTime(timezone=True), primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


class LowerKey(Separate):
    __tablename__ = "lower_keys"

    key: Mapped[str] = mapped_column(Lower, primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


class PairKey(Separate):
    __tablename__ = "pair_keys"

    name: Mapped[str] = mapped_column(CHAR(5), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


class VersionedKey(Versioned, Separate):
    __tablename__ = "versioned_keys"

    key: Mapped[str] = mapped_column(CHAR(5), primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


class Case(NamedTuple):
    model: type[Any]
    stored: Any
    """The key as a read returns it."""
    other: Any
    """Another spelling of this key."""
    second: Any
    """The key of a second row."""
    missing: Any


NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ONE, TWO, THREE = (str(UUID(int=number << 100)) for number in (0xABC, 0xABD, 0xABE))
CASES = [
    Case(CitextKey, "Abc", "ABC", "b", "c"),
    Case(CharKey, "a    ", "a", "b    ", "c"),
    Case(CollatedKey, "Abc", "ABC", "b", "c"),
    Case(UndeclaredCollation, "Abc", "ABC", "b", "c"),
    Case(EnumKey, Size.SMALL, "SMALL", Size.LARGE, None),
    Case(GuidKey, UUID(ONE), ONE, UUID(TWO), UUID(THREE)),
    Case(TextUuidKey, ONE, ONE.upper(), TWO, THREE),
    Case(NumericKey, Decimal("1.00"), 1, Decimal("2.50"), 3),
    Case(FloatKey, 1.5, Decimal("1.50"), 2.0, 3),
    Case(TimeKey, NOON, NOON.astimezone(timezone(timedelta(hours=5))), NOON + timedelta(1), NOON + timedelta(2)),
    Case(PairKey, ("a    ", 1), ("a", 1), ("a    ", 2), ("a", 3)),
]


# Debian's servers have citext and ICU, the servers of the wheel don't.
CITEXT_TABLES = [CitextKey.__table__]
ICU_TABLES = [CollatedKey.__table__, UndeclaredCollation.__table__]
