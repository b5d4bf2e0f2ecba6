"""A direct route and FastAPI's own handling of it give the same responses, log entries and metrics.

The same bytes are sent to two applications that differ only in the mark `direct`.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

import anyio
import pytest
from fastapi import FastAPI, Request, Response
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from starlette.datastructures import Headers
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from howdah import Database
from howdah.fastapi import LoadLimit, RateLimit, RateLimits, direct, problem_response
from howdah.fastapi._fastapi_internals import IS_SUPPORTED
from howdah.fastapi.sessions import get_read_db
from howdah.testing import _new_database, _with_database
from howdah_tests.support.idempotent_app import create_tables
from howdah_tests.support.path_app import create_path_app
from howdah_tests.support.path_outputs import CREATE_ROWS
from howdah_tests.support.path_pairs import Mark, PathPair, Side, open_pair, request
from howdah_tests.support.path_requests import (
    INCOMPLETE,
    ITEM,
    KNOWN_TARGETS,
    OTHERS,
    REQUESTS,
    ROOTED_TARGETS,
    SEGMENTS,
    get,
    post,
)
from howdah_tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(not IS_SUPPORTED, reason="this version of FastAPI serves all routes itself")

AS_OPERATOR: Final = "Authorization: Bearer operator-ann"


class ByHeader:
    """Middleware that does something for requests with a header, so that one pair of servers is enough.

    `X-Root-Path` sets the root path, as a server does. `X-End` cancels the request in the way of anyio: each later wait
    of the request is cancelled, too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if "x-root-path" in headers:
            scope = {**scope, "root_path": headers["x-root-path"]}
        if "x-end" not in headers:
            await self._app(scope, receive, send)
            return
        with anyio.move_on_after(0.05) as timeout:
            await self._app(scope, receive, send)
        if timeout.cancelled_caught:
            await problem_response(504, "too-slow")(scope, receive, send)


class BaseByHeader(BaseHTTPMiddleware):
    """Starlette's base class of middleware, for requests with the header `X-Base`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_used = scope["type"] == "http" and "x-base" in Headers(scope=scope)
        await (super().__call__ if is_used else self.app)(scope, receive, send)

    async def dispatch(self, request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["X-Base"] = request.url.path
        return response


def classify(scope: Scope) -> str:
    return Headers(scope=scope).get("x-class", "unlimited")


def create(mark: Mark, url: str) -> FastAPI:
    asyncio.run(prepare(url))
    app = create_path_app(
        mark,
        url,
        mounted=True,
        max_body_seconds=0.3,
        rate_limits=RateLimits(classes={"limited": RateLimit(2, 3_600)}, classify=classify),
        load_limit=LoadLimit(min_in_progress=1, max_in_progress=1, max_waiting=1, max_wait_seconds=30),
    )
    app.add_middleware(BaseByHeader)
    app.add_middleware(ByHeader)
    return app


async def prepare(url: str) -> None:
    async with Database(url, pool_size=1) as database:
        await create_tables(database)
        async with database.begin() as session:
            for statement in CREATE_ROWS:
                await session.execute(text(statement))


@pytest.fixture(scope="module")
def opened_pair(postgres_url: str) -> Iterator[PathPair]:
    with _new_database(postgres_url, "template1") as first, _new_database(postgres_url, "template1") as second:
        urls = iter([_with_database(postgres_url, name) for name in (first, second)])
        with open_pair(lambda mark: create(mark, next(urls))) as pair:
            yield pair


@pytest.fixture
def pair(opened_pair: PathPair) -> Iterator[PathPair]:
    """The two applications. A test must change their metrics in the same way."""
    before = [side.read_metrics() for side in opened_pair.sides]
    yield opened_pair
    after = [side.read_metrics() for side in opened_pair.sides]
    first, second = ({*new} - {*old} for old, new in zip(before, after, strict=True))
    assert first == second
    assert any("howdah_requests_total" in line for line in first)


@pytest.mark.parametrize("name", REQUESTS)
def test_both_paths_do_the_same(pair: PathPair, name: str) -> None:
    assert pair.find_differences(REQUESTS[name]) == {}


def test_both_paths_do_the_same_for_other_requests(pair: PathPair) -> None:
    found = {raw: pair.find_difference(raw, served=served) for raw, served in OTHERS.items()}
    assert {raw: difference for raw, difference in found.items() if difference} == {}


def find_difference(pair: PathPair, raw: bytes) -> object:
    """The differences, or None. It may differ whether FastAPI's router or a direct route has answered."""
    difference = pair.find_difference(raw)
    return None if isinstance(difference, dict) and difference.keys() == {"routed"} else difference


