"""The declarative base, and mixins for common columns."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from enum import StrEnum
from typing import Any, ClassVar, Final
from uuid import UUID

import asyncpg.pgproto.pgproto
from sqlalchemy import BigInteger, Date, DateTime, Dialect, Enum, Identity, MetaData, Time, TypeDecorator, event
from sqlalchemy.dialects.postgresql import (
    ARRAY,
    DATEMULTIRANGE,
    DATERANGE,
    TSTZMULTIRANGE,
    TSTZRANGE,
    ExcludeConstraint,
    Range,
)
from sqlalchemy.dialects.postgresql.ranges import MultiRange
from sqlalchemy.orm import DeclarativeBase, Mapped, Mapper, RelationshipProperty, mapped_column
from sqlalchemy.types import TypeEngine
from uuid_utils import uuid7 as _uuid7

from howdah._lazy_loads import explain_raising_loads
from howdah._rejected_values import RejectedValue
from howdah._sqlalchemy import properties_of
from howdah._types.times import describe_naive_value

NAMING_CONVENTION: Final[dict[Any, str]] = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
    ExcludeConstraint: "ex_%(table_name)s_%(column_0_N_name)s",
}


# The driver's subclass of `uuid.UUID`. It is created several times faster, and the driver needn't convert it.
_DriverUUID: Final = asyncpg.pgproto.pgproto.UUID


def uuid7() -> UUID:
    """A new UUIDv7 (RFC 9562, section 5.7), ordered by the millisecond of its creation.

    Within a process the values are strictly increasing (section 6.2, a counter). Between processes the order is that of
    their clocks. The value is an instance of the class that the driver reads and writes, a subclass of `uuid.UUID`.
    """
    value: UUID = _DriverUUID(_uuid7().bytes)
    return value


def utcnow() -> datetime:
    """The current time as an aware `datetime` in UTC, by the application's clock."""
    return datetime.now(UTC)


