"""Run one migration at a time, and limit its waits for the locks of tables."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, event, text
from sqlalchemy.ext.asyncio import AsyncConnection

from howdah.database import Database
from howdah.errors import DatabaseError, DeadlockDetected, LockTimeout, MigrationBlocked

# The key of the advisory lock of a database: "howdah" in hexadecimal.
LOCK_KEY: Final = 0x686F_7764_6168

# The first and the longest pause between two attempts to get the advisory lock.
_FIRST_POLL_SECONDS: Final = 0.02
_LONGEST_POLL_SECONDS: Final = 1.0

# The pause before a migration is started again grows with each attempt, from about `lock_timeout` to this time. Then it
# is changed at random by up to a half. During the pause, the transactions that queued behind the migration run.
_LONGEST_PAUSE_SECONDS: Final = 5.0

# Remove timeouts that a role or a database may have for its usual work. Settings that this server doesn't have are left
# out. `lock_timeout` is set once more, because a pooler may have dropped it.
_SET_TIMEOUTS: Final = """
    SELECT set_config(name, CASE name WHEN 'lock_timeout' THEN :lock_timeout ELSE '0' END, false) FROM pg_settings
    WHERE name IN ('lock_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')
"""
# If the migrating process is killed, its statement is cancelled after this time. Otherwise the statement would go on,
# and the next process would wait for the advisory lock.
_CHECK_CLIENT: Final = "SET client_connection_check_interval = '1s'"

_HOLDER: Final = """
    SELECT format(
        'process %s of application %s from %s, connected since %s',
        pid, quote_literal(application_name), coalesce(client_addr::text, 'this machine'),
        date_trunc('second', backend_start)
    )
    FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND (classid::bigint << 32) | objid::bigint = :key
"""
_OLD_TRANSACTIONS: Final = """
    SELECT format(
        'process %s of application %s, %s for %s s', pid, quote_literal(application_name), state,
        extract(epoch FROM clock_timestamp() - xact_start)::int
    )
    FROM pg_stat_activity
    WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid() AND datname = current_database()
    ORDER BY xact_start LIMIT 5
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockSettings:
    """The limits of a migration's waits, in seconds, and the number of its attempts."""

    wait: float
    lock_timeout: float
    attempts: int

    def __post_init__(self) -> None:
        if self.wait < 0 or self.lock_timeout <= 0 or self.attempts < 1:
            raise ValueError(
                f"wait must be at least 0, lock_timeout more than 0, and lock_attempts at least 1, not {self.wait}, "
                f"{self.lock_timeout}, {self.attempts}"
            )

    @property
    def milliseconds(self) -> int:
        """`lock_timeout` as PostgreSQL's setting."""
        return max(1, round(self.lock_timeout * 1000))


_logger = logging.getLogger("howdah.alembic")


async def reject_pooler(url: str) -> None:
    """Raise `MigrationBlocked` if there is a pooler between this process and the server.

    The advisory lock and the timeouts belong to the session. A pooler could keep the lock after the end of this
    process, so that nobody could migrate. Or it could drop the timeouts, so that a migration blocks the service.
    """
    async with (
        Database(url, pool_size=1, pooler="transaction", application_name="howdah migrate") as database,
        database.engine.connect() as connection,
    ):
        driver: Any = (await connection.get_raw_connection()).driver_connection
        if driver.get_server_pid() != await connection.scalar(text("SELECT pg_backend_pid()")):
            raise MigrationBlocked(
                f"{database.engine.url.render_as_string()} is the URL of a pooler. A migration needs a direct "
                "connection to the server, because its lock and its timeouts belong to the session: pass the URL of "
                "the server, for example with --url. If the pooler is in session mode, pass allow_pooler=True to "
                "run_migrations"
            )


async def prepare_session(connection: AsyncConnection, settings: LockSettings) -> None:
    """Set `lock_timeout`, remove other timeouts, and let the server notice if this process is killed."""
    await connection.execute(text("SET statement_timeout = 0"))  # first, because the role's may be short
    await connection.execute(text(_SET_TIMEOUTS), {"lock_timeout": f"{settings.milliseconds}ms"})
    await connection.commit()
    try:
        await connection.execute(text(_CHECK_CLIENT))
        await connection.commit()
    except DatabaseError:  # the server's platform doesn't support it
        await connection.rollback()


