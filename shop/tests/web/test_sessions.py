"""`get_db`: the changes of a route are committed before its response is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database
from howdah.fastapi import DbSession, add_error_handlers, get_db
from shop.users.models import User
from shop_tests.support import reference
from shop_tests.support.http_service import http_client
from shop_tests.support.problems import assert_problem

_CHECKED_IN_COMMIT = (
    "CREATE TABLE parents (id int PRIMARY KEY)",
    "CREATE TABLE children (parent_id int REFERENCES parents DEFERRABLE INITIALLY DEFERRED)",
)


@asynccontextmanager
async def app_on(database: Database) -> AsyncIterator[FastAPI]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Database]]:
        yield {"database": database}

    app = FastAPI(lifespan=lifespan)
    add_error_handlers(app)

    async def insert_orphan(db: AsyncSession) -> str:
        await db.execute(text("INSERT INTO children VALUES (1)"))
        return "made"

    @app.post("/db-session")
    async def insert_with_db_session(db: DbSession) -> str:
        return await insert_orphan(db)

    @app.post("/reference-session")
    async def insert_with_reference_session(db: Annotated[AsyncSession, Depends(reference.get_db)]) -> str:
        return await insert_orphan(db)

    @app.post("/wrong-scope")
    async def use_wrong_scope(db: Annotated[AsyncSession, Depends(get_db)]) -> str:
        return "never"

    @app.post("/raises")
    async def raise_after_insert(db: DbSession) -> None:
        db.add(User(email="ada@example.com", name="Ada"))
        await db.flush()
        raise ValueError("no")

    async with database.begin() as session:
        for statement in _CHECKED_IN_COMMIT:
            await session.execute(text(statement))
    yield app


async def test_a_failed_commit_is_the_response(committed_database: Database, caplog: pytest.LogCaptureFixture) -> None:
    async with app_on(committed_database) as app, http_client(app) as client:
        answer = await client.post("/db-session")
        assert_problem(answer, 409, "foreign-key-violation", constraint="children_parent_id_fkey")

        answer = await client.post("/reference-session")  # the control: the commit fails after the response
        assert (answer.status_code, answer.json()) == (200, "made")

        async with committed_database.session() as session:
            assert await session.scalar(text("SELECT count(*) FROM children")) == 0
    assert "ForeignKeyViolation" in caplog.text


async def test_a_route_that_raises_writes_nothing(committed_database: Database) -> None:
    async with app_on(committed_database) as app, http_client(app) as client:
        assert_problem(await client.post("/raises"), 500, "internal-error")
        async with committed_database.session() as session:
            assert await session.scalar(select(func.count()).select_from(User)) == 0
        assert committed_database.pool_status().in_use == 0


async def test_get_db_declared_as_in_the_reference_is_rejected(
    committed_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async with app_on(committed_database) as app, http_client(app) as client:
        assert_problem(await client.post("/wrong-scope"), 500, "internal-error")
    assert "scope='function'" in caplog.text
