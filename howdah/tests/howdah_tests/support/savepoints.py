"""A savepoint per example of a property test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncSession


@asynccontextmanager
async def undone(session: AsyncSession) -> AsyncIterator[None]:
    """What an example writes is its own."""
    savepoint = await session.begin_nested()
    try:
        yield
    finally:
        session.expunge_all()
        await savepoint.rollback()
