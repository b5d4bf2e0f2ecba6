"""What the database doesn't let anybody do, done nevertheless."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession


async def without_guards(session: AsyncSession) -> None:
    """Until the transaction ends no trigger fires, those of foreign keys included."""
    await session.execute(text("SET LOCAL session_replication_role = replica"))
