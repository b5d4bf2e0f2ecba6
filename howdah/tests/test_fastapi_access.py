"""Rules of routes: every route needs one, and it is checked before the body, other dependencies and replays."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, Response, WebSocket
from pydantic import BaseModel
from sqlalchemy import func, select
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from howdah import Database
from howdah.fastapi import (
    PUBLIC,
    BodyRows,
    DbSession,
    IdempotentRoute,
    StrictJSONRoute,
    add_error_handlers,
    allow,
    configure_app,
    idempotency_key,
    protect,
    require_principal_key,
)
from howdah.fastapi.route_rules import iterate_route_rules
from howdah.testing import open_client
from howdah_tests.support.idempotent_app import IdempotentRequest, Model, Note, NoteIn
from howdah_tests.support.principals import (
    CUSTOMER,
    OPERATOR,
    create_protected_app,
    sign_in,
    unreachable_database,
)

Customers = allow(CUSTOMER)


@asynccontextmanager
async def started(app: FastAPI, database: Database | None = None) -> AsyncIterator[httpx.AsyncClient]:
    async with database or unreachable_database() as opened, open_client(app, {"main": opened}) as client:
        yield client


async def start_error(app: FastAPI) -> str:
    with pytest.raises(RuntimeError) as caught:
        async with started(app):
            pass
    return str(caught.value)


async def answer(request: Any = None) -> Any:
    return PlainTextResponse("answered")


async def answer_websocket(websocket: WebSocket) -> None:
    await websocket.accept()


async def asgi_application(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("answered")(scope, receive, send)


def include(app: FastAPI, *, prefix: str = "/inner", **options: Any) -> APIRouter:
    """A router that is included twice over, before it has routes."""
    router, between = APIRouter(**options), APIRouter()
    between.include_router(router, prefix=prefix)
    app.include_router(between)
    return router


def add_frontend(app: FastAPI, **options: Any) -> None:
    router = APIRouter(**options)
    router.frontend("/front", directory=Path(__file__).parent, check_dir=False)
    app.include_router(router)


def mount_unconfigured(app: FastAPI, **options: Any) -> None:
    inner = FastAPI()
    inner.add_api_route("/route", answer, **options)
    app.mount("/inner", inner)


WITHOUT_RULE: dict[str, tuple[Callable[[FastAPI], Any], str]] = {
    "a route": (lambda app: app.get("/route")(answer), "GET /route: no rule"),
    "a route of several methods": (
        lambda app: app.api_route("/route", methods=["PUT", "DELETE"])(answer),
        "DELETE,PUT /route: no rule",
    ),
    "an included route": (lambda app: include(app).get("/route")(answer), "GET /inner/route: no rule"),
    "a hidden route": (lambda app: app.get("/route", include_in_schema=False)(answer), "GET /route: no rule"),
    "a websocket": (lambda app: app.websocket("/ws")(answer_websocket), "WEBSOCKET /ws: no rule"),
    "an included websocket": (lambda app: include(app).websocket("/ws")(answer_websocket), "WEBSOCKET /inner/ws: no"),
    "a route of Starlette": (lambda app: app.add_route("/plain", answer), "GET /plain: no rule"),
    "an included route of Starlette": (lambda app: include(app).add_route("/p", answer), "GET /inner/p: no rule"),
    "a websocket of Starlette": (
        lambda app: app.router.routes.append(WebSocketRoute("/ws", answer_websocket)),
        "WEBSOCKET /ws: no rule",
    ),
    "static files": (lambda app: app.mount("/static", StaticFiles(directory=".")), "* /static/*: no rule"),
    "a host": (lambda app: app.host("x.test", asgi_application), "* /*: no rule"),
    "a mounted application": (mount_unconfigured, "GET /inner/route: no rule"),
    "a route in a mounted router": (
        lambda app: app.mount("/inner", Starlette(routes=[Mount("/a", routes=[Route("/b", answer)])])),
        "GET /inner/a/b: no rule",
    ),
    "a mounted function": (lambda app: app.mount("/inner", asgi_application), "* /inner/*: no rule"),
    "a frontend": (add_frontend, "* /front/*: no rule"),
}


@pytest.mark.parametrize("name", WITHOUT_RULE)
async def test_an_application_does_not_start_if_a_route_has_no_rule(name: str) -> None:
    add, expected = WITHOUT_RULE[name]
    message = await start_error(create_protected_app(add))
    assert f"\n- {expected}" in message
    assert message.count("\n- ") == 1
    assert "dependencies=[allow(<role>, ...)]" in message


WITH_RULE: dict[str, Callable[[FastAPI], Any]] = {
    "a route": lambda app: app.get("/route", dependencies=[Customers])(answer),
    "a parameter": lambda app: app.get("/route")(_with_parameter),
    "an included route": lambda app: include(app).get("/route", dependencies=[Customers])(answer),
    "an included router": lambda app: include(app, dependencies=[Customers]).get("/route")(answer),
    "the same rule twice": lambda app: include(app, dependencies=[Customers]).get("/route", dependencies=[Customers])(
        answer
    ),
    "a websocket": lambda app: app.websocket("/ws", dependencies=[Customers])(answer_websocket),
    "an included websocket": lambda app: include(app, dependencies=[Customers]).websocket("/ws")(answer_websocket),
    "a route of Starlette": lambda app: app.add_route("/plain", protect(answer, Customers)),
    "an included route of Starlette": lambda app: include(app).add_route("/plain", protect(answer, Customers)),
    "a websocket of Starlette": lambda app: app.router.routes.append(
        WebSocketRoute("/ws", protect(answer_websocket, Customers))
    ),
    "static files": lambda app: app.mount("/static", protect(StaticFiles(directory="."), PUBLIC)),
    "a mounted application": lambda app: mount_unconfigured(app, dependencies=[Customers]),
    "a protected mounted application": lambda app: app.mount("/inner", protect(FastAPI(), Customers)),
    "a mounted function": lambda app: app.mount("/inner", protect(asgi_application, Customers)),
    "a frontend": lambda app: add_frontend(app, dependencies=[PUBLIC]),
}


async def _with_parameter(_: Any = Customers) -> None: ...


@pytest.mark.parametrize("name", WITH_RULE)
async def test_an_application_starts_if_every_route_has_a_rule(name: str) -> None:
    async with started(create_protected_app(WITH_RULE[name])) as client:
        assert (await client.get("/healthz")).status_code == 200


async def test_an_application_does_not_start_if_a_route_has_two_rules() -> None:
    app = create_protected_app()
    include(app, dependencies=[PUBLIC]).get("/route", dependencies=[allow(OPERATOR, scope="a:b")])(answer)
    message = await start_error(app)
    assert message.endswith("\n- GET /inner/route: PUBLIC and allow('operator', scope='a:b')")


async def test_the_list_of_routes_without_rule_is_bounded() -> None:
    def add_many(app: FastAPI) -> None:
        for n in range(25):
            app.get(f"/routes/{n}")(answer)

    message = await start_error(create_protected_app(add_many))
    assert message.count("\n- ") == 21
    assert message.endswith("\n- and 5 more")


async def test_without_a_startup_the_first_request_checks_the_rules() -> None:
    app = create_protected_app(lambda app: app.get("/route")(answer))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/route", headers=sign_in(CUSTOMER))).status_code == 500
        assert (await client.get("/healthz")).status_code == 500


@pytest.mark.parametrize("is_included", [False, True])
async def test_a_route_that_is_added_later_needs_a_rule(is_included: bool) -> None:
    app = create_protected_app()
    router = include(app) if is_included else app.router
    router.get("/first", dependencies=[PUBLIC])(answer)
    path = "/inner/later" if is_included else "/later"
    async with started(app) as client:
        router.get("/later", dependencies=[Customers])(answer)
        assert (await client.get(path)).status_code == 401
        router.get("/other")(answer)
        assert (await client.get(path, headers=sign_in(CUSTOMER))).status_code == 500


async def test_a_mounted_application_with_authenticate_checks_its_own_routes() -> None:
    inner = create_protected_app(lambda app: app.get("/route")(answer))
    outer = create_protected_app()
    outer.mount("/inner", inner)
    assert (await start_error(outer)).endswith("\n- GET /route: no rule")


# --- the check of a rule --------------------------------------------------------------------------------------------


async def test_roles_and_scopes() -> None:
    def add(app: FastAPI) -> None:
        app.get("/scoped", dependencies=[allow(CUSTOMER, OPERATOR, scope="orders:read")])(answer)
        app.get("/unscoped", dependencies=[Customers])(answer)

    async with started(create_protected_app(add)) as client:

        async def get(path: str, headers: dict[str, str]) -> httpx.Response:
            return await client.get(path, headers=headers)

        assert (await get("/scoped", sign_in(CUSTOMER))).status_code == 200
        assert (await get("/scoped", sign_in(OPERATOR, "a", "other", "orders:read"))).status_code == 200
        rejected = await get("/scoped", sign_in(CUSTOMER, "a", "orders:write", "orders:read:x"))
        assert (rejected.status_code, rejected.json()["type"]) == (403, "urn:howdah:problem:not-allowed")
        assert rejected.headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="orders:read"'
        other_role = await get("/unscoped", sign_in(OPERATOR))
        assert (other_role.status_code, other_role.json()["detail"]) == (403, "the role operator may not do this")
        assert "www-authenticate" not in other_role.headers
        with_key = await get("/unscoped", sign_in(CUSTOMER, "a", "orders:read"))
        assert with_key.json()["detail"] == "an API key with scopes may not do this: sign in"


def test_a_rule_needs_a_role() -> None:
    with pytest.raises(ValueError, match="use PUBLIC"):
        allow()
    with pytest.raises(TypeError, match="must be PUBLIC or the result of allow"):
        protect(answer, "customer")


async def test_every_kind_of_route_is_protected() -> None:
    class Endpoint(HTTPEndpoint):
        async def get(self, request: Request) -> Response:
            return PlainTextResponse("answered")

    def answer_synchronously(request: Request) -> Response:
        return PlainTextResponse("answered")

    configured = FastAPI()
    configure_app(configured, database=unreachable_database)
    configured.get("/route", dependencies=[Customers])(answer)
    whole = FastAPI()
    configure_app(whole, database=unreachable_database)
    whole.get("/route")(answer)

    def add(app: FastAPI) -> None:
        app.get("/route", dependencies=[Customers])(answer)
        include(app, dependencies=[Customers]).get("/route")(answer)
        include(app, prefix="/two").add_route("/plain", protect(answer, Customers))
        app.add_route("/plain", protect(answer_synchronously, Customers))
        app.router.routes.append(Route("/class", protect(Endpoint, Customers)))
        app.mount("/function", protect(asgi_application, Customers))
        app.mount("/static", protect(StaticFiles(directory=Path(__file__).parent), Customers))
        app.mount("/configured", configured)
        app.mount("/whole", protect(whole, Customers))
        app.mount("/starlette", Starlette(routes=[Route("/plain", protect(answer, Customers))]))
        app.router.routes.append(Host("x.test", app=protect(asgi_application, Customers)))

    name = Path(__file__).name
    paths = [
        *("/route", "/inner/route", "/two/plain", "/plain", "/class", "/function/any", f"/static/{name}"),
        *("/configured/route", "/whole/route", "/starlette/plain"),
    ]
    async with started(create_protected_app(add)) as client:
        for path in paths:
            assert (await client.get(path)).status_code == 401, path
            assert (await client.head(path)).status_code == 401, path
            assert (await client.get(path, headers=sign_in(OPERATOR))).status_code == 403, path
            allowed = await client.get(path, headers=sign_in(CUSTOMER))
            assert allowed.status_code == 200, path
        assert (await client.get("http://x.test/any")).status_code == 401
        assert (await client.get("/configured/healthz")).status_code == 200
        # a method without a route needs no credentials, as an unknown path
        assert (await client.delete("/route")).status_code == 405
        assert (await client.delete("/inner/route")).status_code == 405


async def test_a_frontend_is_protected(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("page")

    def add(app: FastAPI) -> None:
        router = APIRouter(dependencies=[Customers])
        router.frontend("/front", directory=tmp_path)
        app.include_router(router)

    async with started(create_protected_app(add)) as client:
        assert (await client.get("/front/index.html")).status_code == 401
        assert (await client.get("/front/index.html", headers=sign_in(CUSTOMER))).text == "page"


@pytest.mark.parametrize("is_included", [False, True])
async def test_a_websocket_is_protected(is_included: bool) -> None:
    app = create_protected_app()
    (include(app, prefix="/ws") if is_included else app.router).websocket(
        "/ws" if not is_included else "", dependencies=[Customers]
    )(answer_websocket)
    app.router.routes.append(WebSocketRoute("/plain", protect(answer_websocket, Customers)))
    async with started(app):
        for path in ("/ws", "/plain"):
            assert await open_websocket(app, path, {}) == 401
            assert await open_websocket(app, path, sign_in("wrong")) == 401
            assert await open_websocket(app, path, sign_in(OPERATOR)) == 403
            assert await open_websocket(app, path, sign_in(CUSTOMER)) == 101


async def test_a_server_without_denial_responses_closes_the_websocket() -> None:
    app = create_protected_app(lambda app: app.websocket("/ws", dependencies=[Customers])(answer_websocket))
    async with started(app):
        for headers in ({}, sign_in("wrong"), sign_in(OPERATOR)):
            assert await open_websocket(app, "/ws", headers, has_denial=False) == 1008


async def open_websocket(app: FastAPI, path: str, headers: dict[str, str], *, has_denial: bool = True) -> int:
    """The status of the response to the handshake: 101 if it was accepted. Without denial, the close code."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": path,
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "extensions": {"websocket.http.response": {}} if has_denial else {},
        "state": {},
    }
    await app(scope, receive, send)
    first = sent[0]
    return 101 if first["type"] == "websocket.accept" else int(first.get("status") or first["code"])


