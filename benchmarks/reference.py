"""The code of the reference examples, unchanged except for the names of the models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from benchmarks.tables import Order, User


async def bulk_create_users(db: AsyncSession, users_data: list[dict[str, Any]], chunk_size: int = 1000) -> int:
    total = 0
    for i in range(0, len(users_data), chunk_size):
        chunk = users_data[i : i + chunk_size]
        users = [User(**data) for data in chunk]
        db.add_all(users)
        await db.flush()
        total += len(chunk)
    return total


async def bulk_update_status(db: AsyncSession, order_ids: Sequence[UUID], new_status: str) -> int:
    """Also increments the version, so that all contenders do the same work. The original model has no version."""
    result = await db.execute(
        update(Order).where(Order.id.in_(order_ids)).values(status=new_status, version=Order.version + 1)
    )
    return int(result.rowcount)  # type: ignore[attr-defined]


async def get_user_order_summary(db: AsyncSession, user_id: UUID) -> dict[str, Any] | None:
    user_result = await db.execute(select(User).options(selectinload(User.orders)).where(User.id == user_id))
    user = user_result.scalar_one_or_none()
    if not user:
        return None
    stats_result = await db.execute(
        select(
            func.count(Order.id).label("total_orders"),
            func.sum(Order.total_cents).label("total_spent"),
            func.avg(Order.total_cents).label("avg_order"),
        ).where(Order.user_id == user_id)
    )
    stats = stats_result.one()
    return {
        "user": user,
        "total_orders": stats.total_orders,
        "total_spent_cents": stats.total_spent or 0,
        "avg_order_cents": float(stats.avg_order or 0),
    }
