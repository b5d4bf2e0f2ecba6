"""Users and orders as models of SQLModel.

`from __future__ import annotations` must not be used here, because SQLModel can't read annotations that are strings.
"""

from datetime import datetime
from uuid import UUID

from sqlmodel import Field, Relationship, SQLModel


class Order(SQLModel, table=True):  # type: ignore[call-arg]
    __tablename__ = "orders"

    id: UUID = Field(primary_key=True)
    user_id: UUID = Field(foreign_key="users.id")
    status: str
    total_cents: int
    created_at: datetime


class User(SQLModel, table=True):  # type: ignore[call-arg]
    __tablename__ = "users"

    id: UUID = Field(primary_key=True)
    email: str
    name: str
    country: str | None
    created_at: datetime
    updated_at: datetime
    version: int
    orders: list[Order] = Relationship(sa_relationship_kwargs={"order_by": "Order.id"})