@asynccontextmanager
async def migration_lock(connection: AsyncConnection, settings: LockSettings) -> AsyncIterator[None]:
    """Hold the advisory lock of the database inside the block.

    It is polled. A statement that waits for the lock would have a snapshot, and CREATE INDEX CONCURRENTLY of the
    process that holds the lock would wait for that snapshot: a deadlock.
    """
    deadline = time.monotonic() + settings.wait
    pause = _FIRST_POLL_SECONDS
    is_reported = False
    while not await _call(connection, "pg_try_advisory_lock"):
        if time.monotonic() + pause > deadline:
            raise MigrationBlocked(
                f"another migration of this database didn't end within {settings.wait:g} s. It is run by "
                f"{await _describe_holder(connection)}. Nothing was migrated: "
                "try again, or pass a longer wait to run_migrations"
            )
        if pause == _LONGEST_POLL_SECONDS and not is_reported:
            is_reported = True
            _logger.warning(
                "another migration of this database is run by %s: waiting for its end, at most %g s",
                await _describe_holder(connection),
                settings.wait,
            )
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_POLL_SECONDS)
    yield
    # If the block fails, the connection is closed, which releases the lock.
    await _call(connection, "pg_advisory_unlock")


async def _describe_holder(connection: AsyncConnection) -> str:
    """The process that holds the advisory lock."""
    holders = (await connection.scalars(text(_HOLDER).bindparams(key=LOCK_KEY))).all()
    await connection.commit()
    return " and ".join(holders) or "a process that has ended now"


async def _call(connection: AsyncConnection, function: str) -> bool:
    """Call a function of the lock, in a transaction that ends at once."""
    result = await connection.scalar(text(f"SELECT {function}(:key)").bindparams(key=LOCK_KEY))
    await connection.commit()
    return bool(result)


@dataclass(slots=True)
class Progress:
    """How far a command has come: the applied migrations, the commits of the current one, and its failed attempts."""

    applied: int = 0
    commits: int = 0
    failures: int = 0

    @property
    def outcome(self) -> str:
        """The state of the migration that didn't get a lock, for a message."""
        if self.commits:
            return "was committed in part, because it has an autocommit_block, and ended"
        return "was rolled back"


def retry_after_lock_timeout(
    connection: Connection, attempt: Callable[[], None], progress: Progress, settings: LockSettings
) -> None:
    """Call `attempt`, and call it again if it didn't get a lock, up to `settings.attempts` times for one migration.

    A migration that has committed a part of its work, in an `autocommit_block`, isn't started again.
    """

    def count_commit(_connection: Connection) -> None:
        progress.commits += 1

    event.listen(connection, "commit", count_commit)
    applied = progress.applied
    while True:
        try:
            attempt()
        except (DeadlockDetected, LockTimeout):
            connection.rollback()
            progress.failures = progress.failures + 1 if progress.applied == applied else 1
            applied = progress.applied
            if progress.failures >= settings.attempts or progress.commits:
                raise
            pause = min(settings.lock_timeout * (1 + progress.failures / 4), _LONGEST_PAUSE_SECONDS)
            pause *= random.uniform(0.5, 1.5)  # noqa: S311  # so that the attempts don't meet a periodic job
            _logger.warning(
                "the migration waited %g s for a lock (attempt %d of %d). It was rolled back, and starts again in "
                "%.1f s. %s",
                settings.lock_timeout,
                progress.failures,
                settings.attempts,
                pause,
                describe_old_transactions(connection),
            )
            time.sleep(pause)
        else:
            return


def describe_old_transactions(connection: Connection) -> str:
    """The oldest transactions of the database, which may hold the lock."""
    found = connection.execute(text(_OLD_TRANSACTIONS)).scalars().all()
    connection.rollback()
    return f"The oldest transactions: {'; '.join(found)}" if found else "No other transaction is open now"
