"""Waiting for a condition on the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from sqlalchemy import text

from howdah import Database


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Block until the condition is true. Fail if it isn't true after this time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition is still false after the timeout"
        time.sleep(0.01)


async def until(condition: Callable[[], Awaitable[object]], seconds: float = 30.0) -> None:
    """Return when the condition is true; fail if it isn't after this time."""
    async with asyncio.timeout(seconds):
        while not await condition():  # the server can't notify
            await asyncio.sleep(0.005)


async def until_waiting(database: Database, sessions: int = 1) -> None:
    """Return when at least this many sessions of the database wait for a lock."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )

    async def enough() -> bool:
        async with database.session() as session:
            return (await session.scalar(waiting) or 0) >= sessions

    await until(enough)


async def until_gone(database: Database, pid: int) -> None:
    """Return when the backend has ended."""

    async def is_gone() -> bool:
        async with database.session() as session:
            statement = text("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = :pid)")
            return bool(await session.scalar(statement, {"pid": pid}))

    await until(is_gone)


async def kill(database: Database, pid: int) -> None:
    """End the backend, and return when it is gone."""
    async with database.session() as session:
        assert await session.scalar(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
