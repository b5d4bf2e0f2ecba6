"""The PostgreSQL server of the service: an existing server, or an embedded one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import make_url

from howdah import Database
from howdah.embedded import EmbeddedPostgres
from shop.settings import Settings

_DATABASE = "shop"


@dataclass(frozen=True, slots=True)
class Location:
    """A database. `where` is text for the operator: the server and database, or the directory with the data."""

    url: str
    where: str


@contextmanager
def open_location(settings: Settings) -> Iterator[Location]:
    """The database of these settings. It can be reached inside the `with` block.

    Without `database_url`, the embedded server is started if it isn't running. It is stopped at the end of the block,
    unless another process uses it.
    """
    if settings.database_url is not None:
        url = make_url(settings.database_url)
        if url.drivername in {"postgres", "postgresql"}:
            url = url.set(drivername="postgresql+asyncpg")
        yield Location(url.render_as_string(hide_password=False), f"{url.host or 'local'}, database {url.database}")
        return
    with EmbeddedPostgres(settings.data_dir) as server:
        server.ensure_database(_DATABASE)
        yield Location(server.url(_DATABASE), str(server.data_dir))


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
