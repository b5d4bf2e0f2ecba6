"""Alembic runs this module to migrate the database whose URL `shop.migrations` has set."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Connection, text

from howdah import AwareDateTime, Database
from shop.tables import Base

# An advisory lock for the whole migration. If several processes start together, one migrates and the others wait.
_LOCK = 0x686F_7764_6168


def _render_item(kind: str, item: Any, _context: AutogenContext) -> str | Literal[False]:
    if kind == "type" and isinstance(item, AwareDateTime):
        return "sa.DateTime(timezone=True)"
    return False


def _run(connection: Connection) -> None:
    connection.execute(text("SELECT pg_advisory_lock(:lock)").bindparams(lock=_LOCK))
    connection.commit()
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_item=_render_item,
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()


async def _migrate(url: str) -> None:
    """Open a connection without timeouts, and run the migrations with it."""
    # A migration has no timeouts. The lock is released when the connection is closed.
    async with (
        Database(
            url,
            pool_size=1,
            statement_timeout=None,
            lock_timeout=None,
            idle_in_transaction_timeout=None,
            application_name="shop migrate",
        ) as database,
        database.engine.connect() as connection,
    ):
        await connection.run_sync(_run)
        await connection.commit()


asyncio.run(_migrate(context.config.attributes["url"]))