# --- the order --------------------------------------------------------------------------------------------------------


class Body(BaseModel):
    n: int


def fail() -> None:
    pytest.fail("a dependency was called before the rule")


def add_routes_with_bodies(router: APIRouter) -> None:
    before = [Depends(fail), Customers]

    @router.post("/json", dependencies=before)
    async def post_json(body: Body) -> None: ...

    @router.post("/rows", dependencies=before)
    async def post_rows(request: Request) -> None:
        async for _ in BodyRows(request, Body):
            ...

    @router.post("/keyed", dependencies=[key, *before])
    async def post_keyed(body: Body, db: DbSession) -> None: ...

    @router.get("/query", dependencies=before)
    async def get_query(n: int) -> None: ...


key = idempotency_key(IdempotentRequest, scope=require_principal_key)


class StrictIdempotent(IdempotentRoute, StrictJSONRoute):
    pass


class OtherOrder(StrictJSONRoute, IdempotentRoute):
    pass


@pytest.mark.parametrize("route_class", [IdempotentRoute, StrictIdempotent, OtherOrder])
@pytest.mark.parametrize("is_included", [False, True])
async def test_a_rule_is_checked_before_the_body_and_other_dependencies(
    route_class: type[IdempotentRoute], is_included: bool
) -> None:
    app = create_protected_app()
    if is_included:
        router = include(app, prefix="", route_class=route_class)
    else:
        app.router.route_class = route_class
        router = app.router
    add_routes_with_bodies(router)

    async def body() -> AsyncIterator[bytes]:
        pytest.fail("the body was read")
        yield b""

    async with started(app) as client:
        for path in ("/json", "/rows", "/keyed"):
            for headers, expected in (({}, 401), (sign_in(OPERATOR), 403)):
                sent = await client.post(
                    f"{path}?n=1&n=2",
                    content=body(),
                    headers={"Content-Type": "application/json", "Idempotency-Key": "k", **headers},
                )
                assert sent.status_code == expected, path
        assert (await client.get("/query?n=1&n=2&n=x")).status_code == 401


