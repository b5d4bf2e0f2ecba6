"""A pytest plugin: tests on a real PostgreSQL that leave nothing behind. In the root `conftest.py`:

    pytest_plugins = ["howdah.testing"]

and `asyncio_mode = "auto"` in pytest's configuration, so that pytest-asyncio runs `async def` tests without a mark.

Fixtures, from the outside in; override any of them:

- `postgres_url` (session): a server's maintenance database. By default an embedded server's, which test runs share;
  `--postgres-version` chooses its major version, `--postgres-url` uses a server of yours.
- `migrate` (session): a function that takes the URL of an empty database and makes the tables. By default those of
  `howdah.Base`; a service puts its migrations here.
- `database_url` (session): this worker's own database, cloned from a template that `migrate` made.
- `database`: a `Database` in which everything is rolled back when the test ends. What the code commits becomes a
  savepoint, so constraints that are deferred to COMMIT aren't checked, statements can't run at the same time, and
  every session is at READ COMMITTED, whatever isolation level it asks for.
- `session`: a session of it.
- `committed_database`: a `Database` on a fresh clone of its own, with real commits and a real pool: for races.
- `committed_url`: the URL of that clone, for tests that open it from elsewhere.

`assert_statements` guards the number of statements.
"""

from __future__ import annotations

__all__ = [
    "assert_statements",
    "committed_database",
    "committed_url",
    "database",
    "database_url",
    "migrate",
    "postgres_url",
    "session",
    "template",
]

import asyncio
import hashlib
import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Final

import asyncpg
import psutil
import pytest
import pytest_asyncio
from sqlalchemy import event, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from howdah.database import Database
from howdah.models import Base

# Names of databases say who made them, so that only the runs of this machine are ever taken for dead.
_PREFIX: Final = f"howdah_test_{hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()}"
_numbers: Final = count(1)
_made: Final[set[str]] = set()

_OF_TRANSACTIONS: Final = ("SAVEPOINT ", "RELEASE SAVEPOINT ", "ROLLBACK TO SAVEPOINT ", "SET LOCAL ")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("howdah")
    group.addoption("--postgres-version", type=int, default=18, help="major version of the embedded PostgreSQL")
    group.addoption("--postgres-url", default=None, help="use this server instead; its databases are made and dropped")


@pytest.fixture(scope="session")
def postgres_url(request: pytest.FixtureRequest) -> Iterator[str]:
    given: str | None = request.config.getoption("--postgres-url")
    if given is not None:
        yield given
        return
    from howdah.embedded import EmbeddedPostgres, default_data_dir

    version: int = request.config.getoption("--postgres-version")
    data_dir = default_data_dir().with_name(f"testing-{version}")
    with EmbeddedPostgres(data_dir, version=version) as server:
        yield server.url()


@pytest.fixture(scope="session")
def migrate() -> Callable[[str], None]:
    def create_tables(url: str) -> None:
        async def create() -> None:
            async with Database(url) as database, database.engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)

        asyncio.run(create())

    return create_tables


@pytest.fixture(scope="session")
def template(postgres_url: str, migrate: Callable[[str], None]) -> Iterator[str]:
    """The name of this worker's migrated template database."""
    _drop_databases_of_dead_runs(postgres_url)
    with _new_database(postgres_url, "template1") as name:
        migrate(_with_database(postgres_url, name))
        yield name


@pytest.fixture(scope="session")
def database_url(postgres_url: str, template: str) -> Iterator[str]:
    with _new_database(postgres_url, template) as name:
        yield _with_database(postgres_url, name)


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url, pool_size=1) as real, real.engine.connect() as connection:
        transaction = await connection.begin()
        yield real.bound_to(connection)
        await transaction.rollback()


@pytest_asyncio.fixture
async def session(database: Database) -> AsyncIterator[AsyncSession]:
    async with database.session() as session:
        yield session


@pytest.fixture
def committed_url(postgres_url: str, template: str) -> Iterator[str]:
    with _new_database(postgres_url, template) as name:
        yield _with_database(postgres_url, name)


@pytest_asyncio.fixture
async def committed_database(committed_url: str) -> AsyncIterator[Database]:
    async with Database(committed_url) as database:
        yield database


@contextmanager
def assert_statements(target: Database | AsyncEngine | AsyncSession, expected: int) -> Iterator[list[str]]:
    """Fail unless exactly `expected` statements are sent inside the block, by anybody on the same engine; yields their
    texts as they come. BEGIN, COMMIT, ROLLBACK, SET LOCAL and savepoints don't count. An executemany counts once, and
    so does a COPY (`COPY users (id, email) FROM STDIN …`)."""
    if isinstance(target, AsyncSession):
        engine = target.get_bind().engine
    else:
        engine = (target.engine if isinstance(target, Database) else target).sync_engine
    sent: list[str] = []

    def remember(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith(_OF_TRANSACTIONS):
            sent.append(statement)

    event.listen(engine, "before_cursor_execute", remember)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", remember)
    if len(sent) != expected:
        listed = "\n".join(f"{i}. {statement}" for i, statement in enumerate(sent, start=1))
        pytest.fail(f"{len(sent)} statements instead of {expected}:\n{listed}")


@contextmanager
def _new_database(postgres_url: str, template: str) -> Iterator[str]:
    """The name of a database that is dropped in the end."""
    name = f"{_PREFIX}_{os.getpid()}_{next(_numbers)}"
    _made.add(name)
    _run(postgres_url, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    try:
        yield name
    finally:
        _run(postgres_url, f'DROP DATABASE "{name}" WITH (FORCE)')


def _drop_databases_of_dead_runs(postgres_url: str) -> None:
    for (name,) in _run(postgres_url, "SELECT datname FROM pg_database"):
        found = re.fullmatch(rf"{_PREFIX}_(\d+)_\d+", name)
        if found and name not in _made and (int(found[1]) == os.getpid() or not psutil.pid_exists(int(found[1]))):
            _run(postgres_url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def _run(url: str, *statements: str) -> list[asyncpg.Record]:
    """Run the statements one by one on a connection of their own; the rows of the last one."""

    async def run() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(make_url(url).set(drivername="postgresql").render_as_string(False))
        try:
            rows: list[asyncpg.Record] = []
            for statement in statements:
                rows = await connection.fetch(statement)
            return rows
        finally:
            await connection.close()

    return asyncio.run(run())


def _with_database(url: str, name: str) -> str:
    parsed = make_url(url)
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+asyncpg")
    return parsed.set(database=name).render_as_string(hide_password=False)
