"""The PostgreSQL server of the service: an existing server, or an embedded one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sqlalchemy import make_url, text

from howdah import Database, HowdahError, check_connection_limits
from howdah.embedded import DEFAULT_SETTINGS, EmbeddedPostgres, running_data_dirs
from shop.roles import SERVICE_LOGIN, STAFF_ROLE, SYSTEM_ROLE
from shop.settings import Settings

_DATABASE = "shop"
# Connections of the embedded server for other commands, and those that PostgreSQL reserves for superusers.
_OTHER_CONNECTIONS: Final = 20


class OtherServerRuns(Exception):
    """The default server doesn't run, but Shop's database on another embedded server does."""


class MissingUrl(Exception):
    """The settings have the URL of one login, but the command needs the other one."""


@dataclass(frozen=True, slots=True)
class Location:
    """A database. `where` is the text of `describe_location`."""

    url: str = field(repr=False)
    """The URL of the login that owns the tables."""
    where: str


@dataclass(frozen=True, slots=True)
class ServiceLocation:
    """The database of a service, whose login has no right to change the schema."""

    url: str = field(repr=False)
    """The URL of the service's login."""
    owner_url: str | None = field(repr=False)
    """The URL of the login that owns the tables, if the service may migrate the database."""


@contextmanager
def open_location(settings: Settings) -> Iterator[Location]:
    """The database of these settings, for the owner of its tables. It can be reached inside the `with` block.

    Without a URL, the embedded server is started if it isn't running, and started again if it dies. It is stopped at
    the end of the block, unless another process uses it. Raises `MissingUrl` if only the service's URL is set.
    """
    where = describe_location(settings)
    if settings.owner_database_url is not None:
        yield Location(_with_driver(settings.owner_database_url), where)
    elif settings.database_url is not None:
        raise MissingUrl(
            "SHOP_DATABASE_URL has the login of the service, but this command needs that of the owner of the tables: "
            "set SHOP_OWNER_DATABASE_URL"
        )
    else:
        with _embedded(settings) as server:
            yield Location(server.url(_DATABASE), where)


@contextmanager
def open_service_location(settings: Settings) -> Iterator[ServiceLocation]:
    """The database of these settings, for the service; see `open_location`.

    Raises `MissingUrl` if only the owner's URL is set.
    """
    if _is_embedded(settings):
        with _embedded(settings) as server:
            yield ServiceLocation(server.url(_DATABASE, user=SERVICE_LOGIN), server.url(_DATABASE))
    else:
        owner = settings.owner_database_url
        yield ServiceLocation(service_url(settings), None if owner is None else _with_driver(owner))


def service_url(settings: Settings) -> str:
    """The URL of the service's login on an existing server. Raises `MissingUrl` if it isn't set."""
    if settings.database_url is None:
        raise MissingUrl(
            "SHOP_OWNER_DATABASE_URL has the login of the owner of the tables, but the service must not use it: set "
            f"SHOP_DATABASE_URL to a URL that logs in as {SERVICE_LOGIN}"
        )
    return _with_driver(settings.database_url)


@contextmanager
def _embedded(settings: Settings) -> Iterator[EmbeddedPostgres]:
    """The embedded server with Shop's database. If it isn't running, it starts with enough connections."""
    needed = (settings.workers + 1) * _count_connections(settings) + _OTHER_CONNECTIONS
    connections = max(needed, int(DEFAULT_SETTINGS["max_connections"]))
    started_with = {"max_connections": str(connections)}
    with EmbeddedPostgres(settings.data_dir, settings=started_with, restart=True) as server:
        server.ensure_database(_DATABASE)
        yield server


def _with_driver(url: str) -> str:
    """The URL for SQLAlchemy and Alembic, which need the name of the driver."""
    parsed = make_url(url)
    if parsed.drivername in {"postgres", "postgresql"}:
        parsed = parsed.set(drivername="postgresql+asyncpg")
    return parsed.render_as_string(hide_password=False)


