"""Users."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import CheckConstraint, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from howdah import Base, Timestamps, UUIDv7PrimaryKey, Versioned
from howdah.tenancy import TableGrant
from shop.policies import OWN_ID, customers_read, customers_update, staff_and_system
from shop.roles import CUSTOMER_ROLE, STAFF_ROLE, SYSTEM_ROLE


class User(UUIDv7PrimaryKey, Timestamps, Versioned, Base):
    """A customer. `email` is stored in lower case, so that two addresses can't differ only in upper and lower case."""

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint("email = lower(email)", name="email_is_lower_case"),
        # `text_pattern_ops` lets a search by prefix use this index with any collation of the database.
        Index("ix_users_email_prefix", "email", postgresql_ops={"email": "text_pattern_ops"}),
        Index("ix_users_country_id", "country", "id"),
        Index("ix_users_created_at", "created_at"),
        customers_read(f"id = {OWN_ID}"),
        customers_update(f"id = {OWN_ID}"),
        *staff_and_system(),
        TableGrant(CUSTOMER_ROLE, "SELECT"),
        TableGrant(CUSTOMER_ROLE, "UPDATE", columns=["name", "country", "updated_at", "version"]),
        TableGrant(STAFF_ROLE, "SELECT", "INSERT", "DELETE"),
        TableGrant(STAFF_ROLE, "UPDATE", columns=["email", "name", "country", "updated_at", "version"]),
        TableGrant(SYSTEM_ROLE, "SELECT", "INSERT", "UPDATE"),
    )

    email: Mapped[str] = mapped_column(String(255), unique=True)
    name: Mapped[str] = mapped_column(String(100))
    country: Mapped[str | None] = mapped_column(String(100))

    # The relationship to `Order`. `shop.orders.models` sets it, because orders import users.
    orders: ClassVar[Mapped[list[Any]]]
