"""HEAD, OPTIONS, `Allow`, the host, and headers for caches, in applications that `configure_app` has set up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import structlog
from fastapi import APIRouter, FastAPI, Request, Response, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import StreamingResponse

from howdah import Database
from howdah.fastapi import IfNoneMatch, configure_app, problem_response
from howdah_tests.support.fastapi_apps import http_client

parts_sent = 0


def build_app(**options: Any) -> FastAPI:
    app = FastAPI()
    configure_app(app, database=lambda: Database("postgresql://nobody@127.0.0.1:1/nothing"), **options)
    items, more = APIRouter(prefix="/items"), APIRouter(prefix="/items")

    @items.get("/{item_id}")
    async def get_item(item_id: int, if_none_match: IfNoneMatch) -> int:
        if_none_match.check(f'"{item_id}"')
        return item_id

    @items.patch("/status")
    async def change_status() -> None: ...

    @more.delete("/{item_id}")
    async def delete_item(item_id: int) -> None: ...

    @more.get("")
    async def list_items(request: Request) -> Response:
        return Response(request.method, headers={"Cache-Control": "max-age=60"})

    @more.post("")
    async def create_item() -> Response:
        return problem_response(409, "taken")

    @app.get("/export")
    async def export() -> StreamingResponse:
        async def generate() -> AsyncIterator[bytes]:
            global parts_sent  # noqa: PLW0603
            while True:
                parts_sent += 1
                yield b"x" * 1_000

        return StreamingResponse(generate(), headers={"X-Rows": "all"})

    @app.get("/refused")
    async def refuse() -> Response:
        return problem_response(405, "not-now", headers={"Allow": "POST"})

    @app.get("/fault")
    async def fail() -> None:
        raise RuntimeError("a fault")

    app.include_router(items)
    app.include_router(more)
    return app


@asynccontextmanager
async def client_of(app: FastAPI, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    with structlog.testing.capture_logs():
        async with httpx.AsyncClient(transport=transport, **{"base_url": "http://test", **options}) as client:
            yield client


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(build_app()) as client:
        yield client


@pytest.mark.parametrize(
    "path", ["/items", "/items/5", "/items/none", "/items/status", "/nothing", "/docs", "/openapi.json", "/healthz"]
)
async def test_head_has_the_status_and_headers_of_get_without_a_body(client: httpx.AsyncClient, path: str) -> None:
    get, head = await client.get(path), await client.head(path)
    for response in (get, head):
        del response.headers["x-request-id"]
    assert (head.status_code, head.headers, head.content) == (get.status_code, get.headers, b"")
    assert int(head.headers["content-length"]) == len(get.content)


async def test_head_of_a_current_item_is_304(client: httpx.AsyncClient) -> None:
    answer = await client.head("/items/5", headers={"If-None-Match": '"5"'})
    assert (answer.status_code, answer.headers["etag"], answer.content) == (304, '"5"', b"")


async def test_head_of_an_endless_response_ends_before_its_second_part() -> None:
    global parts_sent  # noqa: PLW0603
    parts_sent = 0
    with structlog.testing.capture_logs() as entries:
        async with http_client(build_app(health=False)) as client:
            for _ in range(2):  # the connection can be used again
                answer = await client.head("/export")
                assert (answer.status_code, answer.headers["x-rows"], answer.content) == (200, "all", b"")
    assert parts_sent == 2
    requests = [entry for entry in entries if entry["event"] == "request"]
    assert [(entry["method"], entry["status"]) for entry in requests] == [("HEAD", 200)] * 2
    assert not [entry for entry in entries if entry["log_level"] == "error"]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/items", "GET, HEAD, OPTIONS, POST"),
        ("/items/5", "DELETE, GET, HEAD, OPTIONS"),
        ("/items/status", "OPTIONS, PATCH"),
        ("/export", "GET, HEAD, OPTIONS"),
        ("/docs", "GET, HEAD, OPTIONS"),
    ],
)
async def test_allow_has_all_methods_of_the_path(client: httpx.AsyncClient, path: str, allowed: str) -> None:
    options = await client.options(path)
    assert (options.status_code, options.headers["allow"], options.content) == (204, allowed, b"")
    for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "PROPFIND"} - {*allowed.split(", ")}:
        answer = await client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed), method
        if method != "HEAD":
            assert answer.json()["type"] == "urn:howdah:problem:method-not-allowed"


async def test_options_of_an_unknown_path_is_404(client: httpx.AsyncClient) -> None:
    assert (await client.options("/nothing")).status_code == 404


async def test_a_route_that_is_added_later_has_its_methods() -> None:
    app = build_app()
    async with client_of(app) as client:
        assert (await client.put("/items/status")).status_code == 405

        @app.put("/items/status")
        async def put_status() -> None: ...

        assert (await client.put("/items/status")).status_code == 200


async def test_a_405_of_the_route_itself_keeps_its_allow(client: httpx.AsyncClient) -> None:
    assert (await client.get("/refused")).headers["allow"] == "POST"


async def test_cors_answers_its_preflight_requests() -> None:
    app = build_app()
    app.add_middleware(CORSMiddleware, allow_origins=["https://a.example"], allow_methods=["PATCH"])
    headers = {"Origin": "https://a.example", "Access-Control-Request-Method": "PATCH"}
    async with client_of(app) as client:
        answer = await client.options("/items/status", headers=headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://a.example")
    async with client_of(build_app()) as client:
        answer = await client.options("/items/status", headers=headers)
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("path", ["/items/", "/items/5/", "/docs/", "/healthz/", "//evil.example"])
@pytest.mark.parametrize("mount", ["", "/inner"])
async def test_no_path_is_redirected(path: str, mount: str) -> None:
    app = build_app()
    if mount:
        outer = FastAPI()
        configure_app(outer, database=lambda: Database("postgresql://nobody@127.0.0.1:1/nothing"))
        outer.mount(mount, app)
        app = outer
    async with client_of(app) as client:
        answer = await client.get(mount + path, headers={"Host": "evil.example"})
        assert (answer.status_code, "location" in answer.headers) == (404, False)
        assert (await client.get(f"{mount}/items")).status_code == 200
        assert (await client.head(f"{mount}/items/5")).status_code == 200
        assert (await client.put(f"{mount}/items/5")).headers["allow"] == "DELETE, GET, HEAD, OPTIONS"
        assert (await client.get(f"{mount}/items/status")).status_code == 405


async def test_every_response_has_headers_for_caches(client: httpx.AsyncClient) -> None:
    expected = {
        ("GET", "/items/5"): "private, no-cache",
        ("GET", "/items"): "max-age=60",
        ("GET", "/healthz"): "no-store",
        ("GET", "/export"): "no-store",
        ("GET", "/nothing"): "no-store",
        ("GET", "/items/none"): "no-store",
        ("GET", "/fault"): "no-store",
        ("POST", "/items"): "no-store",
        ("PUT", "/items"): "no-store",
        ("OPTIONS", "/items"): "no-store",
    }
    for (method, path), cache_control in expected.items():
        answer = await client.request("HEAD" if path == "/export" else method, path)
        assert answer.headers.get_list("cache-control") == [cache_control], path
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"], path


@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [
        ("api.example.com", True),
        ("API.example.com:8000", True),
        ("api.example.com.", True),
        ("a.b.example.org", True),
        ("[::1]:8000", True),
        ("example.org", False),
        ("evil.example", False),
        ("api.example.com.evil.example", False),
        ("api.example.com@evil.example", False),
        ("evil.example#api.example.com", False),
        ("10.0.0.1", False),
        ("", False),
    ],
)
async def test_only_allowed_hosts_are_answered(host: str, is_allowed: bool) -> None:
    app = build_app(allowed_hosts=["api.example.com", "*.example.org", "[::1]"])
    async with client_of(app) as client:
        answer = await client.get("/items", headers={"Host": host})
        assert answer.status_code == (200 if is_allowed else 421)
        if not is_allowed:
            assert answer.json()["type"] == "urn:howdah:problem:misdirected-request"
        for path in ("/healthz", "/metrics"):  # a probe has the address of the process
            assert (await client.get(path, headers={"Host": host})).status_code != 421


@pytest.mark.parametrize(("host", "first_message"), [(b"a.example", "websocket.accept"), (b"b", "websocket.close")])
async def test_a_websocket_of_another_host_is_closed(host: bytes, first_message: str) -> None:
    app = build_app(allowed_hosts=["a.example"])

    @app.websocket("/ws")
    async def accept(websocket: WebSocket) -> None:
        await websocket.accept()

    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/ws", "headers": [(b"host", host)], "query_string": b"", "subprotocols": []}
    await app(scope, receive, send)
    assert sent[0]["type"] == first_message


@pytest.mark.parametrize("hosts", [["http://a.example"], ["a.example:80"], ["*a.example"], ["a b"], [""]])
def test_an_invalid_host_pattern_is_rejected(hosts: list[str]) -> None:
    with pytest.raises(ValueError, match="is not a host"):
        build_app(allowed_hosts=hosts)


async def test_the_internal_port_has_the_operators_pages_and_nothing_else() -> None:
    app = build_app(internal_port=9000)
    operators = ["/docs", "/docs/files/start.js", "/openapi.json"]
    for port, hidden, shown in ((8000, operators, ["/items"]), (9000, ["/items", "/export"], operators)):
        async with client_of(app, base_url=f"http://test:{port}") as client:
            for path in hidden:
                assert (await client.get(path)).status_code == 404, (port, path)
            for path in (*shown, "/healthz"):
                assert (await client.get(path)).status_code == 200, (port, path)
    async with client_of(app, base_url="http://test:8000") as client:
        assert (await client.get("/metrics")).status_code == 404


@pytest.mark.parametrize("length", [1_000, 60_000])
async def test_long_texts_of_the_client_are_not_repeated(length: int) -> None:
    long = "x" * length
    with structlog.testing.capture_logs() as entries:
        transport = httpx.ASGITransport(build_app(allowed_hosts=["test"]), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answers = [
                await client.get(f"/{long}"),
                await client.get(f"/items/{long}"),
                await client.request(long, "/items"),
                await client.get("/items", headers={"Host": long}),
                await client.get("/items", headers={"X-Request-ID": long}),
            ]
    assert [answer.status_code for answer in answers] == [404, 422, 405, 421, 200]
    for answer in answers:
        assert "x" * 101 not in answer.text + str(answer.headers)
    assert all("x" * 201 not in str(entry) for entry in entries)
