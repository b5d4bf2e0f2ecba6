"""Waiting for a condition on the server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from sqlalchemy import text

from howdah import Database


async def until(condition: Callable[[], Awaitable[bool]], *, seconds: float = 30) -> None:
    """Return when the condition is true; fail after this time."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.005)


async def until_waiting(database: Database, sessions: int, *, query: str = "%", event: str = "Lock") -> None:
    """Return once exactly this many sessions of the database wait for a lock (or in another kind of wait event)."""
    waiting = text("""
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = :event AND query ILIKE :query
        """)

    async def is_reached() -> bool:
        async with database.engine.connect() as connection:
            found: int = (await connection.scalars(waiting, {"event": event, "query": query})).one()
            return found == sessions

    await until(is_reached)
