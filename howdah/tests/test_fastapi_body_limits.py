"""The body of a request: its size and its time, over HTTP."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Body, FastAPI, Request
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive, Scope, Send

from howdah import Database
from howdah.fastapi import BodyLimits, BodyRows, configure_app, lift_body_limits
from howdah.serving import ServerLimits
from howdah_tests.support.fastapi_apps import http_client
from howdah_tests.support.raw_http import Peer, RunningServer, running_server

MAX_BYTES = 2_000


class Row(BaseModel):
    name: str


def create_limited_app(**options: Any) -> FastAPI:
    app = FastAPI()
    configure_app(app, database=lambda: Database("postgresql://nobody@127.0.0.1:1/none"), metrics=False, **options)

    @app.post("/json")
    async def read_json(body: Annotated[Any, Body()]) -> int:
        return len(json.dumps(body))

    @app.post("/large", max_body_size=10_000)
    async def read_large(body: Annotated[Any, Body()]) -> int:
        return len(json.dumps(body))

    @app.post("/rows")
    async def read_rows(request: Request) -> int:
        return len([row async for row in BodyRows(request, Row)])

    @app.post("/few-rows")
    async def read_few_rows(request: Request) -> int:
        limits = BodyLimits(max_bytes=MAX_BYTES, max_array_bytes=MAX_BYTES)
        return len([row async for row in BodyRows(request, Row, limits=limits)])

    @app.post("/stream")
    async def read_stream(request: Request) -> int:
        lift_body_limits(request)
        return sum([len(part) async for part in request.stream()])

    @app.post("/unread")
    async def unread() -> str:
        return "not read"

    return app


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    app = create_limited_app(max_body_bytes=MAX_BYTES, max_body_seconds=0.3)
    mounted = create_limited_app(max_body_bytes=MAX_BYTES * 2, request_log=False)
    app.mount("/mounted", mounted)
    with running_server(app, ServerLimits()) as running:
        yield running


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        yield client


def make_json(size: int) -> bytes:
    return b'"' + b"a" * (size - 2) + b'"'


async def in_parts(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 500):
        yield body[start : start + 500]


def assert_too_large(response: httpx.Response) -> None:
    assert response.status_code == 413
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == "urn:howdah:problem:body-too-large"


@pytest.mark.parametrize("path", ["/json", "/mounted/json", "/large"])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_above_the_limit_is_413(client: httpx.AsyncClient, path: str, is_chunked: bool) -> None:
    limit = {"/json": MAX_BYTES, "/mounted/json": MAX_BYTES * 2, "/large": 10_000}[path]
    for size in (limit, limit + 1):
        body = make_json(size)
        response = await client.post(
            path, content=in_parts(body) if is_chunked else body, headers={"Content-Type": "application/json"}
        )
        if size <= limit:
            assert response.json() == size
        else:
            assert_too_large(response)


@pytest.mark.parametrize("kind", ["application/x-ndjson", "application/json"])
async def test_rows_have_the_limits_of_their_route(client: httpx.AsyncClient, kind: str) -> None:
    rows = [b'{"name": "a"}'] * 10_000
    body = b"\n".join(rows) if kind.endswith("ndjson") else b"[" + b",".join(rows) + b"]"
    assert (await client.post("/rows", content=body, headers={"Content-Type": kind})).json() == len(rows)
    assert_too_large(await client.post("/few-rows", content=body, headers={"Content-Type": kind}))


async def test_a_route_that_lifts_the_limit_has_none(client: httpx.AsyncClient) -> None:
    assert (await client.post("/stream", content=b"a" * 100_000)).json() == 100_000


async def test_a_route_that_does_not_read_the_body_is_not_affected(client: httpx.AsyncClient) -> None:
    assert (await client.post("/unread", content=b"a" * 100_000)).json() == "not read"
    assert (await client.request("GET", "/healthz", content=b"a" * 100_000)).status_code == 200


async def test_a_client_that_expects_100_sends_no_body_that_is_too_large(server: RunningServer) -> None:
    head = "POST /json HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Type: application/json\r\n"
    async with server.connect(f"{head}Content-Length: {MAX_BYTES + 1}\r\n\r\n".encode()) as peer:
        assert await peer.read_problem() == (413, "body-too-large")
    async with server.connect(f"{head}Content-Length: 3\r\n\r\n".encode()) as peer:
        assert (await peer.read())[0] == 100
        await peer.send(b"123")
        assert (await peer.read())[0] == 200


async def test_a_slow_body_is_408_and_only_the_time_of_the_client_counts(server: RunningServer) -> None:
    head = b"POST /json HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"

    async def drip(peer: Peer) -> None:
        for _ in range(100):
            await peer.send(b"1")
            await asyncio.sleep(0.02)

    async with server.connect(head) as peer:
        dripping = asyncio.create_task(drip(peer))
        assert await peer.read_problem() == (408, "body-timeout")
        assert not dripping.done()
        dripping.cancel()


@pytest.mark.parametrize(
    ("body", "statuses"),
    [
        pytest.param(b"[" * 500_000 + b"]" * 500_000, {400}, id="deep"),
        pytest.param(b"{" + b",".join(b'"%d":0' % n for n in range(40_000)) + b"}", {200}, id="many names"),
        pytest.param(b"9" * 1_000_000, {400, 422}, id="a long number"),
    ],
)
async def test_hostile_json_within_the_limit_is_no_error_of_the_service(body: bytes, statuses: set[int]) -> None:
    transport = httpx.ASGITransport(create_limited_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.post("/json", content=body, headers={"Content-Type": "application/json"})
        assert response.status_code in statuses


_MEMORY_PROGRAM = """
import socket, sys, tracemalloc
sys.path[:0] = ["howdah/tests"]
from howdah.serving import ServerLimits
from howdah_tests.support.raw_http import running_server
from test_fastapi_body_limits import create_limited_app

