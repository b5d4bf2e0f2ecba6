"""Compare the pools of a service with the connections that PostgreSQL accepts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import text

from howdah._connections.pool import BoundedPool
from howdah.database import Database
from howdah.errors import PoolsTooLarge

__all__ = ["check_connection_limits"]

# A limit of -1 means none. The limits of logins and databases don't apply to superusers, who may also use the reserved
# connections. But those are for an administrator who has to log in while all others are in use.
_LIMITS: Final = text(
    """
    SELECT CAST(current_setting('max_connections') AS integer)
             - CAST(current_setting('superuser_reserved_connections') AS integer)
             - COALESCE(CAST(current_setting('reserved_connections', true) AS integer), 0) AS server,
           CASE WHEN rolsuper OR rolconnlimit < 0 THEN NULL ELSE rolconnlimit END AS login,
           CASE WHEN rolsuper OR datconnlimit < 0 THEN NULL ELSE datconnlimit END AS database,
           current_setting('max_connections') AS max_connections
    FROM pg_roles, pg_database WHERE rolname = session_user AND datname = current_database()
    """
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limit:
    """The number of connections that one server accepts from one login. `name` names the limit in the message."""

    connections: int
    name: str
    needed_setting: str


async def check_connection_limits(databases: Iterable[Database], *, workers: int = 1, advice: str = "") -> None:
    """Raise `PoolsTooLarge` if the pools of all worker processes could open more connections than PostgreSQL accepts.

    `databases` are those of one process. Each may open `pool_size + max_overflow` connections, in every process. While
    one of several workers is replaced (`howdah.serving.serve`), there is one process more, which is counted. Other
    clients, and the processes of another version during a rolling deployment, are not counted. The limits are those of
    the server without its reserved connections, of the login, and of the database.

    `advice` names the settings of the service that change the pools, for the message. A database behind a transaction
    pooler is left out. The limits are read through one database of each server. Raises `Unavailable` if that fails.
    """
    groups: dict[tuple[object, ...], list[Database]] = {}
    for database in databases:
        pool, url = database.engine.pool, database.engine.url
        if not (isinstance(pool, BoundedPool) and pool.state.is_transaction_pooled):
            address = url.host, url.port, url.query.get("host"), url.username, url.database
            groups.setdefault(address, []).append(database)
    for group in groups.values():
        await _check_group(group, workers, advice)


async def _check_group(databases: list[Database], workers: int, advice: str) -> None:
    """Check the databases that use the same server, login and database."""
    async with databases[0].session(read_only=True) as session:
        row = (await session.execute(_LIMITS)).one()
    limits = [
        _Limit(
            connections=row.server,
            name=f"PostgreSQL (max_connections = {row.max_connections})",
            needed_setting="max_connections of PostgreSQL",
        )
    ]
    if row.login is not None:
        limits.append(_Limit(connections=row.login, name="the login", needed_setting="CONNECTION LIMIT of the login"))
    if row.database is not None:
        limits.append(
            _Limit(connections=row.database, name="the database", needed_setting="CONNECTION LIMIT of the database")
        )
    limit = min(limits, key=lambda each: each.connections)
    per_process = sum(status.size + status.max_overflow for status in (each.pool_status() for each in databases))
    needed = per_process * _count_processes(workers)
    if needed > limit.connections:
        raise PoolsTooLarge(_describe(limit, needed, per_process, workers, advice))


def _count_processes(workers: int) -> int:
    """The largest number of processes at a time. One of several workers may be running together with its successor."""
    return workers + 1 if workers > 1 else workers


def _describe(limit: _Limit, needed: int, per_process: int, workers: int, advice: str) -> str:
    """The message of the error: the limit that is exceeded, and the possible changes."""
    many = f"{workers} workers, and one more while a worker is replaced," if workers > 1 else "one process"
    fitting = limit.connections // per_process
    possible = f"run at most {fitting - 1} workers" if fitting > 2 else "run one process" if fitting else ""
    remedies = [
        f"raise {limit.needed_setting} by at least {needed - limit.connections}",
        f"lower {advice or 'pool_size and max_overflow'}",
        *([possible] if possible and workers > 1 else []),
    ]
    return (
        f"{many} could open {needed} connections ({per_process} in each process), but {limit.name} accepts "
        f"{limit.connections} of them: {', or '.join(remedies)}"
    )
