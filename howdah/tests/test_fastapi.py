"""`howdah.fastapi` behind uvicorn, over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import UUID

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import select, text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import AsyncRepository, Database, NotFound
from howdah.fastapi import (
    DbSession,
    PageParameters,
    ReadDbSession,
    get_database,
    get_db,
    session_dependency,
)
from howdah_tests.support.fastapi_apps import USERS, create_app, http_client
from howdah_tests.support.sample_models import User


async def add_deferred_constraint(database: Database) -> None:
    """Make the COMMIT fail if two users have the same nickname."""
    async with database.begin() as session:
        await session.execute(
            text("ALTER TABLE users ADD CONSTRAINT one_nickname UNIQUE (nickname) DEFERRABLE INITIALLY DEFERRED")
        )


async def until_released(database: Database) -> None:
    async with asyncio.timeout(10):
        while database.pool_status().in_use:
            await asyncio.sleep(0.005)


async def add_two_users_with_one_nickname(db: AsyncSession) -> None:
    db.add_all([User(email=f"{n}@x", name="x", nickname="same") for n in range(2)])
    await db.flush()


# Fault 1 of the reference: get_db commits after the response.


async def test_a_commit_that_fails_is_the_response(committed_database: Database) -> None:
    await add_deferred_constraint(committed_database)
    app = create_app(committed_database)

    @app.post(USERS)
    async def create(db: DbSession) -> dict[str, str]:
        await add_two_users_with_one_nickname(db)
        return {"saved": "yes"}

    async with http_client(app) as client:
        response = await client.post(USERS)
    assert response.status_code == 409
    assert response.json()["constraint"] == "one_nickname"
    async with committed_database.session() as session:
        assert await AsyncRepository(session, User).count() == 0


async def test_control_the_reference_dependency_answers_200_to_a_commit_that_fails(
    committed_database: Database,
) -> None:
    await add_deferred_constraint(committed_database)
    app = create_app(committed_database)

    async def reference_get_db() -> AsyncIterator[AsyncSession]:
        async with committed_database.session() as session:
            try:
                yield session
                await session.commit()
            except Exception:
                await session.rollback()
                raise

    @app.post(USERS)
    async def create(db: Annotated[AsyncSession, Depends(reference_get_db)]) -> dict[str, str]:
        await add_two_users_with_one_nickname(db)
        return {"saved": "yes"}

    async with http_client(app) as client:
        response = await client.post(USERS)
    assert response.status_code == 200
    assert response.json() == {"saved": "yes"}
    async with committed_database.session() as session:
        assert await AsyncRepository(session, User).count() == 0  # nothing was saved


async def test_control_advanced_alchemy_answers_201_to_a_commit_that_fails(
    committed_database: Database, committed_url: str
) -> None:
    """Its `commit_mode="autocommit"` commits after the response was sent."""
    peer = pytest.importorskip("advanced_alchemy.extensions.fastapi", reason="needs the dependency group bench")
    await add_deferred_constraint(committed_database)
    app = FastAPI()
    config = peer.SQLAlchemyAsyncConfig(connection_string=committed_url, commit_mode="autocommit")
    alchemy = peer.AdvancedAlchemy(config=config, app=app)

    @app.post(USERS, status_code=201)
    async def create(db: Annotated[AsyncSession, Depends(alchemy.provide_session())]) -> dict[str, str]:
        await add_two_users_with_one_nickname(db)
        return {"saved": "yes"}

    try:
        async with http_client(app) as client:
            assert (await client.post(USERS)).status_code == 201
    finally:
        await config.get_engine().dispose()
    async with committed_database.session() as session:
        assert await AsyncRepository(session, User).count() == 0  # nothing was saved


async def test_the_commit_is_visible_to_others_before_the_response_is_sent(committed_database: Database) -> None:
    app = create_app(committed_database)
    seen: list[int] = []

    class SeesCommitted(JSONResponse):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async with committed_database.session() as session:
                seen.append(await AsyncRepository(session, User).count())
            await super().__call__(scope, receive, send)

    @app.post(USERS)
    async def create(db: DbSession) -> JSONResponse:
        await AsyncRepository(db, User).create(email="a@x", name="a")
        return SeesCommitted({})

    async with http_client(app) as client:
        assert (await client.post(USERS)).status_code == 200
    assert seen == [1]


@pytest.mark.parametrize("included", [False, True])
async def test_a_committing_session_declared_without_function_scope_is_rejected(
    committed_database: Database, included: bool
) -> None:
    app = create_app(committed_database)
    router = APIRouter()

    async def nested(db: Annotated[AsyncSession, Depends(get_db)]) -> AsyncSession:
        return db

    @(router if included else app).post(USERS)
    async def create(db: Annotated[AsyncSession, Depends(nested)]) -> None:
        await AsyncRepository(db, User).create(email="a@x", name="a")

    app.include_router(router, prefix="")
    async with http_client(app) as client:
        assert (await client.post(USERS)).status_code == 500
        assert (await client.post(USERS)).status_code == 500
    async with committed_database.session() as session:
        assert await AsyncRepository(session, User).count() == 0


async def test_an_error_of_the_route_rolls_back(committed_database: Database) -> None:
    app = create_app(committed_database)

    @app.post(USERS)
    async def create(db: DbSession, how: str) -> None:
        await AsyncRepository(db, User).create(email=f"{how}@x", name="a")
        if how == "http":
            raise HTTPException(418, "a teapot")
        if how == "howdah":
            raise NotFound(User, [1])
        raise ZeroDivisionError

    async with http_client(app) as client:
        assert [(await client.post(USERS, params={"how": how})).status_code for how in ("http", "howdah", "bug")] == [
            418,
            404,
            500,
        ]
    await until_released(committed_database)
    async with committed_database.session() as session:
        assert await AsyncRepository(session, User).count() == 0


@pytest.mark.parametrize(
    ("status", "detail", "expected"),
    [
        (
            499,
            "gone",
            {"type": "urn:howdah:problem:status-499", "title": "Status 499", "status": 499, "detail": "gone"},
        ),
        (
            422,
            {"field": "x", "why": ["y"]},
            {
                "type": "urn:howdah:problem:unprocessable-entity",
                "title": "Unprocessable Entity",
                "status": 422,
                "errors": {"field": "x", "why": ["y"]},
            },
        ),
        (204, None, None),
        (304, None, None),
    ],
)
async def test_an_http_exception_of_any_status_and_detail_becomes_a_response(
    committed_database: Database, status: int, detail: Any, expected: Any
) -> None:
    app = create_app(committed_database)

    @app.get("/")
    async def fail() -> None:
        raise HTTPException(status, detail)

    async with http_client(app) as client:
        answer = await client.get("/")
    assert answer.status_code == status
    if expected is None:
        assert answer.content == b""
    else:
        found = answer.json()
        assert found | {"type": expected["type"], "title": expected["title"]} == expected


async def test_a_streaming_response_reads_from_the_read_session(committed_database: Database) -> None:
    async with committed_database.begin() as session:
        await AsyncRepository(session, User).create_many({"email": f"{n}@x", "name": "a"} for n in range(3000))
    app = create_app(committed_database)

    @app.get("/export")
    async def export(db: ReadDbSession) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            async for user in AsyncRepository(db, User).stream(batch=100):
                yield f"{user.id}\n"

        return StreamingResponse(lines())

    async with http_client(app) as client:
        response = await client.get("/export")
    ids = response.text.split()
    assert len(ids) == 3000
    assert ids == sorted(ids)
    await until_released(committed_database)


async def test_a_streaming_response_on_the_committing_session_fails_and_leaks_no_connection(
    committed_database: Database,
) -> None:
    app = create_app(committed_database)
    raised: list[type[Exception]] = []

    @app.get("/export")
    async def export(db: DbSession) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            try:
                async for user in AsyncRepository(db, User).stream():
                    yield str(user.id)
            except Exception as error:
                raised.append(type(error))
                raise

        return StreamingResponse(lines())

    async with http_client(app) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/export")
    assert raised == [InvalidRequestError]
    assert committed_database.pool_status().in_use == 0


async def test_the_read_session_rejects_writes(committed_database: Database) -> None:
    app = create_app(committed_database)

    @app.post(USERS)
    async def create(db: ReadDbSession) -> None:
        await AsyncRepository(db, User).create(email="a@x", name="a")

    async with http_client(app) as client:
        response = await client.post(USERS)
    assert response.status_code == 503
    assert response.json()["type"] == "urn:howdah:problem:read-only"


async def test_a_client_that_disconnects_from_a_stream_releases_the_connection(
    committed_database: Database,
) -> None:
    async with committed_database.begin() as session:
        await AsyncRepository(session, User).create_many({"email": f"{n}@x", "name": "a"} for n in range(1000))
    app = create_app(committed_database)

    @app.get("/endless")
    async def endless(db: ReadDbSession) -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            while True:
                async for user in AsyncRepository(db, User).stream():
                    yield user.id.bytes * 1000

        return StreamingResponse(lines())

    async with http_client(app) as client:
        async with client.stream("GET", "/endless") as response:
            async for _ in response.aiter_bytes():
                break
        await until_released(committed_database)
    async with committed_database.session() as session:
        assert await AsyncRepository(session, User).count() == 1000


async def test_a_cancelled_request_rolls_back_and_releases_the_connection(committed_database: Database) -> None:
    app = create_app(committed_database)
    tasks: list[asyncio.Task[Any]] = []

    @app.post(USERS)
    async def create(db: DbSession) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        await AsyncRepository(db, User).create(email="a@x", name="a")
        await db.execute(text("SELECT pg_sleep(60)"))

    async with http_client(app) as client:
        request = asyncio.create_task(client.post(USERS))
        async with asyncio.timeout(10), committed_database.engine.connect() as watching:
            # in a transaction pg_stat_activity is cached
            await watching.execution_options(isolation_level="AUTOCOMMIT")
            while not await watching.scalar(text("SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'")):
                await asyncio.sleep(0.01)
        tasks[0].cancel()
        assert (await request).status_code == 500
        await until_released(committed_database)
    async with committed_database.session() as session:
        assert await AsyncRepository(session, User).count() == 0


async def test_get_database_can_be_overridden_without_a_lifespan(database: Database) -> None:
    app = FastAPI()

    @app.post(USERS)
    async def create(db: DbSession) -> None:
        await AsyncRepository(db, User).create(email="a@x", name="a")

    @app.get(USERS)
    async def count(db: ReadDbSession) -> int:
        return await AsyncRepository(db, User).count()

    app.dependency_overrides[get_database] = lambda: database
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.post(USERS)).status_code == 200
        assert (await client.get(USERS)).json() == 1


async def test_a_second_database_can_have_its_own_session_dependency(committed_database: Database) -> None:
    app = create_app(committed_database)
    reports = Annotated[AsyncSession, session_dependency(lambda connection: connection.state.reports)]

    @app.post(USERS)
    async def create(db: reports) -> None:
        await AsyncRepository(db, User).create(email="a@x", name="a")

    async with http_client(app) as client:
        assert (await client.post(USERS)).status_code == 200
    async with committed_database.session() as session:
        assert await AsyncRepository(session, User).count() == 1


async def test_the_error_of_an_application_without_a_database_says_what_to_do() -> None:
    app = FastAPI()

    @app.get("/")
    async def read(db: DbSession) -> None: ...

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        with pytest.raises(RuntimeError, match=r"call configure_app\(app, database=...\)"):
            await client.get("/")


async def test_page_parameters_reject_unknown_and_invalid_parameters(committed_database: Database) -> None:
    app = create_app(committed_database)

    @app.get(USERS)
    async def read(page: Annotated[PageParameters, Query()], db: DbSession) -> list[UUID]:
        found = await AsyncRepository(db, User).page(select(User), limit=page.limit, after=page.after)
        return [user.id for user in found.items]

    async with http_client(app) as client:
        assert (await client.get(USERS)).json() == []
        statuses = [
            (await client.get(USERS, params=params)).status_code
            for params in ({"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"sort": "name"}, {"after": "garbage"})
        ]
    assert statuses == [422, 422, 422, 422, 400]
