"""The server: embedded, durable, with a database of its own for one run."""

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

DURABLE: Final = ("fsync", "synchronous_commit", "full_page_writes")
SHOWN: Final = (
    *DURABLE,
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


_PREFIX: Final = "benchmarks_"


class NotDurable(Exception):
    """The server answers COMMIT before the disk has it, so its figures are nobody's."""


class Connections:
    """The database of a run, as each kind of contender reaches it. All are connected before anything is timed."""

    def __init__(self, url: str, database: Database, engine: AsyncEngine, driver: Any) -> None:
        self.url = url
        self.database = database
        """Howdah's."""
        self.engine = engine
        self.sessions = async_sessionmaker(engine, class_=AsyncSession, expire_on_commit=False)
        """SQLAlchemy's own, with the reference's options."""
        self.driver = driver
        """A connection of asyncpg: for limits, which are written by hand, and for what isn't timed."""


def embedded_server() -> EmbeddedPostgres:
    # What is timed isn't disturbed by autovacuum: between the timings the benchmarks vacuum by themselves.
    return EmbeddedPostgres(default_data_dir().with_name("benchmarks"), settings={"autovacuum": "off"})


@asynccontextmanager
async def new_database(server: EmbeddedPostgres) -> AsyncIterator[str]:
    """The URL of an empty database that is dropped in the end."""
    async with driver(server.url()) as connection:
        await _drop_those_of_dead_runs(connection)
        name = f"{_PREFIX}{os.getpid()}"
        await connection.execute(f'CREATE DATABASE "{name}"')
        try:
            yield server.url(name)
        finally:
            await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@asynccontextmanager
async def driver(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(make_url(url).set(drivername="postgresql").render_as_string(False))
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def connections(url: str) -> AsyncIterator[Connections]:
    engine = create_async_engine(url, pool_size=20, max_overflow=10, pool_pre_ping=True, pool_recycle=3600)
    async with Database(url) as database, driver(url) as connection:
        try:
            async with engine.begin() as first:
                await first.run_sync(Base.metadata.create_all)
            await database.ping()
            yield Connections(url, database, engine, connection)
        finally:
            await engine.dispose()


async def settings(connection: Any) -> dict[str, str]:
    """The server's settings that figures depend on. Raises `NotDurable`."""
    shown = {name: await connection.fetchval(f"SHOW {name}") for name in SHOWN}
    for name in DURABLE:
        if shown[name] != "on":
            raise NotDurable(f"{name} is {shown[name]}: figures are taken with it on, or not at all")
    return shown


async def _drop_those_of_dead_runs(connection: Any) -> None:
    """A run that is killed leaves its databases behind; their names say whose they are."""
    for (name,) in await connection.fetch("SELECT datname FROM pg_database WHERE starts_with(datname, $1)", _PREFIX):
        pid = int(name.removeprefix(_PREFIX).partition("_")[0])
        if pid == os.getpid() or not psutil.pid_exists(pid):
            await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
