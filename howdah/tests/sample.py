"""The mapped classes that the library's tests run on."""

from __future__ import annotations

import enum
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Numeric, String, func, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, column_property, mapped_column, relationship

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

    name_length = column_property(func.length(name))

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
    """A composite key."""

    __tablename__ = "seats"

    row: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    taken_by: Mapped[str | None]


class Counter(Base):
    """A key that the database makes, and a column whose name isn't its attribute's."""

    __tablename__ = "counters"

    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int] = mapped_column("val", default=0)


class UserRepository(AsyncRepository[User]):
    async def get_by_email(self, email: str) -> User | None:
        return (await self.session.scalars(select(User).where(User.email == email))).one_or_none()
