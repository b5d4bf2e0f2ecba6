"""Scratch databases: empty databases on the server of another one, which are dropped after use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from sqlalchemy import URL, make_url, text

from howdah.alembic.running import run_blocking
from howdah.database import Database


@contextmanager
def scratch_database(server_url: str | URL) -> Iterator[str]:
    """Create an empty database on the server of `server_url`, and yield its URL. It is dropped at the end. Blocks.

    The database of `server_url` must exist, and its role must be allowed to create databases.
    """
    name = f"howdah_scratch_{uuid4().hex}"
    _execute(server_url, f'CREATE DATABASE "{name}"')
    try:
        yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    finally:
        _execute(server_url, f'DROP DATABASE "{name}" WITH (FORCE)')


def _execute(url: str | URL, statement: str) -> None:
    """Execute a statement that can't run in a transaction."""

    async def run() -> None:
        async with (
            Database(url, pool_size=1, application_name="howdah migrate") as database,
            database.autocommit() as connection,
        ):
            await connection.execute(text(statement))

    run_blocking(run())
