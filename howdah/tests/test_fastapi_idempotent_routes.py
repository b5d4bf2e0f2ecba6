"""`IdempotentRoute`: its session, and the routes and responses that are rejected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, StreamingResponse
from fastapi.routing import APIRoute
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.background import BackgroundTask

from howdah import Database, IntegrityViolation
from howdah.fastapi import (
    DbSession,
    IdempotentRoute,
    StrictJSONRoute,
    get_database,
    get_db,
    idempotency_key,
    session_dependency,
    session_from,
)
from howdah_tests.support.fastapi_apps import asgi_client, create_bare_app
from howdah_tests.support.idempotent_app import (
    IdempotentRequest,
    Note,
    count_notes,
    create_app,
    get_caller,
    is_replay,
    note_key,
    post,
    read_stored,
    serve,
)


@pytest.fixture
async def stored(database: Database) -> Database:
    """A database with the tables. Its changes are rolled back, so its requests can't run concurrently."""
    async with database.session() as session:
        await (await session.connection()).run_sync(Note.metadata.create_all)
        await session.commit()
    return database


@pytest.fixture
async def client(stored: Database) -> AsyncIterator[httpx.AsyncClient]:
    async with asgi_client(create_app(stored)) as client:
        yield client


# The session

_reports = session_dependency(lambda connection: connection.app.state.reports)
_ReportsSession = Annotated[AsyncSession, _reports]


async def get_callers_database(
    caller: Annotated[str, Depends(get_caller)], database: Annotated[Database, Depends(get_database)]
) -> Database:
    return database.with_settings({"app.caller": caller})


_callers = session_from(get_callers_database)
_CallersSession = Annotated[AsyncSession, _callers]


async def test_a_route_can_not_commit_its_session(stored: Database) -> None:
    async def endpoint(db: DbSession) -> None:
        db.add(Note(text="a"))
        async with db.begin_nested():
            db.add(Note(text="b"))
        await db.commit()

    app = serve(stored, endpoint)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        with pytest.raises(RuntimeError, match="must not commit"):
            await post(client, path="/")
        assert await count_notes(stored) == 0
        assert (await post(client, None, "/")).status_code == 200  # without a key, nothing has to be stored
    assert await count_notes(stored) == 2


async def test_a_response_is_stored_with_what_the_route_wrote_after_a_rollback(stored: Database) -> None:
    async def endpoint(db: DbSession) -> str:
        db.add(Note(text="a"))
        await db.flush()
        await db.rollback()
        db.add(Note(text="b"))
        return "written"

    async with asgi_client(serve(stored, endpoint)) as client:
        answers = [await post(client, path="/") for _ in range(2)]
    assert [is_replay(answer) for answer in answers] == [False, True]
    assert await count_notes(stored) == 1


async def test_an_error_that_the_route_has_caught_is_the_response_as_without_a_key(stored: Database) -> None:
    """The error has aborted the transaction, so nothing can be committed."""
    async with stored.begin() as session:
        await session.execute(text("ALTER TABLE notes ADD CONSTRAINT one_text UNIQUE (text)"))

    async def endpoint(db: DbSession) -> str:
        try:
            await db.execute(text("INSERT INTO notes SELECT gen_random_uuid(), 'same' FROM generate_series(1, 2)"))
        except IntegrityViolation:
            return "caught"
        return "written"

    async with asgi_client(serve(stored, endpoint)) as client:
        answers = [await post(client, key, "/") for key in (None, "k")]
    assert [(each.status_code, each.json()["constraint"]) for each in answers] == [(409, "one_text")] * 2
    assert await read_stored(stored) == []


async def test_the_session_of_another_database_is_named(stored: Database) -> None:
    async def endpoint(db: _ReportsSession) -> None:
        db.add(Note(text="a"))

    key = idempotency_key(IdempotentRequest, scope=get_caller, session=_reports)
    app = serve(stored, endpoint, dependencies=[key])
    app.state.reports = stored
    async with asgi_client(app) as client:
        answers = [await post(client, path="/") for _ in range(2)]
    assert [is_replay(answer) for answer in answers] == [False, True]
    assert await count_notes(stored) == 1
    with pytest.raises(TypeError, match="isn't the one of its idempotency key"):
        serve(stored, endpoint)
    with pytest.raises(TypeError, match="session_dependency"):
        idempotency_key(IdempotentRequest, scope=get_caller, session=Depends(get_caller))