def report_location(
    settings: Settings, print_line: Callable[[str], object] | None = None, *, is_service: bool = False
) -> None:
    """Print the database of these settings, by default on standard error."""
    line = f"database: {describe_location(settings, is_service=is_service)}"
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
    if _is_embedded(settings) and settings.data_dir is None:
        default = EmbeddedPostgres()
        others = find_running_services() if default.pid is None else []
        if others:
            raise OtherServerRuns(
                f"the default server isn't running, but a service uses the server in {others[0]}: set "
                f"SHOP_DATA_DIR={others[0]} to use that one, or SHOP_DATA_DIR={default.data_dir} for the default one"
            )
    with open_location(settings) as location:
        yield location


def describe_location(settings: Settings, *, is_service: bool = False) -> str:
    """A text without the password: `shop on db.example.com:5432`, or `shop in <data directory> (embedded …)`.

    The address is that of the owner's URL. With `is_service` it is that of the service's URL: the two may differ.
    """
    if _is_embedded(settings):
        return f"{_DATABASE} in {EmbeddedPostgres(settings.data_dir).data_dir} (embedded PostgreSQL)"
    urls = [settings.owner_database_url, settings.database_url]
    url = make_url(next(each for each in (reversed(urls) if is_service else urls) if each is not None))
    host = url.host or url.query.get("host") or "the default host"
    return f"{url.database} on {host}{f':{url.port}' if url.port else ''}"


def _is_embedded(settings: Settings) -> bool:
    return settings.database_url is None and settings.owner_database_url is None


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


def as_service_login(url: str) -> str:
    """The URL of the same database with the login of the service, for a server that trusts local connections."""
    return make_url(url).set(username=SERVICE_LOGIN).render_as_string(hide_password=False)


def open_database(
    url: str,
    settings: Settings,
    *,
    application_name: str = "shop",
    role: str | None = None,
    pool_size: int | None = None,
    max_overflow: int = 10,
) -> Database:
    """The `Database` at `url`, with the pool size and the timeouts of the settings.

    With `role` its connections take this role when they are opened.
    """
    return Database(
        url,
        pool_size=settings.pool_size if pool_size is None else pool_size,
        max_overflow=max_overflow,
        pool_timeout=settings.pool_timeout,
        statement_timeout=settings.statement_timeout,
        lock_timeout=settings.lock_timeout,
        application_name=application_name,
        role=role,
        copy=False,  # PostgreSQL rejects COPY for a role that row-level security applies to
    )


def open_staff_database(url: str, settings: Settings) -> Database:
    """The `Database` of operators and admins, in a pool of its own."""
    size = settings.staff_pool_size
    return open_database(url, settings, role=STAFF_ROLE, pool_size=size, max_overflow=size // 2)


def open_system_database(url: str, settings: Settings) -> Database:
    """The `Database` of the ledger, of sign-ins, API keys and periodic jobs, in a pool of its own."""
    size = settings.system_pool_size
    return open_database(url, settings, role=SYSTEM_ROLE, pool_size=size, max_overflow=size // 2)


async def check_pools(url: str, settings: Settings) -> None:
    """Raise `PoolsTooLarge` if PostgreSQL doesn't accept the connections of all workers."""
    async with AsyncExitStack() as stack:
        databases = [await stack.enter_async_context(each) for each in _open_pools(url, settings)]
        await check_connection_limits(
            databases,
            workers=settings.workers,
            advice="SHOP_POOL_SIZE, SHOP_STAFF_POOL_SIZE and SHOP_SYSTEM_POOL_SIZE",
        )


def _count_connections(settings: Settings) -> int:
    """The most connections that one process opens."""
    states = [each.pool_status() for each in _open_pools("postgresql://", settings)]
    return sum(state.size + state.max_overflow for state in states)


def _open_pools(url: str, settings: Settings) -> list[Database]:
    """The databases of one process of the service. They open no connection before they are used."""
    return [open_database(url, settings), open_staff_database(url, settings), open_system_database(url, settings)]


def open_owner_database(url: str, settings: Settings, *, application_name: str) -> Database:
    """The `Database` of a command that must see all rows.

    If a policy would hide rows, PostgreSQL rejects the statement (`row_security = off`). Otherwise `shop check`, for
    example, could pass because it doesn't see the faulty rows.
    """
    return Database(
        url,
        pool_size=settings.pool_size,
        pool_timeout=settings.pool_timeout,
        statement_timeout=settings.statement_timeout,
        lock_timeout=settings.lock_timeout,
        application_name=application_name,
        connect_args={"server_settings": {"row_security": "off"}},
    )