class AwareDateTime(TypeDecorator[datetime]):
    """`timestamptz` with aware values.

    A naive `datetime` or a `date` is rejected with `InvalidValue` before it is sent, because the driver would read it
    as local time. Values that are read are aware and in UTC. PostgreSQL's infinities are read as `datetime.max` and
    `datetime.min` in UTC, and these are written as infinities.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is not None and (not isinstance(value, datetime) or value.utcoffset() is None):
            raise RejectedValue(describe_naive_value(value))
        return value

    def coerce_compared_value(self, op: Any, value: Any) -> TypeEngine[Any]:
        """The type of the other operand: this type for a `datetime`, a `date` or None, otherwise that of the value."""
        return self if isinstance(value, date | None) else self.impl_instance.coerce_compared_value(op, value)


def text_enum(members: type[StrEnum], *, name: str, length: int) -> Enum:
    """The type of a column that stores the values of `members` as text: `varchar(length)` with a CHECK constraint.

    `mapped_column(text_enum(State, name="state_is_known", length=10))` has the constraint
    `ck_accounts_state_is_known`, by `NAMING_CONVENTION`. Values that are read are members. Raises `ValueError` if a
    value is longer than `length`.

    A migration adds or removes members by replacing the constraint. PostgreSQL can't remove a value from an enum type.
    """
    return Enum(
        members,
        name=name,
        length=length,
        native_enum=False,
        create_constraint=True,
        # SQLAlchemy stores the names of the members by default
        values_callable=lambda enum: [member.value for member in enum],
    )


class Base(DeclarativeBase):
    """The base of mapped classes.

    - Constraints and indexes get names from `NAMING_CONVENTION`, so that migrations and errors can name them.
    - `Mapped[datetime]` is `timestamptz` and rejects naive values (`AwareDateTime`). The same holds for the items of
      `Mapped[list[datetime]]`, and for the bounds of `Mapped[Range[datetime]]` and `Mapped[MultiRange[datetime]]`.
    - A relationship is `lazy="raise"` unless it names another strategy. A lazy load can't work under asyncio, so it
      raises an error that says how to load the relationship. `lazy="select"`, which is SQLAlchemy's default, is also
      replaced by `lazy="raise"`. Write `lazy=True` to get SQLAlchemy's lazy loads (for `AsyncAttrs`). During a flush,
      relationships are loaded as needed.
    - Values that the server computes are read by the flush (`eager_defaults`), never by a later lazy load.

    For a second, separate `MetaData`, derive an `__abstract__` class with a `metadata` of its own. A class with
    `MappedAsDataclass` can't use the mixins below, because SQLAlchemy requires its mixins to be dataclasses. Such a
    class declares these columns itself.
    """

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map: ClassVar[Mapping[Any, Any]] = {
        datetime: AwareDateTime(),
        list[datetime]: ARRAY(AwareDateTime()),
        Range[datetime]: TSTZRANGE(),
        MultiRange[datetime]: TSTZMULTIRANGE(),
        list[date]: ARRAY(Date()),
        Range[date]: DATERANGE(),
        MultiRange[date]: DATEMULTIRANGE(),
        list[time]: ARRAY(Time()),
    }


# These options are set by listeners. If they were in the `__mapper_args__` of the base, a class with its own
# `__mapper_args__` would lose them.
@event.listens_for(Base, "instrument_class", propagate=True)
def _set_mapper_options(mapper: Mapper[Any], class_: type[Any]) -> None:
    """Set `eager_defaults`, and the version column of a `Versioned` class."""
    if mapper.eager_defaults == "auto":
        mapper.eager_defaults = True
    if issubclass(class_, Versioned) and mapper.version_id_col is None:
        mapper.version_id_col = mapper.local_table.c.version


@event.listens_for(Base, "before_mapper_configured", propagate=True)
def _raise_on_lazy_load(mapper: Mapper[Any], class_: type[Any]) -> None:
    """Make `lazy="raise"` the default of every relationship, and of those that SQLAlchemy creates for a `backref`."""
    for prop in properties_of(mapper):
        if not isinstance(prop, RelationshipProperty):
            continue
        if prop.lazy == "select":
            prop.lazy = "raise"
            prop.strategy_key = (("lazy", "raise"),)
        if isinstance(prop.backref, str):  # SQLAlchemy creates the other side later
            prop.backref = (prop.backref, {"lazy": "raise"})
        elif prop.backref is not None:
            prop.backref[1].setdefault("lazy", "raise")


event.listen(Base, "attribute_instrument", explain_raising_loads, propagate=True)


class UUIDv7PrimaryKey:
    """`id`: a UUIDv7, created by the application when the row is flushed, or passed to the constructor."""

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7, sort_order=-10)


class BigIntPrimaryKey:
    """`id`: a `bigint` that PostgreSQL generates (`GENERATED ALWAYS AS IDENTITY`).

    Use it if keys must be short or readable. The key is known only after the INSERT, so prefer `UUIDv7PrimaryKey` if
    rows refer to each other before they are written. The numbers have gaps. They don't define an order: a row with a
    smaller number can be committed later. PostgreSQL rejects an INSERT that sets the key, because it may later generate
    the same key for another row.

    A bulk insert returns the keys in the order of the input. Without keys (`keys=False`) it can use COPY.
    """

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True, sort_order=-10)


class Timestamps:
    """`created_at` and `updated_at`, by the application's clock.

    `updated_at` is set by every UPDATE of the row that SQLAlchemy writes.
    """

    created_at: Mapped[datetime] = mapped_column(default=utcnow, sort_order=90)
    updated_at: Mapped[datetime] = mapped_column(default=utcnow, onupdate=utcnow, sort_order=91)


class Versioned:
    """`version`: 1 for a new row, incremented by each UPDATE of the object (optimistic locking).

    If the row's version has changed since the object was read, an UPDATE or DELETE of the object raises `StaleRow`, and
    nothing is written. `AsyncRepository.update` also increments the version if it changes a collection. SQLAlchemy
    itself and `bulk.link` don't, because a collection is stored in other rows.
    """

    version: Mapped[int] = mapped_column(default=1, sort_order=92)
