"""A migrated database for every test, and the service on real HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import pytest
import pytest_asyncio
import structlog

from howdah import Database
from howdah.alembic.catalog import CatalogEntry, read_whole_catalog
from shop import migrations
from shop.tables import create_tables
from shop_tests.support.empty_database import empty_database
from shop_tests.support.http_service import client_of, create_service, serve_in_thread
from shop_tests.support.openapi import assert_matches_openapi
from shop_tests.support.trigger_bypass import empty_tables


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
def service(database_url: str) -> Iterator[str]:
    """The address of a service that all tests of this pytest worker share."""
    with serve_in_thread(create_service(database_url)) as address:
        yield address


@pytest_asyncio.fixture
async def stored(database_url: str) -> AsyncIterator[Database]:
    """The database of that service, with real commits; its tables are emptied after each test.

    A test that changes the schema or needs its own service uses `committed_url` instead.
    """
    async with Database(database_url, pool_size=40) as database:
        yield database
        async with database.begin() as session:
            await empty_tables(session)


@pytest_asyncio.fixture
async def client(service: str, stored: Database) -> AsyncIterator[httpx.AsyncClient]:
    """A client of that service, signed in as an admin. It compares each response with the OpenAPI description."""
    async with client_of(service, event_hooks={"response": [assert_matches_openapi]}) as client:
        yield client