async def test_a_replay_is_checked(committed_url: str) -> None:
    app = create_protected_app()
    router = APIRouter(route_class=IdempotentRoute)

    @router.post("/notes", dependencies=[key, Customers])
    async def create_note(body: NoteIn, db: DbSession) -> str:
        db.add(Note(text=body.text))
        return body.text

    app.include_router(router)
    async with Database(committed_url) as database:
        async with database.begin() as session:
            await (await session.connection()).run_sync(Model.metadata.create_all)
        async with started(app, database) as client:

            async def post(headers: dict[str, str]) -> httpx.Response:
                return await client.post("/notes", json={"text": "x"}, headers={"Idempotency-Key": "k", **headers})

            assert (await post(sign_in(CUSTOMER))).status_code == 200
            replay = await post(sign_in(CUSTOMER))
            assert replay.headers["idempotency-replayed"] == "true"
            # the same principal in another role, and without credentials
            assert (await post(sign_in(OPERATOR))).status_code == 403
            assert (await post({})).status_code == 401
            assert (await post(sign_in(CUSTOMER, "b"))).headers.get("idempotency-replayed") is None
    async with Database(committed_url) as database, database.session() as session:
        assert await session.scalar(select(func.count()).select_from(Note)) == 2


async def test_a_rule_runs_once_for_each_request() -> None:
    rule = allow(CUSTOMER)
    checks: list[Any] = []
    check = rule.dependency.check

    def count(principal: Any) -> None:
        checks.append(principal)
        check(principal)

    async def answer_parameter(_: Any = rule) -> None: ...

    rule.dependency.check = count

    def add(app: FastAPI) -> None:
        app.get("/", dependencies=[rule])(answer)
        app.get("/parameter")(answer_parameter)

    app = create_protected_app(add)
    rules = {str(each): each.rules for each in iterate_route_rules(app)}
    description = {**app.openapi()}
    async with started(app) as client:
        for path in ("/", "/parameter"):
            for _ in range(3):
                checks.clear()
                assert (await client.get(path, headers=sign_in(CUSTOMER))).status_code == 200
                assert len(checks) == 1
                assert (await client.get(path)).status_code == 401
    assert {str(each): each.rules for each in iterate_route_rules(app)} == rules
    app.openapi_schema = None
    assert app.openapi() == description


