"""Authentication: what happens before a body is read and before a route is chosen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated, Any

import httpx
import pytest
import structlog
from fastapi import Depends, FastAPI, Request
from sqlalchemy import text
from starlette.requests import HTTPConnection
from structlog.testing import capture_logs

from howdah import Database
from howdah.fastapi import (
    PUBLIC,
    Authenticate,
    DbSession,
    Resource,
    allow,
    configure_app,
    database_from_state,
    find_principal,
    require_principal,
    require_principal_key,
)
from howdah.testing import open_client
from howdah_tests.support.principals import (
    CUSTOMER,
    OPERATOR,
    WRONG,
    Caller,
    authenticate,
    create_protected_app,
    sign_in,
    unreachable_database,
)
from howdah_tests.support.served_apps import PROTOCOLS, served


@asynccontextmanager
async def started(app: FastAPI, database: Database | None = None) -> AsyncIterator[httpx.AsyncClient]:
    async with database or unreachable_database() as opened, open_client(app, {"main": opened}) as client:
        yield client


def add_routes(app: FastAPI) -> None:
    @app.get("/me", dependencies=[allow(CUSTOMER)])
    async def read_me(request: Request) -> str:
        key: str = find_principal(request).key
        return key

    @app.post("/me", dependencies=[allow(CUSTOMER)])
    async def post_me(body: dict[str, int]) -> None: ...

    @app.get("/public", dependencies=[PUBLIC])
    async def read_public(request: Request) -> str | None:
        principal = find_principal(request)
        return None if principal is None else str(principal.key)


@pytest.fixture
async def protected() -> AsyncIterator[httpx.AsyncClient]:
    async with started(create_protected_app(add_routes)) as client:
        yield client


async def test_a_route_gets_the_principal(protected: httpx.AsyncClient) -> None:
    assert (await protected.get("/me", headers=sign_in(CUSTOMER, "ann"))).json() == "user:ann"
    assert (await protected.get("/public", headers=sign_in(OPERATOR, "bob"))).json() == "user:bob"
    assert (await protected.get("/public")).json() is None


async def test_missing_and_wrong_credentials_get_different_challenges(protected: httpx.AsyncClient) -> None:
    missing = await protected.get("/me")
    assert (missing.status_code, missing.headers["www-authenticate"]) == (401, "Bearer")
    assert missing.headers["content-type"] == "application/problem+json"
    assert missing.json()["type"] == "urn:howdah:problem:not-authenticated"
    wrong = await protected.get("/me", headers=WRONG)
    assert (wrong.status_code, wrong.headers["www-authenticate"]) == (401, 'Bearer error="invalid_token"')
    assert wrong.json()["detail"] == "the access token is invalid"


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        *(("GET", "/unknown", 404), ("DELETE", "/me", 405), ("OPTIONS", "/me", 204), ("HEAD", "/me", 401)),
        *(("HEAD", "/public", 200), ("GET", "/docs", 200), ("GET", "/openapi.json", 200), ("GET", "/healthz", 200)),
        *(("GET", "/metrics", 200), ("GET", "/docs/files/start.js", 200), ("OPTIONS", "/unknown", 404)),
    ],
)
async def test_answers_without_credentials(protected: httpx.AsyncClient, method: str, path: str, expected: int) -> None:
    assert (await protected.request(method, path)).status_code == expected


@pytest.mark.parametrize("path", ["/me", "/public", "/unknown"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "OPTIONS"])
async def test_wrong_credentials_are_rejected_everywhere(protected: httpx.AsyncClient, method: str, path: str) -> None:
    # a method that a path doesn't have is rejected before the authentication
    is_unsupported = (method, path) in {("DELETE", "/me"), ("POST", "/public"), ("DELETE", "/public")}
    response = await protected.request(method, path, headers=WRONG)
    assert response.status_code == (405 if is_unsupported else 401)


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/healthz", "/metrics"])
async def test_probes_metrics_and_docs_are_never_authenticated(path: str) -> None:
    async def fail(connection: HTTPConnection) -> None:
        raise AssertionError

    async with started(create_protected_app(authenticate=fail)) as client:
        assert (await client.get(path, headers=WRONG)).status_code == 200
        assert (await client.get("/other")).status_code == 500  # the control: it is called for other paths


async def test_own_pages_with_the_paths_of_omitted_ones_are_authenticated() -> None:
    def add_own(app: FastAPI) -> None:
        @app.get("/metrics", dependencies=[allow(CUSTOMER)])
        async def read_metrics() -> None: ...

    async with started(create_protected_app(add_own, metrics=False)) as client:
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/metrics", headers=sign_in(CUSTOMER))).status_code == 200


async def test_the_body_of_a_rejected_request_is_not_read(protected: httpx.AsyncClient) -> None:
    async def body() -> AsyncIterator[bytes]:
        pytest.fail("the body was read")
        yield b""

    for headers, expected in (({}, 401), (WRONG, 401), (sign_in(OPERATOR), 403)):
        sent = await protected.post("/me", content=body(), headers={"Content-Type": "application/json", **headers})
        assert sent.status_code == expected


async def test_an_unavailable_database_is_a_503_and_is_logged() -> None:
    async def read_key(connection: HTTPConnection) -> None:
        async with database_from_state(connection).session(read_only=True) as db:
            await db.execute(text("SELECT 1"))

    with capture_logs() as entries:
        async with started(create_protected_app(add_routes, authenticate=read_key)) as client:
            answer = await client.get("/public")
            metrics = (await client.get("/metrics")).text
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:howdah:problem:connection-failed")
    assert 1 <= int(answer.headers["retry-after"]) <= 3
    assert [each["status"] for each in entries if each["event"] == "request" and each["path"] == "/public"] == [503]
    assert 'status="503"' in metrics


async def test_an_authentication_that_hangs_is_a_503(caplog: pytest.LogCaptureFixture) -> None:
    async def hang(connection: HTTPConnection) -> None:
        await asyncio.Event().wait()

    app = create_protected_app(add_routes, authenticate=hang, authenticate_timeout=0.01)
    with caplog.at_level(logging.WARNING, "howdah.authentication"):
        async with started(app) as client:
            answer = await client.get("/public")
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:howdah:problem:authentication-timeout")
    assert "retry-after" in answer.headers
    assert "0.01 s" in caplog.text


async def test_a_timeout_inside_of_authenticate_is_not_the_limit() -> None:
    async def fail(connection: HTTPConnection) -> None:
        await asyncio.sleep(0)
        raise TimeoutError("of another service")

    async with started(create_protected_app(add_routes, authenticate=fail)) as client:
        answer = await client.get("/public")
    assert (answer.status_code, answer.json()["type"]) == (500, "urn:howdah:problem:internal-error")


async def test_a_bug_of_authenticate_is_a_logged_500() -> None:
    async def fail(connection: HTTPConnection) -> None:
        raise KeyError("secret-token")

    with capture_logs() as entries:
        async with started(create_protected_app(add_routes, authenticate=fail)) as client:
            answer = await client.get("/public")
    assert (answer.status_code, answer.json()["type"]) == (500, "urn:howdah:problem:internal-error")
    assert "secret-token" not in answer.text
    assert any(each["event"] == "unexpected error" for each in entries)


async def test_errors_of_authenticate_reach_the_handlers_of_the_application() -> None:
    class Blocked(Exception):
        pass

    async def fail(connection: HTTPConnection) -> None:
        raise Blocked

    def add_handler(app: FastAPI) -> None:
        from howdah.fastapi import problem_response

        async def handle(request: Request, error: Exception) -> Any:
            return problem_response(403, "blocked")

        app.add_exception_handler(Blocked, handle)

    async with started(create_protected_app(add_handler, authenticate=fail)) as client:
        assert (await client.get("/any")).json()["type"] == "urn:howdah:problem:blocked"


async def test_authentication_holds_no_connection_during_the_request(database_url: str) -> None:
    counts: list[int] = []
    users = Resource("users", asynccontextmanager(_open_nothing))

    async def read_user(connection: HTTPConnection) -> Caller:
        database = database_from_state(connection)
        async with database.session(read_only=True) as db:
            await db.execute(text("SELECT 1"))
            counts.append(database.pool_status().in_use)
        assert await users(connection) == "opened"  # a resource can be used, too
        return Caller(CUSTOMER, "ann")

    def add_counting(app: FastAPI) -> None:
        @app.get("/count", dependencies=[allow(CUSTOMER)])
        async def count(request: Request) -> None:
            counts.append(database_from_state(request).pool_status().in_use)

        @app.get("/session", dependencies=[allow(CUSTOMER)])
        async def use_session(db: DbSession) -> None:
            await db.execute(text("SELECT 1"))

    app = create_protected_app(add_counting, authenticate=read_user, resources=[users])
    async with started(app, Database(database_url, pool_size=1, max_overflow=0)) as client:
        assert (await client.get("/count")).status_code == 200
        assert (await client.get("/session")).status_code == 200
    assert counts == [1, 0, 1]


async def _open_nothing(database: Database) -> AsyncIterator[str]:
    yield "opened"


def merge_variables(*arguments: Any) -> Any:
    return structlog.contextvars.merge_contextvars(*arguments)


async def test_log_entries_have_the_principal() -> None:
    def add_logging(app: FastAPI) -> None:
        @app.get("/log", dependencies=[PUBLIC])
        async def log() -> None:
            structlog.get_logger("test").info("inside")

    with capture_logs(processors=[merge_variables]) as entries:
        async with started(create_protected_app(add_logging)) as client:
            await client.get("/log", headers=sign_in(CUSTOMER, "ann"))
            await client.get("/log")
    found = [(each["event"], each.get("principal")) for each in entries if each["event"] in ("inside", "request")]
    assert found == [("inside", "user:ann"), ("request", "user:ann"), ("inside", None), ("request", None)]


async def test_a_pipelined_request_has_no_principal_of_the_request_before_it() -> None:
    app = create_protected_app()
    with capture_logs(processors=[merge_variables]) as entries:
        async with served(app, PROTOCOLS["serving"]) as running, running.client() as client:
            client.send("GET", "/first", headers=f"Authorization: {sign_in(CUSTOMER, 'ann')['Authorization']}\r\n")
            client.send("GET", "/second")
            assert [(await client.read()).status for _ in range(2)] == [404, 404]
    found = [(each["path"], each.get("principal")) for each in entries if each["event"] == "request"]
    assert found == [("/first", "user:ann"), ("/second", None)]


def mount_application(authenticate_inner: Authenticate) -> FastAPI:
    """An application in which another one, with its own `authenticate`, is mounted at `/inner`."""
    inner = create_protected_app(authenticate=authenticate_inner)

    @inner.get("/who", dependencies=[allow(OPERATOR)])
    async def read_who(request: Request) -> str:
        key: str = find_principal(request).key
        return key

    outer = create_protected_app(add_routes)
    outer.mount("/inner", inner)
    return outer


async def test_a_mounted_application_has_its_own_principal() -> None:
    async def authenticate_inner(connection: HTTPConnection) -> Caller | None:
        return Caller(OPERATOR, "inner") if "x-inner" in connection.headers else None

    async with started(mount_application(authenticate_inner)) as client:
        assert (await client.get("/inner/who", headers={"x-inner": "1"})).json() == "user:inner"
        # the principal of the outer application isn't one of the inner application
        assert (await client.get("/inner/who", headers=sign_in(OPERATOR))).status_code == 401
        assert (await client.get("/inner/healthz", headers={"x-inner": "1"})).status_code == 200
        assert (await client.get("/inner/who", headers=WRONG)).status_code == 401


async def test_a_mounted_application_can_use_the_principal_of_the_outer_one() -> None:
    async def authenticate_inner(connection: HTTPConnection) -> Caller | None:
        caller: Caller | None = find_principal(connection)
        return None if caller is None else Caller(OPERATOR, f"inner-{caller.name}")

    async with started(mount_application(authenticate_inner)) as client:
        assert (await client.get("/inner/who", headers=sign_in(CUSTOMER))).json() == "user:inner-a"
        assert (await client.get("/inner/who")).status_code == 401


async def test_an_object_can_authenticate() -> None:
    class Authenticator:
        async def __call__(self, connection: HTTPConnection) -> Caller | None:
            return await authenticate(connection)

    async with started(create_protected_app(add_routes, authenticate=Authenticator())) as client:
        assert (await client.get("/me", headers=sign_in(CUSTOMER))).status_code == 200


async def test_an_application_without_authenticate_has_no_principal() -> None:
    app = FastAPI()
    configure_app(app, database=unreachable_database)

    @app.get("/")
    async def read(request: Request) -> bool:
        return find_principal(request) is None

    @app.get("/protected", dependencies=[allow(CUSTOMER)])
    async def read_protected() -> None: ...

    async with started(app) as client:
        assert (await client.get("/", headers=WRONG)).json() is True
        assert (await client.get("/protected")).status_code == 401


async def test_a_route_with_the_rule_public_can_require_a_principal() -> None:
    def add_dependent(app: FastAPI) -> None:
        @app.get("/me", dependencies=[PUBLIC])
        async def read_me(
            principal: Annotated[Caller, Depends(require_principal)],
            key: Annotated[str, Depends(require_principal_key)],
        ) -> list[str]:
            return [principal.name, key]

    async with started(create_protected_app(add_dependent)) as client:
        missing = await client.get("/me")
        assert (missing.status_code, missing.headers["www-authenticate"]) == (401, "Bearer")
        assert (await client.get("/me", headers=sign_in(CUSTOMER, "ann"))).json() == ["ann", "user:ann"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_client_that_waits_with_its_body_does_not_send_it(protocol: str) -> None:
    # RFC 9110, section 10.1.1: a client with `Expect: 100-continue` sends the body when it is asked to
    wait = "Expect: 100-continue\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n"
    async with served(create_protected_app(add_routes), PROTOCOLS[protocol]) as app:
        for credentials, expected in (
            ({}, 401),
            (WRONG, 401),
            (sign_in(OPERATOR), 403),
            (sign_in(CUSTOMER), 100),  # the control
        ):
            headers = "".join(f"{name}: {value}\r\n" for name, value in credentials.items())
            async with app.client() as client:
                client.send("POST", "/me", headers=headers + wait)
                if expected == HTTPStatus.CONTINUE:
                    assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
                else:
                    assert (await client.read()).status == expected
