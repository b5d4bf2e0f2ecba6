"""What is done with users."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from howdah import bulk
from shop.orders.repository import OrderRepository
from shop.users.models import User


async def bulk_create_users(db: AsyncSession, users_data: Iterable[Mapping[str, Any]], chunk_size: int = 1000) -> int:
    """Insert many users and return how many; all or none. Nothing of them stays in the session.

    Any iterable will do, and only `chunk_size` rows are held at a time. Addresses are put into lower case. Raises
    `UniqueViolation` and its like, whose `row_index` says which row.
    """
    rows = ({**row, "email": row["email"].lower()} if "email" in row else row for row in users_data)
    return (await bulk.insert_many(db, User, rows, chunk_size=chunk_size, keys=False)).count


async def get_user_order_summary(db: AsyncSession, user_id: UUID) -> dict[str, Any] | None:
    """The user and what they ordered, or None if there is no such user.

    `total_orders`, `total_spent_cents` and `avg_order_cents` are of the orders that stand (neither cancelled nor
    refunded); `by_status` has the number and the total of every status. All come from one statement and so from one
    snapshot; no order is loaded.
    """
    user = await db.get(User, user_id)
    if user is None:
        return None
    totals = await OrderRepository(db).totals_by_status(user_id)
    standing = [totals_of for status, totals_of in totals.items() if status.stands]
    orders = sum(each.orders for each in standing)
    spent = sum(each.total_cents for each in standing)
    return {
        "user": user,
        "total_orders": orders,
        "total_spent_cents": spent,
        "avg_order_cents": spent / orders if orders else 0.0,
        "by_status": totals,
    }
