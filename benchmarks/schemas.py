"""The response of the `get-user` routes."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict


class OrderOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    status: str
    total_cents: int
    created_at: datetime


class UserOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    email: str
    name: str
    country: str | None
    created_at: datetime
    updated_at: datetime
    version: int
    orders: list[OrderOut]
