"""A database with nothing in it, and statements that are sent without SQLAlchemy."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import asyncpg
from sqlalchemy import make_url


@contextmanager
def empty_database(server_url: str) -> Iterator[str]:
    """The URL of a new, empty database. It is dropped when the block ends."""
    name = f"howdah_test_{os.getpid()}_empty_{uuid4().hex[:8]}"
    run(server_url, f'CREATE DATABASE "{name}"')
    try:
        yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    finally:
        run(server_url, f'DROP DATABASE "{name}" WITH (FORCE)')


def run(url: str, *statements: str) -> list[list[tuple[Any, ...]]]:
    """Send the statements in one session, each in its own transaction, and return their rows."""

    async def send() -> list[list[tuple[Any, ...]]]:
        connection = await asyncpg.connect(make_url(url).set(drivername="postgresql").render_as_string(False))
        try:
            return [[tuple(row) for row in await connection.fetch(statement)] for statement in statements]
        finally:
            await connection.close()

    return asyncio.run(send())
