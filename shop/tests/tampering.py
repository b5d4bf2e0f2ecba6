"""What the database doesn't let anybody do, done nevertheless."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from shop import tables


async def without_guards(session: AsyncSession) -> None:
    """Until the transaction ends, or `with_guards`, no trigger fires, those of foreign keys included."""
    await session.execute(text("SET LOCAL session_replication_role = replica"))


async def with_guards(session: AsyncSession) -> None:
    """Triggers fire again."""
    await session.execute(text("SET LOCAL session_replication_role = origin"))


async def empty_tables(session: AsyncSession) -> None:
    """Delete every row of Shop's tables."""
    await without_guards(session)
    # that of link_seals(), or a service could go on with the chain that is deleted
    await session.execute(text("SELECT pg_advisory_xact_lock(495622122611)"))
    for table in reversed(tables.Base.metadata.sorted_tables):
        await session.execute(table.delete())
