"""The index of routes finds the same route as FastAPI's router, for any table of routes and any path."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request, Response
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route
from starlette.types import Scope

from howdah.fastapi._route_index import RouteIndex
from howdah.fastapi._routes import iterate_all_routes

Found = tuple[str, dict[str, Any]]
"""The name of an endpoint, and the parameters of the path."""

Table = list[tuple[str, str, frozenset[str]]]
"""The kind, the path and the methods of each route, in their order."""

SEGMENTS: Final = (*("a", "b", "{x}") * 4, "{y}", "a.{x}", "{x:int}", "{x:path}", "1", "")
KINDS: Final = (*["route"] * 3, "included", "nested", "starlette", "mount", "websocket", "host", "own matches")
METHODS: Final = (frozenset({"GET"}), frozenset({"GET"}), frozenset({"POST"}), frozenset({"GET", "POST"}))

PATHS: Final = st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
TABLES: Final = st.lists(st.tuples(st.sampled_from(KINDS), PATHS, st.sampled_from(METHODS)), min_size=1, max_size=7)
REQUESTED: Final = st.lists(
    st.sampled_from([*["a", "b", "x"] * 4, "1", "", "a.x", "a\n", "\n", "a.", "é", "b\r"]), min_size=1, max_size=3
).map(lambda parts: "/" + "/".join(parts))


class MatchesHost(Route):
    """A route that decides by a header whether it matches. Its path doesn't matter."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return (Match.FULL, {"path_params": {}}) if scope["headers"] else (Match.NONE, {})


def build_app(table: Table) -> FastAPI:
    app = FastAPI(openapi_url=None)
    for number, (kind, path, methods) in enumerate(table):
        if path.count("{x") > 1 or path.count("{y") > 1:
            continue  # two parameters can't have the same name
        add_route(app, kind, path, methods, build_endpoint(f"{number}"))
    return app


def build_endpoint(name: str) -> Callable[..., Coroutine[Any, Any, Response]]:
    async def endpoint(request: Request) -> Response:
        request.scope["found"] = name, request.path_params
        return Response()

    endpoint.__name__ = name
    return endpoint


def add_route(app: FastAPI, kind: str, path: str, methods: frozenset[str], endpoint: Any) -> None:
    router = APIRouter()
    match kind:
        case "route":
            app.add_api_route(path, endpoint, methods=[*methods])
        case "included":
            router.add_api_route(path, endpoint, methods=[*methods])
            app.include_router(router)
        case "nested":
            between = APIRouter()
            router.add_api_route(path.removeprefix("/a") or "/", endpoint, methods=[*methods])
            between.include_router(router, prefix="/a")
            app.include_router(between, prefix="/b" if path.endswith("b") else "")
        case "starlette":
            app.router.routes.append(Route(path, endpoint, methods=methods or None))
        case "mount":
            app.mount(path.partition(":path")[0].rstrip("/{x"), Starlette(routes=[Route("/{rest:path}", endpoint)]))
        case "websocket":
            app.router.add_websocket_route(path, endpoint)
        case "host":
            app.host("known", Starlette(routes=[Route("/{rest:path}", endpoint)]))
        case "own matches":
            app.router.routes.append(MatchesHost(path, endpoint))


def route_by_fastapi(app: FastAPI, scope: Scope) -> Found | None:
    """The endpoint that FastAPI's router calls. It doesn't wait for anything, so it needs no event loop."""

    async def send(message: Any) -> None: ...

    noted = {**scope, "fastapi_middleware_astack": AsyncExitStack()}
    try:
        app.router(noted, _receive, send).send(None)
    except StopIteration:
        pass
    except HTTPException:
        return None
    found: Found | None = noted.get("found")
    return found


async def _receive() -> Any:
    raise AssertionError


@settings(max_examples=150, deadline=None)
@given(TABLES, REQUESTED, st.sampled_from(["GET", "GET", "POST", "PUT"]), st.booleans())
@example([("route", "/a", METHODS[0]), ("route", "/{x}", METHODS[0])], "/a\n", "GET", False)
@example([("route", "/{x}", METHODS[0]), ("route", "/a", METHODS[0])], "/a", "GET", False)
@example([("route", "/a/{x}", METHODS[0]), ("mount", "/a", METHODS[0])], "/a/", "GET", False)
@example([("own matches", "/b", METHODS[0]), ("route", "/a", METHODS[0])], "/a", "GET", True)
def test_the_index_finds_the_route_of_fastapi_or_none(table: Table, path: str, method: str, is_known: bool) -> None:
    app = build_app(table)
    headers = [(b"host", b"known")] if is_known else []
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b"", "app": app}
    index = RouteIndex([*iterate_all_routes(app.routes)])
    segments = index.split(path)
    found = index.find(method, path, segments)
    expected = route_by_fastapi(app, scope)
    if found is not None:
        parameters = {name: segments[number] for number, name in found.parameters}
        assert (found.route.endpoint.__name__, parameters) == expected
    elif all(
        kind in ("route", "included", "nested") and ":" not in each and "." not in each for kind, each, _ in table
    ):
        assert expected is None or path.endswith("\n")  # the index isn't too careful either


def test_a_path_that_is_longer_than_all_routes_is_not_split_any_further() -> None:
    app = build_app([("route", "/a/{x}", METHODS[0]), ("route", "/{x}", METHODS[0])])
    index = RouteIndex([*iterate_all_routes(app.routes)])
    for path in ("/" * 16_000, "/a" * 8_000, "/a/x/"):
        assert len(index.split(path)) == 4
        assert index.find("GET", path, index.split(path)) is None
    assert index.find("GET", "/a/x", index.split("/a/x")) is not None