async def test_the_key_is_stored_by_the_session_of_a_dependency(stored: Database) -> None:
    async def endpoint(db: _CallersSession) -> str:
        db.add(Note(text="a"))
        return str(await db.scalar(text("SELECT current_setting('app.caller')")))

    key = idempotency_key(IdempotentRequest, scope=get_caller, session=_callers)
    async with asgi_client(serve(stored, endpoint, dependencies=[key])) as client:
        answers = [await post(client, path="/", caller="ada") for _ in range(2)]
    assert [is_replay(answer) for answer in answers] == [False, True]
    assert [answer.json() for answer in answers] == ["ada", "ada"]
    assert await count_notes(stored) == 1


# Routes


async def _stream(db: DbSession) -> AsyncIterator[str]:
    yield "a"


async def _without_session() -> None: ...


async def _with_tasks(db: DbSession, tasks: BackgroundTasks) -> None: ...


async def _with_session(db: DbSession) -> None: ...


async def _with_second_session(
    db: DbSession, other: Annotated[AsyncSession, Depends(get_db, scope="function", use_cache=False)]
) -> None: ...


@pytest.mark.parametrize(
    ("endpoint", "options", "message"),
    [
        (_stream, {"response_model": None}, "streams its response"),
        (_with_session, {"response_class": StreamingResponse, "response_model": None}, "streams its response"),
        (_with_session, {"response_class": FileResponse, "response_model": None}, "streams its response"),
        (_with_tasks, {}, "can't have background tasks"),
        (_without_session, {}, "no DbSession"),
        (_with_second_session, {}, "use_cache=False"),
        (_with_session, {"dependencies": [note_key, note_key]}, "2 idempotency keys"),
    ],
)
async def test_a_route_whose_response_can_not_be_stored_is_rejected(
    database: Database, endpoint: Callable[..., Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        serve(database, endpoint, **options)


@pytest.mark.parametrize(
    ("make_response", "message"),
    [
        (lambda: StreamingResponse(iter(["a"])), "StreamingResponse can't be stored"),
        (lambda: Response("a", background=BackgroundTask(print)), "can't have background tasks"),
        (lambda: Response("a" * 1_048_577), "1048577 bytes"),
    ],
)
async def test_a_response_that_can_not_be_stored_is_an_error_that_rolls_back(
    stored: Database, make_response: Callable[[], Response], message: str
) -> None:
    async def endpoint(db: DbSession) -> Response:
        db.add(Note(text="a"))
        return make_response()

    app = serve(stored, endpoint, response_model=None)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        with pytest.raises((TypeError, ValueError), match=message):
            await post(client, path="/")
    assert (await count_notes(stored), await read_stored(stored)) == (0, [])


@pytest.mark.parametrize(
    ("endpoint", "route_class", "message"),
    [(_with_session, StrictJSONRoute, "route_class=IdempotentRoute"), (_without_session, IdempotentRoute, "no DbSess")],
)
async def test_the_dependencies_of_an_included_router_are_checked(
    stored: Database, endpoint: Callable[..., Any], route_class: type[Any], message: str
) -> None:
    router = APIRouter(route_class=route_class)
    router.post("/")(endpoint)

    async def include_and_post() -> None:
        """Older versions of FastAPI make the route when the router is included."""
        app = create_bare_app(stored)
        app.include_router(router, dependencies=[note_key])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            await post(client, path="/")

    with pytest.raises(TypeError, match=message):
        await include_and_post()


async def test_the_key_can_be_a_parameter_or_a_dependency_of_an_included_router(stored: Database) -> None:
    async def with_parameter(db: DbSession, key: Annotated[str | None, note_key]) -> str | None:
        db.add(Note(text="a"))
        return key

    async def create(db: DbSession) -> None:
        db.add(Note(text="b"))

    app = serve(stored, with_parameter, dependencies=[])
    router = APIRouter(route_class=IdempotentRoute)
    router.post("/included")(create)
    app.include_router(router, dependencies=[note_key])
    async with asgi_client(app) as client:
        assert [(await post(client, path="/")).json() for _ in range(2)] == ["k", "k"]
        assert [is_replay(await post(client, "other", "/included")) for _ in range(2)] == [False, True]
    assert await count_notes(stored) == 2


class _Outer(StrictJSONRoute, IdempotentRoute):
    """Strict JSON outside, idempotency inside. The application of the other tests has the other order."""


@pytest.mark.parametrize("is_outer", [True, False])
async def test_idempotent_routes_can_read_strict_json(
    client: httpx.AsyncClient, stored: Database, is_outer: bool
) -> None:
    async def endpoint(body: dict[str, str], db: DbSession) -> int:
        db.add(Note(text="a"))
        return len(body)

    router = APIRouter(route_class=_Outer)
    router.post("/notes", dependencies=[note_key])(endpoint)
    app = create_bare_app(stored)
    app.include_router(router)
    async with asgi_client(app) as outer:
        chosen = outer if is_outer else client
        headers = {"Content-Type": "application/json"}
        rejected = await post(chosen, json=None, content=b'{"text": "a", "text": "b"}', headers=headers)
        assert (rejected.status_code, rejected.json()["errors"][0]["type"]) == (422, "json_duplicate_name")
        assert [is_replay(await post(chosen)) for _ in range(2)] == [False, True]
    assert await count_notes(stored) == 1


class _Signed(APIRoute):
    """Reads the body before the other classes, and again after them, for example for its signature and for a log."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def read_and_handle(request: Request) -> Response:
            if "x-signature" in request.headers:
                await request.body()
            try:
                return await handle(request)
            except (RequestValidationError, ValueError):
                return Response(await request.body(), 422)

        return read_and_handle


class _SignedOutside(_Signed, IdempotentRoute, StrictJSONRoute): ...


class _SignedBetween(IdempotentRoute, _Signed, StrictJSONRoute): ...


class _SignedInside(StrictJSONRoute, IdempotentRoute, _Signed): ...


@pytest.mark.parametrize("route_class", [_SignedOutside, _SignedBetween, _SignedInside])
async def test_another_class_of_routes_can_read_the_body_before_and_after(
    stored: Database, route_class: type[APIRoute]
) -> None:
    async def endpoint(body: dict[str, int], db: DbSession) -> str:
        db.add(Note(text="a"))
        return "a" * 2_000_000 if "large" in body else ""

    router = APIRouter(route_class=route_class)
    router.post("/", dependencies=[note_key])(endpoint)
    app = create_bare_app(stored)
    app.include_router(router)
    async with asgi_client(app) as client, asyncio.timeout(10):
        for headers in ({}, {"X-Signature": "s"}):
            invalid = await post(client, "invalid", "/", json={"a": "x"}, headers=headers)
            assert (invalid.status_code, invalid.content) == (422, b'{"a":"x"}')
            for key in ("large", "large"):  # the error is raised after the effect; "outside" makes it a response
                rejected = await post(client, key, "/", json={"large": 1}, headers=headers)
                assert rejected.status_code == (422 if route_class is _SignedOutside else 500)
        signed = {"X-Signature": "s"}
        answers = [await post(client, path="/", json={"a": 1}, headers=each) for each in (signed, signed, {})]
        assert [(each.status_code, is_replay(each)) for each in answers] == [(200, False), (200, True), (200, True)]
        assert (await post(client, path="/", json={"a": 2}, headers=signed)).status_code == 422
    assert await count_notes(stored) == 1


async def test_openapi_describes_the_key_its_problems_and_the_replay(client: httpx.AsyncClient) -> None:
    operation = (await client.get("/openapi.json")).json()["paths"]["/notes"]["post"]
    (parameter,) = [each for each in operation["parameters"] if each["name"] == "Idempotency-Key"]
    assert "new key for each request" in parameter["description"]
    assert {"201", "400", "409", "422", "503"} <= operation["responses"].keys()
    assert "Idempotency-Replayed" in operation["responses"]["201"]["headers"]
    assert "Retry-After" in operation["responses"]["409"]["headers"]
    assert "headers" not in operation["responses"]["422"]


def test_a_limit_that_no_wait_can_have_is_rejected() -> None:
    for seconds in (0, -1, 3_000_000, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="max_wait_seconds"):
            idempotency_key(IdempotentRequest, scope=get_caller, max_wait_seconds=seconds)
