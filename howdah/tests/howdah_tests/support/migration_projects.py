"""Small projects with migrations, in a directory of the test."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
from sqlalchemy import make_url

from howdah.alembic import Migrations

ENV = """\
import runpy
from pathlib import Path
from howdah.alembic import run_migrations

here = Path(__file__).parent
names = runpy.run_path(str(here.parent / "models.py"))
run_migrations(names["Base"].metadata, url={url!r}, sql=here.parent / "sql", {options})
"""

MIGRATION = """\
import sqlalchemy as sa
from alembic import op
from howdah.alembic import *

revision = {revision!r}
down_revision = {down_revision!r}
{more}

def upgrade():
    {upgrade}


def downgrade():
    {downgrade}
"""


class Project:
    """A project whose models are in `models.py`, and whose .sql files are in `sql/`."""

    def __init__(self, folder: Path, url: str, options: str = "") -> None:
        self.folder = folder
        self.url = url
        (folder / "migrations" / "versions").mkdir(parents=True)
        (folder / "sql").mkdir()
        (folder / "pyproject.toml").write_text('[tool.alembic]\nscript_location = "%(here)s/migrations"\n')
        self.set_options(options)
        self.write_models("")

    @property
    def migrations(self) -> Migrations:
        """The migrations, as they are in the folder now."""
        return Migrations.of_project(self.folder)

    def set_options(self, options: str, url: str | None = None) -> None:
        """Write `env.py` with these options of `run_migrations`."""
        (self.folder / "migrations" / "env.py").write_text(ENV.format(url=url or self.url, options=options))

    def write_models(self, source: str) -> None:
        """Write `models.py`."""
        head = "from howdah import *\nfrom sqlalchemy import *\nfrom sqlalchemy.orm import *\n"
        base = "class Base(DeclarativeBase):\n    metadata = MetaData(naming_convention=NAMING_CONVENTION)\n"
        (self.folder / "models.py").write_text(head + base + source)

    def write_migration(self, revision: str, upgrade: str, downgrade: str = "pass", more: str = "") -> None:
        """Write a migration that follows the one with the number before it."""
        down_revision = f"{int(revision) - 1:04d}" if int(revision) > 1 else None
        (self.folder / "migrations" / "versions" / f"{revision}.py").write_text(
            MIGRATION.format(
                revision=revision, down_revision=down_revision, upgrade=upgrade, downgrade=downgrade, more=more
            )
        )

    def read_migration(self, revision: str) -> str:
        """The source of a migration."""
        (file,) = (self.folder / "migrations" / "versions").glob(f"{revision}*.py")
        return file.read_text()


@contextmanager
def empty_database(server_url: str) -> Iterator[str]:
    """The URL of a new, empty database. It is dropped when the block ends."""
    name = f"howdah_test_empty_{uuid4().hex[:8]}"
    run(server_url, f'CREATE DATABASE "{name}"')
    try:
        yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    finally:
        run(server_url, f'DROP DATABASE "{name}" WITH (FORCE)')


def run(url: str, *statements: str) -> list[tuple[Any, ...]]:
    """Send the statements, each in its own transaction, and return the rows of the last one."""

    async def send() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(make_url(url).set(drivername="postgresql").render_as_string(False))
        try:
            rows: list[Any] = []
            for statement in statements:
                rows = await connection.fetch(statement)
            return [tuple(row) for row in rows]
        finally:
            await connection.close()

    return asyncio.run(send())