def test_unusual_paths_have_the_same_route(pair: PathPair) -> None:
    targets = [(method, target) for target in KNOWN_TARGETS for method in ("GET", "HEAD", "POST", "DELETE")]
    raws = [request(method, target, AS_OPERATOR) for method, target in targets]
    assert {raw: found for raw in raws if (found := find_difference(pair, raw))} == {}


@pytest.mark.parametrize("root_path", ["/api", "/api/"])
def test_paths_behind_a_proxy_have_the_same_route(pair: PathPair, root_path: str) -> None:
    raws = [
        request(method, target, f"X-Root-Path: {root_path}") for target in ROOTED_TARGETS for method in ("GET", "POST")
    ]
    assert {raw: found for raw in raws if (found := find_difference(pair, raw))} == {}


TARGETS: Final = st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=5).map(lambda parts: "/" + "/".join(parts))
METHODS: Final = st.sampled_from(["GET", "GET", "GET", "HEAD", "POST", "DELETE", "OPTIONS"])


@settings(max_examples=100, deadline=None)
@given(METHODS, TARGETS)
def test_any_path_has_the_same_route(opened_pair: PathPair, method: str, target: str) -> None:
    assert find_difference(opened_pair, request(method, target, AS_OPERATOR)) is None


VALUES: Final = st.sampled_from(
    ["", "1", "a", "b", "-1", "%00", "%ff", "+1", "1_0", "%E2%80%A8", "%0A", "x" * 20, "=", "%41" * 90]
)
NAMES: Final = st.sampled_from(
    ["q", "flags", "kind", "need-ed", "%71", "q%00", "", "number", "limit", "after", "names"]
)
QUERIES: Final = st.lists(st.tuples(NAMES, VALUES).map("=".join), max_size=4).map("&".join)
HEADERS: Final = st.lists(
    st.sampled_from(
        [
            *("X-Text: a", "x-text: 123456", "X-Text:", "X-Many: a", "X-Many: b", "X_Text: a", "X-Needed: a"),
            *("Cookie: crumb=1", "Cookie: crumb=a; one=x", "Cookie: =; crumb", 'Cookie: crumb="1"', "X-Key: a"),
            *(AS_OPERATOR, "Authorization: bearer operator-ann", "Authorization: Basic x", "Authorization:"),
            *("Content-Type: application/json", "Content-Type: text/plain", "X-Request-ID: a b", "X-Request-ID: a"),
            "Accept: text/html",
        ]
    ),
    max_size=4,
    unique=True,
)
READ: Final = st.sampled_from(
    ["/values/1", "/values/a", "/page", "/required", "/single", "/operators/1", "/json", "/outside/a"]
)


@settings(max_examples=100, deadline=None)
@given(READ, QUERIES, HEADERS)
def test_any_query_and_any_headers_are_read_in_the_same_way(
    opened_pair: PathPair, target: str, query: str, headers: list[str]
) -> None:
    assert find_difference(opened_pair, get(f"{target}?{query}", *headers)) is None


MEMBERS: Final = st.sampled_from(["name", "count", "price", "tags", "item", "first", "second"])
SCALARS: Final = st.sampled_from([None, True, 0, -1, 1.5, "", "a", "x" * 11, "\ud800", "1"])
NESTED: Final = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(MEMBERS, inner, max_size=4),
    max_leaves=6,
)
BODIES: Final = NESTED.map(lambda value: json.dumps(value).encode()) | st.sampled_from(
    [b"", b"{", b'{"name":"a","name":"b"}', b"NaN", b"\xef\xbb\xbf{}", b"\xff", b'{"name":"a"}{}', b" null "]
)
WRITTEN: Final = st.sampled_from(["/items", "/pairs?q=a", "/embedded", "/optional", "/any", "/text", "/strict/items"])
TYPES: Final = st.sampled_from(["application/json"] * 4 + ["", "text/plain", "application/x+json", "a", "a/b; c"])


@settings(max_examples=100, deadline=None)
@given(WRITTEN, TYPES, BODIES)
def test_any_body_is_read_in_the_same_way(opened_pair: PathPair, target: str, content_type: str, body: bytes) -> None:
    raw = request("POST", target, *([f"Content-Type: {content_type}"] if content_type else []), body=body)
    assert opened_pair.find_difference(raw) is None


