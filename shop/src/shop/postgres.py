"""The PostgreSQL server of the service: an existing server, or an embedded one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import make_url, text

from howdah import Database, HowdahError
from howdah.embedded import EmbeddedPostgres, running_data_dirs
from shop.settings import Settings

_DATABASE = "shop"


class OtherServerRuns(Exception):
    """The default server doesn't run, but Shop's database on another embedded server does."""


@dataclass(frozen=True, slots=True)
class Location:
    """A database. `where` is the text of `describe_location`."""

    url: str
    where: str


@contextmanager
def open_location(settings: Settings) -> Iterator[Location]:
    """The database of these settings. It can be reached inside the `with` block.

    Without `database_url`, the embedded server is started if it isn't running, and started again if it dies. It is
    stopped at the end of the block, unless another process uses it.
    """
    where = describe_location(settings)
    if settings.database_url is not None:
        url = make_url(settings.database_url)
        if url.drivername in {"postgres", "postgresql"}:
            url = url.set(drivername="postgresql+asyncpg")
        yield Location(url.render_as_string(hide_password=False), where)
        return
    with EmbeddedPostgres(settings.data_dir, restart=True) as server:
        server.ensure_database(_DATABASE)
        yield Location(server.url(_DATABASE), where)


def report_location(settings: Settings, print_line: Callable[[str], object] | None = None) -> None:
    """Print the database of these settings, by default on standard error."""
    line = f"database: {describe_location(settings)}"
    if print_line is None:
        print(line, file=sys.stderr)  # noqa: T201
    else:
        print_line(line)


@contextmanager
def open_running_location(settings: Settings) -> Iterator[Location]:
    """`open_location` for a command that reads or changes the data of a service.

    Raises `OtherServerRuns` if the settings name no server, the default one doesn't run, and a service runs on another
    one. Otherwise a command without the service's `SHOP_DATA_DIR` would silently use a second, empty database.
    """
    if settings.database_url is None and settings.data_dir is None:
        default = EmbeddedPostgres()
        others = find_running_services() if default.pid is None else []
        if others:
            raise OtherServerRuns(
                f"the default server isn't running, but a service uses the server in {others[0]}: set "
                f"SHOP_DATA_DIR={others[0]} to use that one, or SHOP_DATA_DIR={default.data_dir} for the default one"
            )
    with open_location(settings) as location:
        yield location


def describe_location(settings: Settings) -> str:
    """A text without the password: `shop on db.example.com:5432`, or `shop in <data directory> (embedded …)`."""
    if settings.database_url is None:
        return f"{_DATABASE} in {EmbeddedPostgres(settings.data_dir).data_dir} (embedded PostgreSQL)"
    url = make_url(settings.database_url)
    host = url.host or url.query.get("host") or "the default host"
    return f"{url.database} on {host}{f':{url.port}' if url.port else ''}"


def find_running_services() -> list[Path]:
    """The data directories of running embedded servers with a database of Shop."""
    return [folder for folder in running_data_dirs() if _has_database(folder)]


def _has_database(data_dir: Path) -> bool:
    """Whether the server of this directory has Shop's database. A server that has just ended counts as without it."""
    server = EmbeddedPostgres(data_dir)
    if server.pid is None:
        return False

    async def run(url: str) -> bool:
        async with Database(url, pool_size=1) as database, database.session(read_only=True) as session:
            query = text("SELECT EXISTS (SELECT FROM pg_database WHERE datname = :name)")
            return bool(await session.scalar(query, {"name": _DATABASE}))

    try:
        with server:
            return asyncio.run(run(server.url()))
    except HowdahError:
        return False


def open_database(url: str, settings: Settings, *, application_name: str = "shop") -> Database:
    """The `Database` at `url`, with the pool size and the timeouts of the settings."""
    return Database(
        url,
        pool_size=settings.pool_size,
        pool_timeout=settings.pool_timeout,
        statement_timeout=settings.statement_timeout,
        lock_timeout=settings.lock_timeout,
        application_name=application_name,
    )
