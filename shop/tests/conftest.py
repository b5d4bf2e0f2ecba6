"""A migrated database for every test, and the service on real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import asyncpg
import httpx
import pytest
import pytest_asyncio
import structlog
from sqlalchemy import make_url

from howdah import Database
from howdah.alembic.catalog import CatalogEntry, read_whole_catalog
from shop import migrations
from shop.postgres import as_service_login
from shop.tables import create_tables
from shop_tests.support.empty_database import empty_database
from shop_tests.support.http_service import client_of, create_service, serve_in_thread
from shop_tests.support.openapi import assert_matches_openapi
from shop_tests.support.trigger_bypass import EMPTY_TABLES


@pytest.fixture(scope="session", autouse=True)
def _plain_log() -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


@pytest.fixture(scope="session")
def migrate() -> Callable[[str], None]:
    return migrations.upgrade


@pytest.fixture
def empty_url(postgres_url: str) -> Iterator[str]:
    """The URL of a database with nothing in it."""
    with empty_database(postgres_url) as url:
        yield url


@pytest.fixture(scope="session")
def created_catalog(postgres_url: str) -> dict[str, CatalogEntry]:
    """The catalog of a database that `Base.metadata.create_all` filled, without migrations."""
    with empty_database(postgres_url) as url:
        create_tables(url)
        return read_whole_catalog(url)


@pytest.fixture(scope="session")
def service_url(database_url: str) -> str:
    """The URL of the same database as `database_url`, with the login of the service."""
    return as_service_login(database_url)


@pytest.fixture(scope="session")
def service(service_url: str) -> Iterator[str]:
    """The address of a service that all tests of this pytest worker share."""
    with serve_in_thread(create_service(service_url)) as address:
        yield address


@pytest.fixture(scope="session")
def empty_stored(database_url: str) -> Iterator[Callable[[], None]]:
    """Deletes every row of the database of that service. All tests use the same connection, because they are many."""
    dsn = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        connection = runner.run(asyncpg.connect(dsn, server_settings={"lock_timeout": "10s"}))
        yield lambda: runner.run(connection.execute(EMPTY_TABLES))
        runner.run(connection.close())


@pytest.fixture
def _emptied(empty_stored: Callable[[], None]) -> Iterator[None]:
    yield
    empty_stored()


@pytest_asyncio.fixture
async def stored(database_url: str, _emptied: None) -> AsyncIterator[Database]:
    """The database of that service, with real commits; its tables are emptied after each test.

    A test that changes the schema or needs its own service uses `committed_url` instead.
    """
    async with Database(database_url, pool_size=40) as database:
        yield database


@pytest_asyncio.fixture
async def client(service: str, stored: Database) -> AsyncIterator[httpx.AsyncClient]:
    """A client of that service, signed in as an admin. It compares each response with the OpenAPI description."""
    async with client_of(service, event_hooks={"response": [assert_matches_openapi]}) as client:
        yield client
