"""The PostgreSQL server: embedded, durable, with a new database for each run."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
import psutil
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from benchmarks.tables import Base
from howdah import Database
from howdah.embedded import EmbeddedPostgres, default_data_dir

_DURABILITY_SETTINGS: Final = ("fsync", "synchronous_commit", "full_page_writes")
_REPORTED_SETTINGS: Final = (
    *_DURABILITY_SETTINGS,
    "autovacuum",
    "checkpoint_timeout",
    "jit",
    "max_wal_size",
    "random_page_cost",
    "shared_buffers",
    "wal_compression",
    "wal_level",
    "work_mem",
)

_DATABASE_PREFIX: Final = "benchmarks_"


class NotDurable(Exception):
    """The server may answer COMMIT before the data is on disk. Such figures can't be compared with any others."""


class Connections:
    """Connections to the database of a run, for each kind of contender. All are opened before the first measurement."""

    def __init__(self, url: str, database: Database, engine: AsyncEngine, driver: Any) -> None:
        self.url = url
        self.database = database
        """For contenders that use Howdah."""
        self.engine = engine
        self.sessions = async_sessionmaker(engine, class_=AsyncSession, expire_on_commit=False)
        """SQLAlchemy's own sessions, with the options of the reference."""
        self.driver = driver
        """A connection of asyncpg, for hand-written baselines and for everything that isn't timed."""

    async def recover(self) -> None:
        """Remove what a failed contender may have left: an aborted transaction, running statements, locks."""
        self.driver.terminate()
        self.driver = await _connect(self.url)
        await self.driver.execute(
            """
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'
            """
        )


def embedded_server() -> EmbeddedPostgres:
    # Autovacuum would run during measurements. The benchmarks run VACUUM between them instead.
    return EmbeddedPostgres(default_data_dir().with_name("benchmarks"), settings={"autovacuum": "off"})


@asynccontextmanager
async def new_database(server: EmbeddedPostgres) -> AsyncIterator[str]:
    """The URL of an empty database, which is dropped at the end."""
    async with connect_driver(server.url()) as connection:
        await _drop_databases_of_dead_runs(connection)
        name = f"{_DATABASE_PREFIX}{os.getpid()}"
        await connection.execute(f'CREATE DATABASE "{name}"')
        try:
            yield server.url(name)
        finally:
            await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@asynccontextmanager
async def connect_driver(url: str) -> AsyncIterator[Any]:
    """A connection of asyncpg."""
    connection = await _connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def open_connections(url: str) -> AsyncIterator[Connections]:
    engine = create_async_engine(url, pool_size=20, max_overflow=10, pool_pre_ping=True, pool_recycle=3600)
    async with Database(url) as database:
        connections = Connections(url, database, engine, await _connect(url))
        try:
            async with engine.begin() as first:
                await first.run_sync(Base.metadata.create_all)
            await database.ping()
            yield connections
        finally:
            await connections.driver.close()
            await engine.dispose()


async def read_settings(connection: Any) -> dict[str, str]:
    """The server's settings that influence figures. Raises `NotDurable`."""
    settings = {name: await connection.fetchval(f"SHOW {name}") for name in _REPORTED_SETTINGS}
    for name in _DURABILITY_SETTINGS:
        if settings[name] != "on":
            raise NotDurable(f"{name} is {settings[name]}: set it to on; benchmarks run only on a durable server")
    return settings


async def find_server_pid(connection: Any) -> int:
    """The process id of the server, whose children are its other processes. It must run on this machine."""
    return int(await connection.fetchval("SELECT split_part(pg_read_file('postmaster.pid'), chr(10), 1)"))


async def _connect(url: str) -> Any:
    return await asyncpg.connect(make_url(url).set(drivername="postgresql").render_as_string(False))


async def _drop_databases_of_dead_runs(connection: Any) -> None:
    """Drop the databases of runs that were killed. The name of a database contains the process id of its run."""
    query = "SELECT datname FROM pg_database WHERE starts_with(datname, $1)"
    for (name,) in await connection.fetch(query, _DATABASE_PREFIX):
        pid = int(name.removeprefix(_DATABASE_PREFIX).partition("_")[0])
        if pid == os.getpid() or not psutil.pid_exists(pid):
            await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
