"""The functions of the reference examples, on Shop's models, for control tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from fastapi import Request
from sqlalchemy import String, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, selectinload

from howdah.fastapi import database_from_state
from shop.ledger.models import Account
from shop.orders.models import Order
from shop.users.models import User
from shop_tests.support.trigger_bypass import disable_triggers


async def get_db(request: Request) -> AsyncIterator[AsyncSession]:
    async with database_from_state(request).session_factory() as session:
        try:
            yield session
            await session.commit()
        except Exception:
            await session.rollback()
            raise


async def transfer_funds(db: AsyncSession, from_account_id: UUID, to_account_id: UUID, amount: int) -> None:
    async with db.begin():
        await move(db, from_account_id, to_account_id, amount)


async def move(db: AsyncSession, from_account_id: UUID, to_account_id: UUID, amount: int) -> None:
    """The body of the reference's `transfer_funds`, for a session in which a transaction has begun.

    The triggers are disabled, since Shop's database would reject the change.
    """
    await disable_triggers(db)
    from_account = await db.get(Account, from_account_id, with_for_update=True)
    to_account = await db.get(Account, to_account_id, with_for_update=True)
    if not from_account or not to_account:
        raise ValueError("Account not found")
    if from_account.balance < amount:
        raise ValueError("Insufficient funds")
    from_account.balance -= amount
    to_account.balance += amount


async def bulk_create_users(db: AsyncSession, users_data: list[dict[str, Any]], chunk_size: int = 1000) -> int:
    total = 0
    for i in range(0, len(users_data), chunk_size):
        users = [User(**data) for data in users_data[i : i + chunk_size]]
        db.add_all(users)
        await db.flush()
        total += len(users)
    return total


class ReferenceBase(DeclarativeBase):
    pass


class ReferenceOrder(ReferenceBase):
    """An order whose `status` accepts any text."""

    __tablename__ = "reference_orders"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(String(20), default="pending")


async def bulk_update_status(db: AsyncSession, order_ids: list[UUID], new_status: str, model: Any = Order) -> int:
    result = await db.execute(update(model).where(model.id.in_(order_ids)).values(status=new_status))
    return result.rowcount  # type: ignore[attr-defined,no-any-return]


async def get_user_order_summary(db: AsyncSession, user_id: UUID) -> dict[str, Any] | None:
    user = (
        await db.execute(select(User).options(selectinload(User.orders)).where(User.id == user_id))
    ).scalar_one_or_none()
    if not user:
        return None
    stats = (
        await db.execute(
            select(
                func.count(Order.id).label("total_orders"),
                func.sum(Order.total_cents).label("total_spent"),
                func.avg(Order.total_cents).label("avg_order"),
            ).where(Order.user_id == user_id)
        )
    ).one()
    return {
        "user": user,
        "total_orders": stats.total_orders,
        "total_spent_cents": stats.total_spent or 0,
        "avg_order_cents": float(stats.avg_order or 0),
    }
