"""A savepoint per example of a property test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncSession


@asynccontextmanager
async def rollback_at_end(session: AsyncSession) -> AsyncIterator[None]:
    """Undo what the block writes, so that the next example finds the same database."""
    savepoint = await session.begin_nested()
    try:
        yield
    finally:
        session.expunge_all()
        if savepoint.is_active:  # otherwise an error has rolled it back
            await savepoint.rollback()
