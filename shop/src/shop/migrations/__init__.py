"""The history of the schema, and the state of a database."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from howdah import Database
from howdah.alembic.history import Migrations
from shop.ledger import schema

HISTORY: Final = Migrations(Path(__file__).parent, command="shop migrate")


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database's schema to `revision`. Blocks."""
    HISTORY.upgrade(url, revision)


async def is_newer(database: Database) -> bool:
    """Whether a later release has migrated the database."""
    return await HISTORY.compare_revision(database) == "newer"


def verify_schema(url: str, *, role: str | None = None) -> None:
    """Raise `SchemaMismatch` if anything but a later release has changed the ledger's schema. Blocks the thread.

    `role` is a role that may read the revision.
    """

    async def compare() -> bool:
        async with Database(url, pool_size=1, application_name="shop", role=role) as database:
            return await is_newer(database)

    schema.verify_schema(url, is_newer=asyncio.run(compare()))


async def find_schema_problem(database: Database) -> str | None:
    """Why the service isn't ready, or None: the revision is wrong, or the ledger's schema was changed."""
    state = await HISTORY.compare_revision(database)
    if state in ("behind", "unknown"):
        return await HISTORY.find_revision_problem(database)
    return await schema.find_schema_problem(database, is_newer=state == "newer")
