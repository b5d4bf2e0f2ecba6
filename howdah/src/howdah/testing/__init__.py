"""A pytest plugin: tests on a real PostgreSQL. Each test leaves the database as it was.

In the root `conftest.py`:

    pytest_plugins = ["howdah.testing"]

Set `asyncio_mode = "auto"` in pytest's configuration, so that pytest-asyncio runs `async def` tests without a mark.

Fixtures. Override any of them:

- `postgres_url` (session): the URL of a server's maintenance database. By default it is an embedded server, which
  concurrent test runs share. `--postgres-version` sets its major version. `--postgres-url` uses another server.
  The embedded server runs with `fsync` off. After a crash of the machine, the next run starts with new data.
  It also runs without autovacuum, so plans change only if a test runs ANALYZE.
  On Linux its data is in memory, in /dev/shm, if that has 2 GiB of space and the machine 4 GiB of free memory.
- `migrate` (session): a function that gets the URL of an empty database and creates the tables. By default these are
  the tables of `howdah.Base`. A service runs its migrations here.
- `database_url` (session): the URL of this worker's own database, a copy of a template that `migrate` has prepared.
- `database`: a `Database` whose changes are rolled back at the end of the test. A commit only releases a savepoint. So
  constraints that are deferred to COMMIT aren't checked, statements can't run concurrently, and every session is at
  READ COMMITTED, whatever isolation level it requests.
- `session`: a session of `database`.
- `committed_database`: a `Database` on a new copy of the template, with real commits and a real pool, for example for
  tests of races.
- `committed_url`: the URL of that copy.
- `app`: override it. It returns a FastAPI application that `howdah.fastapi.configure_app` has set up.
- `client`: an `httpx.AsyncClient` of `app`, which uses `database` instead of its own. The changes of requests are
  rolled back at the end of the test. Views and sessions see what the test and earlier requests have written. The
  application's lifespan runs, without its jobs. Concurrent requests are handled one after the other, because they share
  a connection. For the same reason a request can't have two transactions open at once. After an error of PostgreSQL in
  a view or in `Database.read`, no further statement is possible in the test.
- `committed_client`: the same on `committed_database`, for example for tests of concurrent requests.
- `databases`: override it if `app` has further databases. It returns a `Database` for each name.

`open_client` opens a client like `client`, for a second application in a test. `assert_statements` checks the number of
statements. `assert_indexed` checks that indexes support declared filters.
"""

from __future__ import annotations

__all__ = [
    "app",
    "assert_indexed",
    "assert_statements",
    "client",
    "committed_client",
    "committed_database",
    "committed_url",
    "database",
    "database_url",
    "databases",
    "migrate",
    "open_client",
    "postgres_url",
    "session",
    "template",
]

import asyncio
import hashlib
import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import psutil
import pytest
import pytest_asyncio
from sqlalchemy import Select, event, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from howdah._connections.settings import SETTINGS_COMMENT
from howdah._reads.filter_markers import Filter
from howdah._reads.filter_plans import is_condition_indexed, is_order_indexed, make_sample, prefer_indexes
from howdah.database import Database
from howdah.filters import Filters, get_declarations
from howdah.models import Base
from howdah.testing._shared_server import open_shared_server
from howdah.testing.clients import open_client

if TYPE_CHECKING:
    import httpx
    from fastapi import FastAPI


# The names of databases contain the host, because the process ids in them are only valid on this host.
_PREFIX: Final = f"howdah_test_{hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()}"
_numbers: Final = count(1)
# The databases that this process has created and not yet dropped.
_own_databases: Final[set[str]] = set()

_NOT_COUNTED: Final = ("SAVEPOINT ", "RELEASE SAVEPOINT ", "ROLLBACK TO SAVEPOINT ", "SET LOCAL ", SETTINGS_COMMENT)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("howdah")
    group.addoption("--postgres-version", type=int, default=18, help="major version of the embedded PostgreSQL")
    group.addoption(
        "--postgres-url", default=None, help="use this server instead; test databases are created on it and dropped"
    )


@pytest.fixture(scope="session")
def postgres_url(request: pytest.FixtureRequest) -> Iterator[str]:
    url: str | None = request.config.getoption("--postgres-url")
    if url is not None:
        yield url
        return
    version: int = request.config.getoption("--postgres-version")
    with open_shared_server(version) as server:
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


@pytest.fixture
def app() -> FastAPI:
    raise pytest.UsageError(
        "the fixture `client` needs your application: override the fixture `app`, and return the FastAPI application "
        "that configure_app has set up"
    )


@pytest.fixture
def databases() -> Mapping[str, Database]:
    return {}


@pytest_asyncio.fixture
async def client(
    app: FastAPI, database: Database, databases: Mapping[str, Database]
) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(app, {**databases, "main": database}, is_serial=True) as client:
        yield client


