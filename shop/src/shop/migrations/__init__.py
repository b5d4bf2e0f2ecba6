"""The history of the schema, and the revision of a database."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from howdah import Database
from howdah.alembic.history import Migrations

HISTORY: Final = Migrations(Path(__file__).parent, command="shop migrate")


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database's schema to `revision`. Blocks."""
    HISTORY.upgrade(url, revision)


async def find_revision_problem(database: Database) -> str | None:
    """The reason why the service isn't ready, if the database isn't at the newest revision. Otherwise None."""
    return await HISTORY.find_revision_problem(database)
