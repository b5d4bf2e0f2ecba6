"""Values for rows of the sample tables, and functions that insert them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, bulk
from howdah_tests.support.sample_models import Order, User

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def user_rows(count: int, **values: Any) -> list[dict[str, Any]]:
    return [{"email": f"user{i}@example.org", "name": f"User {i % 10}", "age": i, **values} for i in range(count)]


async def make_users(session: AsyncSession, count: int) -> list[UUID]:
    return (await bulk.insert_many(session, User, user_rows(count, updated_at=LONG_AGO))).keys


async def make_orders(session: AsyncSession, count: int) -> list[UUID]:
    user = (await make_users(session, 1))[0]
    rows = [{"user_id": user, "total_cents": i, "updated_at": LONG_AGO} for i in range(count)]
    return (await bulk.insert_many(session, Order, rows)).keys


async def emails(session: AsyncSession) -> list[str]:
    return list(await session.scalars(select(User.email).order_by(User.id)))


def new_user(email: str = "ada@example.com") -> User:
    return User(email=email, name="Ada")


async def users(database: Database) -> int:
    async with database.session() as session:
        return (await session.scalars(select(func.count()).select_from(User))).one()