PART = b'"' + b"a" * 999_999

def send(limit, framing, parts):
    with running_server(create_limited_app(max_body_bytes=limit, request_log=False), ServerLimits()) as server:
        tracemalloc.start()  # the peak of the process itself would begin with that of the process that started it
        client = socket.create_connection(("127.0.0.1", server.port))
        head = f"POST /json HTTP/1.1\\r\\nHost: a\\r\\nContent-Type: application/json\\r\\n{framing}\\r\\n\\r\\n"
        try:
            client.sendall(head.encode())
            for _ in range(parts):
                client.sendall(PART if "Length" in framing else b"f4240\\r\\n" + PART + b"\\r\\n")
        except OSError:
            pass  # the server doesn't read all of it
        status = client.recv(12).decode()
        client.close()
        print(status.split()[1], tracemalloc.get_traced_memory()[1] // 1_000_000)
        tracemalloc.stop()

send(1_000_000, "Content-Length: 300000000", 300)
send(1_000_000, "Transfer-Encoding: chunked", 300)
send(None, "Content-Length: 120000000", 120)
"""


def test_300_megabytes_of_json_take_no_memory_and_without_the_limit_they_do() -> None:
    command = [sys.executable, "-c", _MEMORY_PROGRAM]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    announced, chunked, control = (tuple(map(int, line.split())) for line in output.splitlines())
    assert announced[0] == chunked[0] == 413
    assert announced[1] + chunked[1] < 20, output
    assert control[0] == 422
    assert control[1] > 100


async def test_the_limits_of_a_mounted_application_need_no_content_length() -> None:
    class RemoveLength:
        """Middleware that changes the body, for example one that decompresses it, removes its length."""

        def __init__(self, app: ASGIApp) -> None:
            self._app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                scope["headers"] = [each for each in scope["headers"] if each[0] != b"content-length"]
            await self._app(scope, receive, send)

    app = FastAPI()
    app.add_middleware(RemoveLength)
    configure_app(app, database=lambda: Database("postgresql://nobody@127.0.0.1:1/none"), max_body_bytes=1_000)
    app.mount("/larger", create_limited_app(max_body_bytes=3_000))
    app.mount("/smaller", create_limited_app(max_body_bytes=100))
    async with http_client(app) as client:
        for path, size, status in (("larger", 2_000, 200), ("larger", 4_000, 413), ("smaller", 200, 413)):
            assert (await client.post(f"/{path}/json", json="x" * size)).status_code == status
