"""Scratch databases: empty databases on the server of another one, which are dropped after use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from uuid import uuid4

from sqlalchemy import URL, make_url, text

from howdah.alembic.running import run_blocking
from howdah.database import Database


@contextmanager
def scratch_databases(server_url: str | URL, count: int) -> Iterator[list[str]]:
    """Create empty databases on the server of `server_url`, and yield their URLs. They are dropped at the end. Blocks.

    The database of `server_url` must exist, and its role must be allowed to create databases.
    """
    names = [f"howdah_scratch_{uuid4().hex}" for _ in range(count)]
    try:
        _execute(server_url, [f'CREATE DATABASE "{name}"' for name in names])
        yield [make_url(server_url).set(database=name).render_as_string(hide_password=False) for name in names]
    finally:
        _execute(server_url, [f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)' for name in names])


@contextmanager
def scratch_database(server_url: str | URL) -> Iterator[str]:
    """Create one empty database, and yield its URL."""
    with scratch_databases(server_url, 1) as (url,):
        yield url


def _execute(url: str | URL, statements: Sequence[str]) -> None:
    """Execute statements that can't run in a transaction."""

    async def run() -> None:
        async with (
            Database(url, pool_size=1, application_name="howdah migrate") as database,
            database.autocommit() as connection,
        ):
            for statement in statements:
                await connection.execute(text(statement))

    run_blocking(run())