def test_rate_limits_reject_the_same_requests(pair: PathPair) -> None:
    admitted = [get("/operators/1", "X-Class: limited"), post("/items", ITEM, "X-Class: limited")]
    rejected = [
        get("/json", "X-Class: limited"),
        request("HEAD", "/json", "X-Class: limited"),
        post("/items", b"not json", "X-Class: limited"),
    ]
    assert pair.find_differences(admitted) == {}
    assert pair.find_differences(rejected, served="layers") == {}
    assert pair.second.list_statuses() == [429]


def test_an_overloaded_service_rejects_the_same_requests(pair: PathPair) -> None:
    with ExitStack() as held:
        for side in pair.sides:
            for gauge in ("howdah_requests_in_progress 1.0", "howdah_requests_waiting 1.0"):
                held.enter_context(open_connection(side, get("/hang")))
                wait_until(lambda side=side, gauge=gauge: gauge in side.read_metrics())  # type: ignore[misc]
        rejected = [get("/json"), request("HEAD", "/json"), post("/items", ITEM)]
        assert pair.find_differences(rejected, served="layers", logged=0) == {}
        assert {side.send(rejected[0])[0] for side in pair.sides} == {503}
    idle = {"howdah_requests_in_progress 0.0", "howdah_requests_waiting 0.0"}
    for side in pair.sides:
        wait_until(lambda side=side: idle <= {*side.read_metrics()})  # type: ignore[misc]


def open_connection(side: Side, raw: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", side.port), timeout=10)
    connection.sendall(raw)
    return connection


def test_slow_bodies_get_the_same_408(pair: PathPair) -> None:
    assert pair.find_differences(INCOMPLETE[:2]) == {}
    assert pair.second.list_statuses() == [408]


@pytest.mark.parametrize("raw", [*INCOMPLETE, get("/hang"), get("/cleaned/hang")])
def test_clients_that_disconnect_are_logged_in_the_same_way(pair: PathPair, raw: bytes) -> None:
    entries = []
    for side in pair.sides:
        side.forget()
        with open_connection(side, raw):
            wait_until(side.has_begun)
        side.wait_for_log(1)
        entries.append(side.describe_log())
    assert entries[0] == entries[1]
    assert [each["status"] for each in entries[0] if each["event"] == "request"] == [499]
    assert pair.find_differences([get("/cleaned/a")]) == {}


def test_dependencies_clean_up_if_middleware_cancels_the_request(pair: PathPair) -> None:
    assert pair.find_differences([get("/cleaned/hang?name=ended", "X-End: yes"), get("/cleaned/a")]) == {}
    assert all(b"ended" in side.send(get("/cleaned/a"))[2] for side in pair.sides)


def test_middleware_sees_the_same_requests(pair: PathPair) -> None:
    targets = ("/json", "/stream", "/errors/not-found", "/errors/unexpected", "/background/a")
    requests = [
        *(get(target, "X-Base: yes") for target in targets),
        request("HEAD", "/json", "X-Base: yes"),
        post("/strict/items", b"not json", "X-Base: yes"),
        post("/raw", b"x" * 3_000, "X-Base: yes"),
    ]
    assert pair.find_differences(requests) == {}


def test_an_overridden_dependency_is_used_on_both_paths(pair: PathPair) -> None:
    async def fail() -> None:
        raise LookupError("the other database")

    for side in pair.sides:
        side.app.dependency_overrides[get_read_db] = fail
    try:
        assert pair.find_differences([get("/commits")], served="fastapi") == {}
        assert pair.second.list_statuses() == [500]
        assert pair.find_differences([get("/json")]) == {}
    finally:
        for side in pair.sides:
            side.app.dependency_overrides.clear()


def test_a_dependency_that_suppresses_an_exception_is_a_fault_on_both_paths(pair: PathPair) -> None:
    assert pair.find_differences([get("/yields/unexpected?translated=swallow"), get("/swallowed-late")]) == {}
    assert pair.second.list_statuses() == [500]


def test_control_applications_that_differ_are_noticed() -> None:
    def create_different(mark: Mark) -> FastAPI:
        return create_path_app(mark, max_body_bytes=5 if mark is direct else 100)

    raws = [post("/items", ITEM), get("/json")]
    with open_pair(create_different) as pair:
        assert pair.find_differences(raws).keys() == {raws[0]}
        assert pair.find_difference(get("/unknown")) == {"routed": (1, 1)}
