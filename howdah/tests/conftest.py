"""Fixtures of several test modules of the library."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database
from howdah.embedded import EmbeddedPostgres
from howdah_tests.support.embedded_servers import open_folder, query
from howdah_tests.support.moments import Separate as MomentsBase
from howdah_tests.support.sample_models import UserRepository
from howdah_tests.support.sample_rows import user_rows


@pytest.fixture
async def real_database(database_url: str) -> AsyncIterator[Database]:
    """A database with a real pool, for tests that commit nothing."""
    async with Database(database_url) as database:
        yield database


@pytest.fixture
def users(session: AsyncSession) -> UserRepository:
    return UserRepository(session)


@pytest.fixture
async def twenty(users: UserRepository) -> list[UUID]:
    """The keys of twenty users, in key order."""
    return (await users.create_many(user_rows(20))).keys


@pytest.fixture
async def moments(session: AsyncSession) -> AsyncSession:
    """A session with the table of `Moment`."""
    await (await session.connection()).run_sync(MomentsBase.metadata.create_all)
    return session


@pytest.fixture
def home() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def used_data() -> Iterator[Path]:
    """The data directory of a stopped server with a table and a database, for tests that don't need a new one."""
    with open_folder() as folder:
        (folder / "data").mkdir(mode=0o755)
        with EmbeddedPostgres(folder / "data") as server:
            query(server, "create table kept as select 42 as n")
            query(server, 'create database "a b"')
        yield server.data_dir
