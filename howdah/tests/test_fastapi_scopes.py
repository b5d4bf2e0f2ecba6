"""A committing session is rejected wherever FastAPI would run its commit after the response."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

import pytest
from fastapi import APIRouter, Depends
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import AsyncRepository, Database
from howdah.fastapi import DbSession, get_db, session_dependency
from howdah_tests.support.fastapi_apps import create_app, create_bare_app, http_client
from howdah_tests.support.sample_models import User


async def record_login(db: Annotated[AsyncSession, Depends(get_db)]) -> AsyncIterator[None]:
    await AsyncRepository(db, User).create(email="login@x", name="login")
    yield


@pytest.mark.parametrize("place", ["application", "router", "included router", "router in a router", "mounted"])
@pytest.mark.parametrize("takes_session", [False, True])
async def test_a_dependency_with_a_late_commit_is_rejected_wherever_it_is_declared(
    committed_database: Database, place: str, takes_session: bool
) -> None:
    late = [Depends(record_login)]
    app = create_app(committed_database)
    if place == "application":
        app.router.dependencies.extend(late)
    router = APIRouter(dependencies=late if place == "router" else [])

    if takes_session:

        @router.post("/")
        async def create_with(db: DbSession) -> None: ...
    else:

        @router.post("/")
        async def create() -> None: ...

    if place == "router in a router":
        outer = APIRouter()
        outer.include_router(router, dependencies=late)
        router = outer
    if place == "mounted":
        inner = create_bare_app(committed_database)
        inner.include_router(router, dependencies=late)
        app.mount("/there", inner)
    else:
        app.include_router(router, prefix="/there", dependencies=late if place == "included router" else [])
    async with http_client(app) as client:
        assert [(await client.post("/there/")).status_code for _ in range(2)] == [500, 500]
    async with committed_database.session() as session:
        assert await AsyncRepository(session, User).count() == 0


async def test_a_valid_session_dependency_does_not_permit_an_invalid_one(committed_database: Database) -> None:
    app = create_app(committed_database)
    reports = Annotated[AsyncSession, session_dependency(lambda connection: connection.state.reports)]

    @app.post("/")
    async def create(valid: reports, db: Annotated[AsyncSession, Depends(get_db)]) -> None:
        await AsyncRepository(db, User).create(email="a@x", name="a")

    async with http_client(app) as client:
        assert [(await client.post("/")).status_code for _ in range(2)] == [500, 500]
    async with committed_database.session() as session:
        assert await AsyncRepository(session, User).count() == 0
