"""Errors on a WebSocket. A fake server checks that the messages are valid."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import orjson
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Response, WebSocket, WebSocketException
from fastapi.exceptions import RequestValidationError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.endpoints import WebSocketEndpoint
from starlette.routing import WebSocketRoute

from howdah import AsyncRepository, Database, InvalidCursor, NestedTransaction, NotFound, PoolExhausted
from howdah.fastapi import DbSession, get_database, get_db, problem_response
from howdah_tests.support.fastapi_apps import create_bare_app
from howdah_tests.support.sample_models import User


@dataclass
class Server:
    """A server that handles the messages of an application, and rejects the same ones as uvicorn."""

    has_denial: bool = True
    incoming: list[str | None] = field(default_factory=list)
    state: str = "connecting"
    denial: dict[str, Any] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)
    closed: tuple[int, str] | None = None
    raised: Exception | None = None

    async def run(self, app: Any, path: str = "/", query: bytes = b"") -> Server:
        scope = {
            "type": "websocket",
            "asgi": {"version": "3.0"},
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query,
            "headers": [],
            "state": {},
            "extensions": {"websocket.http.response": {}} if self.has_denial else {},
        }
        messages = iter([{"type": "websocket.connect"}, *map(_incoming, self.incoming)])

        async def receive() -> dict[str, Any]:
            return next(messages)

        async with asyncio.timeout(20):
            try:
                await app(scope, receive, self.send)
            except Exception as error:
                self.raised = error
        return self

    async def send(self, message: dict[str, Any]) -> None:
        match self.state, message["type"]:
            case "connecting", "websocket.accept":
                self.state = "accepted"
            case ("connecting" | "accepted") as state, "websocket.close":
                self.state = "closed"
                self.closed = (message["code"], message["reason"] or "") if state == "accepted" else (403, "")
                assert len(self.closed[1].encode()) <= 123
            case "connecting", "websocket.http.response.start" if self.has_denial:
                self.state = "denied"
                self.denial = {"status": message["status"], "headers": dict(message["headers"])}
            case "denied", "websocket.http.response.body":
                self.denial["body"] = self.denial.get("body", b"") + message["body"]
            case "accepted", "websocket.send":
                self.sent.append(message["text"])
            case state, kind:
                raise RuntimeError(f"unexpected message {kind} while {state}")


def _incoming(text: str | None) -> dict[str, Any]:
    if text is None:
        return {"type": "websocket.disconnect", "code": 1005}
    return {"type": "websocket.receive", "text": text}


def with_route(route: Any, database: Database | None = None) -> FastAPI:
    app = create_bare_app(database)
    app.add_api_websocket_route("/", route)
    return app


class Rejected(Exception):
    """An error with a handler of the application."""


ERRORS: list[tuple[Exception, int, str, int]] = [
    (NotFound(User, [1]), 404, "urn:howdah:problem:not-found", 1008),
    (InvalidCursor("damaged"), 400, "urn:howdah:problem:invalid-cursor", 1008),
    (PoolExhausted("none left"), 503, "urn:howdah:problem:pool-exhausted", 1013),
    (HTTPException(401, "who?"), 401, "urn:howdah:problem:unauthorized", 1008),
    (HTTPException(429), 429, "urn:howdah:problem:too-many-requests", 1013),
    (HTTPException(502), 502, "urn:howdah:problem:bad-gateway", 1011),
    (HTTPException(404, {"long": "x" * 500}), 404, "urn:howdah:problem:not-found", 1008),
    (RequestValidationError([]), 422, "urn:howdah:problem:validation", 1008),
    (
        Rejected(),
        409,
        "urn:howdah:problem:" + "é" * 52,
        1008,
    ),  # a reason has at most 123 bytes, so the type is truncated
]


def with_handler(app: FastAPI) -> FastAPI:
    @app.exception_handler(Rejected)
    async def handle(request: Any, error: Rejected) -> Response:
        return problem_response(409, "é" * 100)

    return app


@pytest.mark.parametrize(("error", "status", "reason", "code"), ERRORS, ids=lambda value: type(value).__name__)
async def test_an_error_closes_an_accepted_websocket(error: Exception, status: int, reason: str, code: int) -> None:
    async def fail(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")
        raise error

    seen = await Server().run(with_handler(with_route(fail)))
    assert (seen.sent, seen.closed, seen.raised) == (["hello"], (code, reason), None)


@pytest.mark.parametrize(("error", "status", "reason", "code"), ERRORS, ids=lambda value: type(value).__name__)
async def test_an_error_before_the_websocket_is_accepted_is_a_response(
    error: Exception, status: int, reason: str, code: int
) -> None:
    async def fail(websocket: WebSocket) -> None:
        raise error

    seen = await Server().run(with_handler(with_route(fail)))
    assert (seen.denial["status"], seen.raised) == (status, None)
    assert seen.denial["headers"][b"content-type"] == b"application/problem+json"
    assert orjson.loads(seen.denial["body"])["type"].startswith(reason)
    assert (b"retry-after" in seen.denial["headers"]) == (status in {429, 503})


async def test_without_the_denial_extension_the_response_is_403() -> None:
    async def fail(websocket: WebSocket) -> None:
        raise NotFound(User, [1])

    seen = await Server(has_denial=False).run(with_route(fail))
    assert (seen.closed, seen.raised) == ((403, ""), None)


@pytest.mark.parametrize("error", [ZeroDivisionError(), NestedTransaction("inside")])
async def test_an_internal_error_closes_with_1011_and_is_raised_to_the_server(error: Exception) -> None:
    async def fail(websocket: WebSocket) -> None:
        await websocket.accept()
        raise error

    seen = await Server().run(with_route(fail))
    assert seen.closed == (1011, "Internal Server Error")
    assert seen.raised is error


async def test_an_internal_error_before_acceptance_is_left_to_the_server() -> None:
    async def fail(websocket: WebSocket) -> None:
        raise ZeroDivisionError

    seen = await Server().run(with_route(fail))
    assert isinstance(seen.raised, ZeroDivisionError)
    assert (seen.closed, seen.denial) == (None, {})


async def test_control_without_the_middleware_an_accepted_websocket_receives_a_response() -> None:
    async def fail(websocket: WebSocket) -> None:
        await websocket.accept()
        raise NotFound(User, [1])

    app = with_route(fail)
    app.user_middleware.clear()
    seen = await Server().run(app)
    assert "unexpected message websocket.http.response.start while accepted" in str(seen.raised)


@pytest.mark.parametrize("closed_by", ["server", "client"])
async def test_an_error_on_a_closed_websocket_is_raised_to_the_server(closed_by: str) -> None:
    async def fail(websocket: WebSocket) -> None:
        await websocket.accept()
        if closed_by == "server":
            await websocket.close()
        else:
            async for _ in websocket.iter_text():
                pass
        raise NotFound(User, [1])

    seen = await Server(incoming=[None]).run(with_route(fail))
    assert isinstance(seen.raised, RuntimeError)
    assert isinstance(seen.raised.__context__, NotFound)


async def test_errors_of_endpoints_and_mounted_applications_close_the_websocket() -> None:
    class Endpoint(WebSocketEndpoint):
        async def on_connect(self, websocket: WebSocket) -> None:
            await websocket.accept()
            raise NotFound(User, [1])

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        raise NotFound(User, [1])

    inner = FastAPI()  # it has no handlers

    @inner.websocket("/route")
    async def fail(websocket: WebSocket) -> None:
        await websocket.accept()
        raise NotFound(User, [1])

    app = create_bare_app()
    app.router.routes.append(WebSocketRoute("/endpoint", Endpoint))
    app.mount("/raw", raw)
    app.mount("/inner", inner)
    for path in ("/endpoint", "/raw/", "/inner/route"):
        seen = await Server().run(app, path)
        assert (seen.closed, seen.raised) == ((1008, "urn:howdah:problem:not-found"), None), path


async def test_a_mounted_application_uses_its_own_handlers() -> None:
    async def fail(websocket: WebSocket) -> None:
        await websocket.accept()
        raise PoolExhausted("none left")

    app = create_bare_app()
    app.mount("/inner", with_route(fail))
    assert (await Server().run(app, "/inner/")).closed == (1013, "urn:howdah:problem:pool-exhausted")


async def test_invalid_parameters_are_the_same_problem_as_over_http() -> None:
    async def accept(websocket: WebSocket) -> None:
        await websocket.accept()

    app = create_bare_app()

    @app.websocket("/late", dependencies=[Depends(accept)])
    @app.websocket("/early")
    async def read(websocket: WebSocket, page: Annotated[int, Query()]) -> None: ...

    early = await Server().run(app, "/early", b"page=x")
    assert early.denial["status"] == 422
    assert orjson.loads(early.denial["body"])["errors"][0]["loc"] == ["query", "page"]
    late = await Server().run(app, "/late", b"page=x")
    assert (late.closed, late.raised) == ((1008, "urn:howdah:problem:validation"), None)


async def test_a_websocket_exception_keeps_its_code() -> None:
    async def fail(websocket: WebSocket) -> None:
        await websocket.accept()
        raise WebSocketException(4321, "own")

    assert (await Server().run(with_route(fail))).closed == (4321, "own")


# Sessions.


async def users_in(database: Database) -> int:
    async with database.session() as session:
        return await AsyncRepository(session, User).count()


async def test_a_session_of_a_websocket_commits_when_its_route_returns(committed_database: Database) -> None:
    seen_before_the_end: list[int] = []

    async def save(websocket: WebSocket, db: DbSession) -> None:
        await websocket.accept()
        async for name in websocket.iter_text():
            await AsyncRepository(db, User).create(email=f"{name}@x", name=name)
        seen_before_the_end.append(await users_in(committed_database))

    seen = await Server(incoming=["a", "b", None]).run(with_route(save, committed_database))
    assert seen.raised is None
    assert seen_before_the_end == [0]
    assert await users_in(committed_database) == 2


@pytest.mark.parametrize("how", ["error", "bug", "client"])
async def test_a_session_of_a_websocket_is_rolled_back(committed_database: Database, how: str) -> None:
    async def save(websocket: WebSocket, db: DbSession) -> None:
        await websocket.accept()
        await AsyncRepository(db, User).create(email="a@x", name="a")
        if how == "error":
            raise NotFound(User, [1])
        if how == "bug":
            raise ZeroDivisionError
        await websocket.receive_text()

    seen = await Server(incoming=[None]).run(with_route(save, committed_database))
    assert (
        seen.closed
        == {
            "error": (1008, "urn:howdah:problem:not-found"),
            "bug": (1011, "Internal Server Error"),
            "client": None,
        }[how]
    )
    assert committed_database.pool_status().in_use == 0
    assert await users_in(committed_database) == 0


async def test_a_commit_that_fails_closes_the_websocket(committed_database: Database) -> None:
    async with committed_database.begin() as session:
        await session.execute(
            text("ALTER TABLE users ADD CONSTRAINT one_nickname UNIQUE (nickname) DEFERRABLE INITIALLY DEFERRED")
        )

    async def save(websocket: WebSocket, db: DbSession) -> None:
        await websocket.accept()
        db.add_all([User(email=f"{n}@x", name="x", nickname="same") for n in range(2)])
        await db.flush()

    seen = await Server().run(with_route(save, committed_database))
    assert (seen.closed, seen.raised) == ((1008, "urn:howdah:problem:unique-violation"), None)


async def test_an_exhausted_pool_rejects_the_websocket_with_503(committed_url: str) -> None:
    async def read(websocket: WebSocket, db: DbSession) -> None:
        await db.execute(text("SELECT 1"))
        await websocket.accept()

    async with Database(committed_url, pool_size=1, max_overflow=0, pool_timeout=0.1) as database:
        async with database.engine.connect():
            seen = await Server().run(with_route(read, database))
        assert seen.denial["status"] == 503
        assert seen.denial["headers"][b"retry-after"] in {b"1", b"2", b"3"}


async def test_a_session_per_message_commits_each_message(committed_database: Database) -> None:
    counts: list[int] = []

    async def save(websocket: WebSocket, database: Annotated[Database, Depends(get_database)]) -> None:
        await websocket.accept()
        async for name in websocket.iter_text():
            async with database.begin() as session:
                await AsyncRepository(session, User).create(email=f"{name}@x", name=name)
            counts.append(await users_in(committed_database))

    await Server(incoming=["a", "b", None]).run(with_route(save, committed_database))
    assert counts == [1, 2]


@pytest.mark.parametrize("included", [False, True])
async def test_a_committing_session_of_a_websocket_must_have_function_scope(
    committed_database: Database, included: bool
) -> None:
    app, router = create_bare_app(committed_database), APIRouter()

    async def login(db: Annotated[AsyncSession, Depends(get_db)]) -> AsyncIterator[None]:
        yield

    @(router if included else app).websocket("/", dependencies=[] if included else [Depends(login)])
    async def read(websocket: WebSocket) -> None:
        await websocket.accept()

    if included:
        app.include_router(router, dependencies=[Depends(login)])
    seen = await Server().run(app)
    assert "scope='function'" in str(seen.raised)