async def test_a_rule_is_also_checked_without_the_layer() -> None:
    app = FastAPI()
    add_error_handlers(app)
    app.get("/", dependencies=[Customers])(answer)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/")).status_code == 401


async def test_each_inclusion_of_a_router_has_its_own_rule() -> None:
    router = APIRouter()
    router.get("/route")(answer)

    def add(app: FastAPI) -> None:
        app.include_router(router, prefix="/a", dependencies=[Customers])
        app.include_router(router, prefix="/b", dependencies=[allow(OPERATOR)])
        app.include_router(router, prefix="/c", dependencies=[PUBLIC])

    async with started(create_protected_app(add)) as client:
        for _ in range(3):
            found = {
                (path, role): (await client.get(f"{path}/route", headers=headers)).status_code
                for path in ("/a", "/b", "/c")
                for role, headers in (("customer", sign_in(CUSTOMER)), ("operator", sign_in(OPERATOR)), ("none", {}))
            }
            assert [*found.values()] == [200, 403, 401, 403, 200, 401, 200, 200, 200]


async def test_a_test_can_override_a_rule() -> None:
    rule = allow(OPERATOR)
    calls: list[int] = []
    app = create_protected_app(lambda app: include(app, dependencies=[rule]).get("/route")(answer))
    async with started(app) as client:
        for _ in range(3):
            assert (await client.get("/inner/route")).status_code == 401
            app.dependency_overrides[rule.dependency] = lambda: calls.append(1)
            for _ in range(2):
                assert (await client.get("/inner/route")).status_code == 200
            app.dependency_overrides.clear()
    assert len(calls) == 6


def test_the_list_of_rules_has_every_route() -> None:
    def add(app: FastAPI) -> None:
        include(app, dependencies=[Customers]).get("/route")(answer)
        app.mount("/static", protect(StaticFiles(directory="."), PUBLIC))

    found = {str(each): [*map(repr, each.rules)] for each in iterate_route_rules(create_protected_app(add))}
    assert found["GET /inner/route"] == ["allow('customer')"]
    assert found["* /static/*"] == ["PUBLIC"]
    assert found["GET /healthz"] == ["PUBLIC"]
