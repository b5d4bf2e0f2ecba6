"""Clients that disconnect or stop receiving, on real sockets: no error is logged, and the status is 499."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sqlalchemy import text
from starlette.middleware.base import BaseHTTPMiddleware

from howdah import Database
from howdah.fastapi import BodyRows, DbSession, ReadDbSession, StrictJSONRoute, configure_app
from howdah_tests.support.waiting import until

LARGE = b"x" * 20_000_000  # larger than the buffers of both sockets
CHUNKED = "Transfer-Encoding: chunked"
LENGTH = "Content-Length: 1000"


class Row(BaseModel):
    name: str


def build_app(url: str) -> FastAPI:
    app = FastAPI()
    app.router.route_class = StrictJSONRoute
    configure_app(app, database=lambda: Database(url, pool_size=4))

    @app.post("/json")
    async def post_json(row: Row, db: DbSession) -> None: ...

    @app.post("/body")
    async def post_body(request: Request, db: DbSession) -> None:
        await db.execute(text("SELECT 1"))
        await request.body()

    @app.post("/stream")
    async def post_stream(request: Request) -> None:
        async for _ in request.stream():
            pass

    @app.post("/rows")
    async def post_rows(request: Request, db: DbSession) -> None:
        rows = BodyRows(request, Row)
        with rows.locate_errors():
            async for _ in rows:
                await db.execute(text("SELECT 1"))

    @app.get("/wait")
    async def wait(request: Request, db: ReadDbSession) -> None:
        await db.execute(text("SELECT 1"))
        while not await request.is_disconnected():
            await asyncio.sleep(0.005)

    @app.get("/large")
    async def get_large() -> Response:
        return Response(LARGE)

    @app.get("/endless")
    async def get_endless(db: ReadDbSession) -> StreamingResponse:
        async def generate() -> AsyncIterator[bytes]:
            while True:
                await db.execute(text("SELECT 1"))
                yield LARGE[:100_000]

        return StreamingResponse(generate())

    @app.get("/fault")
    async def fault() -> StreamingResponse:
        async def generate() -> AsyncIterator[bytes]:
            yield b"x"
            raise RuntimeError("a fault of the service")

        return StreamingResponse(generate())

    return app


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[int]:
    """The port of the application behind uvicorn."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5))
        running = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started:
            await asyncio.sleep(0.005)
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            await running


async def vanish(port: int, request: str, *, receive: int, reset: bool) -> None:
    """Send the request, receive this many bytes of the response, and close the socket."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.encode())
    await writer.drain()
    if receive:
        await reader.read(receive)
    else:
        await asyncio.sleep(0)
    if reset:  # RST in place of FIN
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def list_errors(entries: list[Any], caplog: pytest.LogCaptureFixture) -> list[Any]:
    """The errors in the log, of the service, the server, asyncio and other libraries."""
    return [
        *(entry for entry in entries if entry["log_level"] in ("error", "critical")),
        *(record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR),
    ]


REQUESTS = {
    "json": (f"POST /json HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{LENGTH}\r\n\r\n{{", 0),
    "body": (f"POST /body HTTP/1.1\r\nHost: a\r\n{CHUNKED}\r\n\r\n1\r\nx\r\n", 0),
    "stream": (f"POST /stream HTTP/1.1\r\nHost: a\r\n{CHUNKED}\r\n\r\n1\r\nx\r\n", 0),
    "rows": (
        f"POST /rows HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-ndjson\r\n{CHUNKED}\r\n\r\n"
        '10\r\n{"name": "one"}\n\r\n',
        0,
    ),
    "wait": ("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n", 0),
    "large": ("GET /large HTTP/1.1\r\nHost: a\r\n\r\n", 1_000),
    "endless": ("GET /endless HTTP/1.1\r\nHost: a\r\n\r\n", 1_000),
    "pipelined": ("GET /large HTTP/1.1\r\nHost: a\r\n\r\n" * 3, 1_000),
}


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "in another middleware"])
async def test_a_client_that_vanishes_is_no_error(
    committed_url: str, caplog: pytest.LogCaptureFixture, wrapped: bool
) -> None:
    app = build_app(committed_url)
    requests = dict(REQUESTS)
    if wrapped:
        del requests["wait"]  # with Starlette's middleware `is_disconnected` is always false

        async def forward(request: Request, call_next: Any) -> Any:
            return await call_next(request)

        app.add_middleware(BaseHTTPMiddleware, dispatch=forward)
    with structlog.testing.capture_logs() as entries:
        async with serving(app) as port:
            for request, receive in requests.values():
                for reset in (False, True):
                    await vanish(port, request, receive=receive, reset=reset)

            async def have_ended() -> bool:
                logged = [entry for entry in entries if entry["event"] == "request"]
                return len(logged) >= 2 * len(requests)

            await until(have_ended)
    assert list_errors(entries, caplog) == []
    statuses = {(entry["path"], entry["status"]) for entry in entries if entry["event"] == "request"}
    incomplete = {"/json", "/body", "/stream", "/rows", "/endless"}
    assert {path for path, status in statuses if status == 499} >= incomplete
    # the whole response was given to the server, or the route ended by itself
    assert {path for path, status in statuses if status != 499} <= {"/large", "/wait"}


async def test_control_a_fault_of_the_service_is_an_error(committed_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with structlog.testing.capture_logs() as entries:
        async with serving(build_app(committed_url)) as port:
            await vanish(port, "GET /fault HTTP/1.1\r\nHost: a\r\n\r\n", receive=1_000, reset=False)

            async def has_failed() -> bool:
                return any(entry["event"] == "request" for entry in entries)

            await until(has_failed)
    assert any("a fault of the service" in entry.get("exception", "") for entry in entries)
