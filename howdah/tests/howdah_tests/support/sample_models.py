"""The mapped classes that the library's tests run on."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    CHAR,
    JSON,
    BigInteger,
    CheckConstraint,
    Computed,
    Dialect,
    Enum,
    ForeignKey,
    Integer,
    Numeric,
    String,
    TypeDecorator,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.hybrid import hybrid_method, hybrid_property
from sqlalchemy.orm import Mapped, column_property, composite, mapped_column, relationship, synonym

from howdah import AsyncRepository, Base, Timestamps, UUIDv7PrimaryKey, Versioned


class Status(enum.StrEnum):
    PENDING = "pending"
    PAID = "paid"


class User(UUIDv7PrimaryKey, Timestamps, Base):
    __tablename__ = "users"

    email: Mapped[str] = mapped_column(String(50), unique=True)
    name: Mapped[str] = mapped_column(String(20))
    age: Mapped[int | None] = mapped_column(CheckConstraint("age >= 0", name="age_not_negative"))
    nickname: Mapped[str] = mapped_column(server_default="nobody")

    orders: Mapped[list[Order]] = relationship(back_populates="user", order_by="Order.id")

    name_length = column_property(func.length(name, type_=Integer))

    @hybrid_property
    def shout(self) -> str:
        return f"{self.name}!"


class Order(UUIDv7PrimaryKey, Timestamps, Versioned, Base):
    __tablename__ = "orders"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"), index=True)
    total_cents: Mapped[int] = mapped_column(default=0)
    status: Mapped[Status] = mapped_column(default=Status.PENDING)
    placed_at: Mapped[datetime | None]
    weight: Mapped[Decimal | None] = mapped_column(Numeric(10, 3))
    details: Mapped[dict[str, Any] | None] = mapped_column(JSONB)

    user: Mapped[User] = relationship(back_populates="orders")


class Seat(Base):
    """Has a composite key."""

    __tablename__ = "seats"

    row: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    taken_by: Mapped[str | None]


class Counter(Base):
    """Has a key that the database generates, and a column whose name differs from its attribute."""

    __tablename__ = "counters"

    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int] = mapped_column("val", default=0)


class UserRepository(AsyncRepository[User]):
    async def get_by_email(self, email: str) -> User | None:
        return (await self.session.scalars(select(User).where(User.email == email))).one_or_none()


class Loud(TypeDecorator[str]):
    """Stored in upper case, read in lower case."""

    impl = String(10)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else value.upper()

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else value.lower()


@dataclass
class Corner:
    left: int | None
    top: int | None


class Specimen(Base):
    """Has a column of every kind, and attributes that aren't columns."""

    __tablename__ = "specimens"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    whole: Mapped[int | None]
    big: Mapped[int | None] = mapped_column(BigInteger)
    words: Mapped[str | None]
    code: Mapped[str | None] = mapped_column(CHAR(3))
    moment: Mapped[datetime | None]
    day: Mapped[date | None]
    hour: Mapped[time | None]
    exact: Mapped[Decimal | None] = mapped_column(Numeric)
    rounded: Mapped[float | None] = mapped_column(Numeric(30, 20, asdecimal=False))
    real: Mapped[float | None]
    state: Mapped[Status | None]
    place: Mapped[Status | None] = mapped_column(Enum(Status, native_enum=False, length=10))
    token: Mapped[UUID | None]
    flag: Mapped[bool | None]
    raw: Mapped[bytes | None]
    span: Mapped[timedelta | None]
    loud: Mapped[str | None] = mapped_column(Loud)
    anything: Mapped[Any | None] = mapped_column(JSONB)
    nothing: Mapped[Any | None] = mapped_column(JSONB(none_as_null=True))
    plain_json: Mapped[Any | None] = mapped_column(JSON)
    tags: Mapped[list[str] | None] = mapped_column(ARRAY(String))
    notes: Mapped[str | None] = mapped_column(deferred=True)
    doubled: Mapped[int | None] = mapped_column(Computed("whole * 2", persisted=True))

    alias: Mapped[str | None] = synonym("words")
    left: Mapped[int | None]
    top: Mapped[int | None]
    corner: Mapped[Corner] = composite("left", "top")

    @hybrid_property
    def half(self) -> int | None:
        return None if self.whole is None else self.whole // 2

    @half.inplace.setter
    def _half_setter(self, value: int | None) -> None:
        self.whole = None if value is None else value * 2

    @hybrid_method
    def is_above(self, limit: int) -> bool:
        return self.whole is not None and self.whole > limit


class Album(UUIDv7PrimaryKey, Base):
    """Its tracks are deleted with it. It also has a view-only collection."""

    __tablename__ = "albums"

    title: Mapped[str | None]
    tracks: Mapped[list[Track]] = relationship(back_populates="album", cascade="all, delete-orphan")
    first_tracks: Mapped[list[Track]] = relationship(
        primaryjoin="and_(Album.id == Track.album_id, Track.position == 1)", viewonly=True
    )


class Track(UUIDv7PrimaryKey, Base):
    __tablename__ = "tracks"

    album_id: Mapped[UUID] = mapped_column(ForeignKey("albums.id"), index=True)
    position: Mapped[int]
    album: Mapped[Album] = relationship(back_populates="tracks")


class Staff(UUIDv7PrimaryKey, Base):
    """Joined-table inheritance."""

    __tablename__ = "staff"

    kind: Mapped[str]
    name: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "staff"}  # noqa: RUF012


class Engineer(Staff):
    __tablename__ = "engineers"

    id: Mapped[UUID] = mapped_column(ForeignKey("staff.id"), primary_key=True)
    language: Mapped[str]
    __mapper_args__ = {"polymorphic_identity": "engineer"}  # noqa: RUF012


class Vehicle(UUIDv7PrimaryKey, Base):
    """Single-table inheritance."""

    __tablename__ = "vehicles"

    kind: Mapped[str]
    wheels: Mapped[int]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "vehicle"}  # noqa: RUF012


class Car(Vehicle):
    doors: Mapped[int | None]
    __mapper_args__ = {"polymorphic_identity": "car"}  # noqa: RUF012


class Label(Base):
    """Has a text key with a maximum length."""

    __tablename__ = "labels"

    name: Mapped[str] = mapped_column(String(5), primary_key=True)
    colour: Mapped[str | None] = mapped_column(String(5))


Wide = type(
    "Wide",
    (Base,),
    {
        "__doc__": "So many columns that 1,000 rows have more values than a statement may have parameters.",
        "__tablename__": "wide",
        "id": mapped_column(Integer, primary_key=True, autoincrement=False),
        **{f"c{i}": mapped_column(Integer, nullable=True) for i in range(60)},
    },
)
