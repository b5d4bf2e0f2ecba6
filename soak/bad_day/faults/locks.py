"""Locks of other sessions, and a migration of the next release."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg
from alembic.util.exc import CommandError

from howdah import HowdahError
from howdah.alembic.history import Migrations
from shop import migrations
from soak.bad_day.faults.fault import Fault, running
from soak.bad_day.timeline import UNLIMITED, Tolerance

_REVISION = """
import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{previous}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("users", sa.Column("bad_day_{revision}", sa.String(length=20), nullable=True))


def downgrade() -> None:
    op.drop_column("users", "bad_day_{revision}")
"""


class _LockedTable(Fault):
    """Another session locks a table."""

    groups = frozenset({"lock"})
    tolerance = Tolerance(max_unavailable=UNLIMITED)
    table: str

    @asynccontextmanager
    async def inflict(self) -> AsyncIterator[None]:
        async with running(self._lock):
            yield

    async def _lock(self) -> None:
        """Hold the lock until the task is cancelled. PostgreSQL releases it when the connection is closed."""
        with _lost_connections():
            async with self.target.cluster.connect() as connection:
                await connection.execute("SET lock_timeout = '3s'")
                await connection.execute("BEGIN")
                await connection.execute(f"LOCK TABLE {self.table} IN ACCESS EXCLUSIVE MODE")
                await asyncio.sleep(self.seconds * 2)


class LockedUsers(_LockedTable):
    """`LOCK TABLE users`."""

    name = "locked-users"
    table = "users"


class LockedAccounts(_LockedTable):
    """`LOCK TABLE accounts`."""

    name = "locked-accounts"
    table = "accounts"


class Migration(Fault):
    """The next release adds a column, while a slow reader holds a lock on the table.

    The running service doesn't know the new revision.
    """

    name = "migration"
    groups = frozenset({"lock"})
    tolerance = Tolerance(max_unavailable=0.2)

    @asynccontextmanager
    async def inflict(self) -> AsyncIterator[None]:
        async with running(self._read_slowly, self._migrate):
            yield
            await asyncio.sleep(0)

    async def _read_slowly(self) -> None:
        with _lost_connections():
            async with self.target.cluster.connect() as connection:
                await connection.execute("BEGIN")
                await connection.fetchval("SELECT count(*) FROM users")
                await asyncio.sleep(self.seconds * 0.6)

    async def _migrate(self) -> None:
        await asyncio.sleep(self.seconds * 0.1)
        try:
            await asyncio.to_thread(Migrations(self._write_next_revision()).upgrade, self.target.cluster.direct_url)
        except (HowdahError, OSError, asyncpg.PostgresError) as error:  # another fault has interrupted it
            print(f"the migration was interrupted: {type(error).__name__}", flush=True)
        except CommandError as error:
            self.target.violations.add("migration: rejected", str(error))

    def _write_next_revision(self) -> Path:
        """Write the migrations of the next release: those of this release, and one more. Return their folder."""
        folder = self.target.folder / "migrations"
        if not folder.exists():
            assert migrations.HISTORY.folder is not None
            shutil.copytree(migrations.HISTORY.folder, folder, ignore=shutil.ignore_patterns("__pycache__"))
        previous = Migrations(folder).head
        revision = f"{int(previous) + 1:04}"
        (folder / "versions" / f"{revision}_bad_day.py").write_text(
            _REVISION.format(revision=revision, previous=previous)
        )
        return folder


@contextmanager
def _lost_connections() -> Iterator[None]:
    """Other faults may end the connections of this one."""
    with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        yield
