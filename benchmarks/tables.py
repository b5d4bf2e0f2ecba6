"""The tables of the benchmarks: users and orders, similar to Shop's, on Howdah's base class."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, MetaData, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from howdah import NAMING_CONVENTION, Timestamps, UUIDv7PrimaryKey, Versioned
from howdah import Base as HowdahBase


class Base(HowdahBase):
    """Separate metadata, because Shop has tables with the same names."""

    __abstract__ = True
    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class User(UUIDv7PrimaryKey, Timestamps, Versioned, Base):
    __tablename__ = "users"
    __table_args__ = (CheckConstraint("email = lower(email)", name="email_is_lower_case"),)

    email: Mapped[str] = mapped_column(String(255), unique=True)
    name: Mapped[str] = mapped_column(String(100))
    country: Mapped[str | None] = mapped_column(String(100))
    orders: Mapped[list[Order]] = relationship(back_populates="user", order_by="Order.id", passive_deletes="all")


class Order(UUIDv7PrimaryKey, Timestamps, Versioned, Base):
    __tablename__ = "orders"
    __table_args__ = (
        Index("ix_orders_user_id", "user_id"),
        Index("ix_orders_created_at_id", "created_at", "id"),
        Index("ix_orders_total_cents_id", "total_cents", "id"),
    )

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    status: Mapped[str] = mapped_column(String(20), default="pending")
    total_cents: Mapped[int]
    user: Mapped[User] = relationship(back_populates="orders")