@pytest_asyncio.fixture
async def committed_client(
    app: FastAPI, committed_database: Database, databases: Mapping[str, Database]
) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(app, {**databases, "main": committed_database}, is_serial=False) as client:
        yield client


@contextmanager
def assert_statements(target: Database | AsyncEngine | AsyncSession, expected: int) -> Iterator[list[str]]:
    """Fail unless exactly `expected` statements are sent inside the block on the target's engine, by any task.

    It yields a list of their texts, which grows as they are sent. BEGIN, COMMIT, ROLLBACK, SET LOCAL and savepoints
    don't count. An executemany counts as one statement, and so does a COPY (`COPY users (id, email) FROM STDIN …`).
    """
    if isinstance(target, AsyncSession):
        engine = target.get_bind().engine
    else:
        # with_settings() makes a copy of the Database; all copies count
        engine = (target._root.engine if isinstance(target, Database) else target).sync_engine
    sent: list[str] = []

    def remember(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith(_NOT_COUNTED):
            sent.append(statement)

    event.listen(engine, "before_cursor_execute", remember)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", remember)
    if len(sent) != expected:
        listed = "\n".join(f"{i}. {statement}" for i, statement in enumerate(sent, start=1))
        pytest.fail(f"{len(sent)} statements instead of {expected}:\n{listed}")


async def assert_indexed(
    session: AsyncSession,
    filters: type[Filters],
    statement: Select[Any] | None = None,
    *,
    exclude: Collection[str] = (),
) -> None:
    """Fail unless an index supports each declared filter and each order of the `Sort`, on its own.

    It reads the plans with sequential scans and sorts disabled, so the tables may be empty. A `Condition` isn't
    checked. `statement` is needed if the indexes are partial: its conditions are added to each filter. `exclude` has
    the fields, and the members of the `Sort`, that need no index.

    The index of a prefix must have `text_pattern_ops`, or its column the collation C. A plain index supports prefixes
    only in a database with the collation C. It isn't accepted, because the test database may have this collation while
    the production database has another one.

    An index supports an order if it has the first of its columns, in the right direction and with its NULLs in the
    right place. It isn't checked whether one index supports several filters, or a filter and the order.
    """
    declared = get_declarations(filters)
    missing: list[str] = []
    async with session.begin_nested() as savepoint:
        await prefer_indexes(session)
        for name, each in declared.filters.items():
            if name in exclude or not isinstance(each, Filter):
                continue
            condition = each.build_indexed_condition(make_sample(filters.model_fields[name].annotation))
            if not await is_condition_indexed(session, statement, condition):
                missing.append(f"{name}: {each.column} {each.operator}")
        if declared.sort is not None:
            field, sort = declared.sort
            for member in sort.get_members(filters.model_fields[field].annotation):
                order, tables = sort.build_order(member), declared.tables[field]
                if member not in exclude and not await is_order_indexed(session, statement, tables, order):
                    missing.append(f"{field}={member}")
        await savepoint.rollback()
    if missing:
        listed = "".join(f"\n- {each}" for each in missing)
        pytest.fail(f"no index supports these filters of {filters.__name__}: create one, or exclude them{listed}")


@contextmanager
def _new_database(postgres_url: str, template: str) -> Iterator[str]:
    """The name of a new database, which is dropped at the end."""
    name = f"{_PREFIX}_{os.getpid()}_{next(_numbers)}"
    _own_databases.add(name)
    _run(postgres_url, f'CREATE DATABASE "{name}" TEMPLATE "{template}"{_strategy(postgres_url)}')
    try:
        yield name
    finally:
        _run(postgres_url, f'DROP DATABASE "{name}" WITH (FORCE)')
        _own_databases.discard(name)


@cache
def _strategy(url: str) -> str:
    """The STRATEGY clause of CREATE DATABASE.

    FILE_COPY copies the files between two checkpoints. It takes a third of the time (55 instead of 150 ms) if fsync is
    off, and ten times as long if fsync is on.
    """
    query = "SELECT current_setting('fsync') = 'off' AND current_setting('server_version_num')::int >= 150000"
    return " STRATEGY FILE_COPY" if _run(url, query)[0][0] else ""


def _drop_databases_of_dead_runs(postgres_url: str) -> None:
    """Drop the databases of killed processes of this host."""
    for (name,) in _run(postgres_url, "SELECT datname FROM pg_database"):
        found = re.fullmatch(rf"{_PREFIX}_(\d+)_\d+", name)
        if (
            found
            and name not in _own_databases
            and (int(found[1]) == os.getpid() or not psutil.pid_exists(int(found[1])))
        ):
            _run(postgres_url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def _run(url: str, *statements: str) -> list[asyncpg.Record]:
    """Run each statement without a transaction, as CREATE DATABASE requires, and return the rows of the last one."""

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
