"""Clients that stop sending or receiving, on real sockets, and a small pool."""

from __future__ import annotations

import asyncio
import logging
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
import pytest_asyncio
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sqlalchemy import Select, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.datastructures import State
from starlette.types import ASGIApp, Receive, Scope, Send

from howdah import AsyncRepository, Database
from howdah.fastapi import (
    NDJSON,
    BodyLimits,
    BodyRows,
    DbSession,
    ExportFormat,
    IdempotentRoute,
    ReadDbSession,
    SendLimits,
    _spool,
    answer_lines,
    database_from_state,
    export_response,
    get_database,
    get_read_db,
    idempotency_key,
    ndjson_response,
    read_lines,
    session_dependency,
    session_from,
)
from howdah_tests.support.fastapi_apps import create_app, http_client
from howdah_tests.support.idempotent_app import IdempotentRequest
from howdah_tests.support.sample_models import User
from howdah_tests.support.waiting import until

POOL_SIZE = 8
FOR_SESSIONS = 5  # three connections are reserved for reads and batches
CLIENTS = 7
LARGE = 6_000  # rows of 1 KiB: more than the buffers of the kernel hold
# A kernel holds 4 MiB, and uvicorn and the session hold two parts. A stream that fits into them isn't stalled.
STALLING = 4 * LARGE
IMPATIENT = BodyLimits(window_seconds=0.3)
SMALL = BodyLimits(max_bytes=100, max_array_bytes=100)
LINE = b'{"email": "ada@example.com", "name": "Ada"}\n'


class UserIn(BaseModel):
    email: str
    name: str


def select_texts(count: int) -> Select[Any]:
    return select(func.repeat("x", 1_000).label("text"), func.generate_series(1, count).label("n"))


async def open_until_sent(
    database: Annotated[Database, Depends(get_database)],
) -> AsyncIterator[AsyncSession]:
    async with database.session(read_only=True) as session:
        yield session


async def get_tenant_database(database: Annotated[Database, Depends(get_database)]) -> Database:
    return database.with_settings({"app.tenant_id": "1"})


ReportsSession = Annotated[AsyncSession, session_dependency(database_from_state, read_only=True)]
TenantSession = Annotated[AsyncSession, session_from(get_tenant_database, read_only=True)]
HeldSession = Annotated[AsyncSession, Depends(open_until_sent, scope="request")]


@dataclass
class Service:
    client: httpx.AsyncClient
    database: Database
    app: FastAPI
    readers: list[asyncio.StreamReader] = field(default_factory=list)  # without a reference they would be closed
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self, request: str, body: bytes = b"", *, times: int = 1) -> asyncio.StreamReader:
        """Send requests over one connection, and then nothing. The client has small buffers."""
        small = socket.socket()
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        small.setblocking(False)
        await asyncio.get_running_loop().sock_connect(small, ("127.0.0.1", self.client.base_url.port))
        reader, writer = await asyncio.open_connection(sock=small, limit=1_000)
        self.readers.append(reader)
        self.writers.append(writer)
        writer.write((f"{request}\r\nHost: test\r\n\r\n".encode() + body) * times)
        await writer.drain()
        return reader

    async def until_started(self, count: int) -> None:
        """Return when this many requests have reached the application."""

        async def is_started() -> bool:
            return int(self.app.state.started) >= count

        await until(is_started)

    async def in_use(self) -> int:
        return self.database.pool_status().in_use

    async def is_idle(self) -> bool:
        return self.database.pool_status().in_use == 0

    async def read_statuses(self) -> set[int]:
        """The statuses of other requests that need the database."""
        responses = await asyncio.gather(*(self.client.get("/users") for _ in range(3)))
        return {response.status_code for response in responses}


def upload(path: str, *headers: str, size: int = 1_000_000) -> str:
    lines = [f"POST {path} HTTP/1.1", f"Content-Type: {NDJSON}", f"Content-Length: {size}", *headers]
    return "\r\n".join(lines)


class CountRequests:
    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.state.started += scope["type"] == "http"
        await self.app(scope, receive, send)


def build_router() -> APIRouter:
    router = APIRouter(route_class=IdempotentRoute)
    key = idempotency_key(IdempotentRequest, scope=lambda: "", limits=IMPATIENT)

    async def create(request: Request, db: AsyncSession, limits: BodyLimits | None) -> int:
        rows = BodyRows(request, UserIn, limits=limits)
        with rows.locate_errors():
            users = (row.model_dump() async for row in rows)
            created = await AsyncRepository(db, User).create_many(users, keys=False, chunk_size=500)
        return created.count

    @router.post("/upload")
    async def upload_users(request: Request, db: DbSession) -> int:
        return await create(request, db, None)

    @router.post("/upload-with-key", dependencies=[key])
    async def upload_with_key(request: Request, db: DbSession) -> int:
        return await create(request, db, None)

    @router.post("/impatient")
    async def upload_in_time(request: Request, db: DbSession) -> int:
        return await create(request, db, IMPATIENT)

    @router.post("/small")
    async def upload_little(request: Request, db: DbSession) -> int:
        return await create(request, db, SMALL)

    @router.post("/lines", response_class=StreamingResponse)
    async def upload_lines(request: Request) -> StreamingResponse:
        async def process(batch: list[UserIn]) -> list[dict[str, str]]:
            return [{} for _ in batch]

        return await answer_lines(request, UserIn, process, limits=IMPATIENT)

    @router.post("/import", response_class=StreamingResponse)
    async def import_users(request: Request, database: Annotated[Database, Depends(get_database)]) -> StreamingResponse:
        async def process(batch: list[UserIn]) -> list[dict[str, str]]:
            async with database.session() as session:
                await session.execute(select(func.pg_sleep(0.05)))
                request.app.state.in_use.append(database.pool_status().in_use)
            return [{} for _ in batch]

        return await answer_lines(request, UserIn, process, batch_lines=10)

    @router.post("/control-upload")
    async def upload_in_transaction(request: Request, db: DbSession) -> int:
        count = 0
        async for _ in read_lines(request):
            count += await db.scalar(select(1)) or 0
        return count

    return router


def build_app(database: Database) -> FastAPI:
    app = create_app(database)
    app.state.started = 0
    app.state.in_use = []
    app.include_router(build_router())
    app.add_middleware(CountRequests, state=app.state)

    @app.get("/users")
    async def count_users(db: ReadDbSession) -> int:
        return await AsyncRepository(db, User).count()

    @app.get("/export", response_class=StreamingResponse)
    async def export(db: ReadDbSession) -> StreamingResponse:
        return await export_response(db, select_texts(LARGE), ExportFormat.NDJSON, name="texts")

    @app.get("/impatient-export", response_class=StreamingResponse)
    async def export_in_time(db: ReadDbSession) -> StreamingResponse:
        limits = SendLimits(window_seconds=0.3)
        return await export_response(db, select_texts(LARGE), ExportFormat.CSV, name="texts", limits=limits)

    @app.get("/lines", response_class=StreamingResponse)
    async def export_lines(database: Annotated[Database, Depends(get_database)]) -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            async with database.session(read_only=True) as session:
                async for (line,) in await session.stream(select(func.repeat("x", 1_000 * LARGE))):
                    yield line.encode()

        return await ndjson_response(lines())

    @app.get("/list")
    async def list_texts(db: ReadDbSession) -> list[str]:
        return [*await db.scalars(select(func.repeat("x", 1_000)).select_from(func.generate_series(1, LARGE)))]

    @app.get("/list-of-reports")
    async def list_reports(db: ReportsSession) -> list[str]:
        return await list_texts(db)

    @app.get("/list-of-tenant")
    async def list_of_tenant(db: TenantSession) -> list[str]:
        return await list_texts(db)

    @app.get("/control-list")
    async def hold_session(db: HeldSession) -> list[str]:
        return await list_texts(db)

    @app.get("/control-stream", response_class=StreamingResponse)
    async def stream_alone(db: ReadDbSession) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            async for row in (await db.stream(select_texts(STALLING))).partitions(500):
                yield str(row)

        return StreamingResponse(lines())

    return app


@asynccontextmanager
async def serve(url: str, *, pool_timeout: float = 5.0) -> AsyncIterator[Service]:
    async with (
        Database(url, pool_size=POOL_SIZE, max_overflow=0, pool_timeout=pool_timeout) as database,
        http_client(app := build_app(database)) as client,
    ):
        service = Service(client, database, app)
        yield service
        for writer in service.writers:
            writer.transport.abort()


@pytest_asyncio.fixture
async def service(database_url: str) -> AsyncIterator[Service]:
    """A service in whose database nothing is committed."""
    async with serve(database_url) as service:
        yield service


@pytest_asyncio.fixture
async def impatient_service(database_url: str) -> AsyncIterator[Service]:
    """A service that waits for a connection for a short time."""
    async with serve(database_url, pool_timeout=0.3) as service:
        yield service


async def until_held(service: Service, count: int) -> None:
    async def is_held() -> bool:
        return await service.in_use() >= count

    await until(is_held)


async def connect_all(connect: Callable[[], Awaitable[asyncio.StreamReader]]) -> list[asyncio.StreamReader]:
    return [await connect() for _ in range(CLIENTS)]


@pytest.mark.parametrize("headers", [("/upload",), ("/upload-with-key", "Idempotency-Key: {}"), ("/upload-with-key",)])
async def test_stalled_uploads_hold_no_connection(service: Service, headers: tuple[str, ...]) -> None:
    for number in range(CLIENTS):
        await service.connect(upload(*headers).format(number), LINE * 1_001)
    await service.until_started(CLIENTS)
    assert await service.read_statuses() == {HTTPStatus.OK}
    assert await service.in_use() == 0


async def test_batches_of_many_imports_use_a_quarter_of_the_pool(service: Service) -> None:
    in_use: list[int] = service.app.state.in_use

    async def is_processed() -> bool:
        return len(in_use) == CLIENTS

    for _ in range(CLIENTS):
        await service.connect(upload("/import"), LINE * 11)
    await until(is_processed)
    assert max(in_use) == POOL_SIZE // 4


async def test_control_uploads_that_stall_in_a_transaction_exhaust_the_pool(impatient_service: Service) -> None:
    for _ in range(CLIENTS):
        await impatient_service.connect(upload("/control-upload"), LINE * 10)
    await until_held(impatient_service, FOR_SESSIONS)
    assert await impatient_service.read_statuses() == {HTTPStatus.SERVICE_UNAVAILABLE}


@pytest.mark.parametrize("path", ["/export", "/lines"])
async def test_exports_that_are_not_read_hold_no_connection(
    service: Service, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(_spool, "READ_AHEAD_BYTES_PER_SECOND", 1e9)
    readers = await connect_all(lambda: service.connect(f"GET {path} HTTP/1.1"))
    heads = await asyncio.gather(*(reader.readuntil(b"\r\n\r\n") for reader in readers))
    assert all(head.startswith(b"HTTP/1.1 200") for head in heads)
    await until(service.is_idle)
    assert _spool.stored_bytes() > CLIENTS * 1_000_000
    assert await service.read_statuses() == {HTTPStatus.OK}
    received = bytearray()
    while not received.endswith(b"\r\n0\r\n\r\n"):
        received += await asyncio.wait_for(readers[0].read(1_000_000), 5)
    assert len(received) > LARGE * 1_000


async def test_if_nothing_can_be_stored_few_exports_hold_connections(
    impatient_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_spool, "MAX_STORED_BYTES", 0)
    readers = await connect_all(lambda: impatient_service.connect("GET /export HTTP/1.1"))
    heads = await asyncio.gather(*(reader.readuntil(b"\r\n\r\n") for reader in readers))
    statuses = [int(head.split()[1]) for head in heads]
    assert sorted(statuses) == [HTTPStatus.OK] * 2 + [HTTPStatus.SERVICE_UNAVAILABLE] * (CLIENTS - 2)
    assert b"retry-after" in heads[statuses.index(HTTPStatus.SERVICE_UNAVAILABLE)]
    assert await impatient_service.in_use() == 2
    assert await impatient_service.read_statuses() == {HTTPStatus.OK}


async def test_control_streams_of_the_route_itself_exhaust_the_pool(impatient_service: Service) -> None:
    await connect_all(lambda: impatient_service.connect("GET /control-stream HTTP/1.1"))
    await until_held(impatient_service, FOR_SESSIONS)
    assert await impatient_service.read_statuses() == {HTTPStatus.SERVICE_UNAVAILABLE}


@pytest.mark.parametrize("path", ["/list", "/list-of-reports", "/list-of-tenant"])
async def test_lists_that_are_not_read_hold_no_connection(service: Service, path: str) -> None:
    await connect_all(lambda: service.connect(f"GET {path} HTTP/1.1", times=40))
    await service.until_started(2 * CLIENTS)  # uvicorn keeps the first response of a connection in memory
    await until(service.is_idle)
    assert await service.read_statuses() == {HTTPStatus.OK}
    assert (await service.client.get(path)).json() == ["x" * 1_000] * LARGE


async def test_control_sessions_that_stay_open_until_the_response_is_sent_exhaust_the_pool(
    impatient_service: Service,
) -> None:
    await connect_all(lambda: impatient_service.connect("GET /control-list HTTP/1.1", times=40))
    await impatient_service.until_started(2 * CLIENTS)
    await until_held(impatient_service, FOR_SESSIONS)
    assert await impatient_service.read_statuses() == {HTTPStatus.SERVICE_UNAVAILABLE}


@pytest.mark.parametrize("path", ["/impatient", "/lines", "/upload-with-key"])
async def test_an_upload_that_stalls_is_answered_and_disconnected(
    service: Service, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    reader = await service.connect(upload(path, "Idempotency-Key: a"), LINE * 10)
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"urn:howdah:problem:body-timeout" in answer
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_an_upload_of_single_bytes_is_too_slow(service: Service) -> None:
    """Each byte arrives within the window, but there are too few of them."""
    reader = await service.connect(upload("/impatient"))
    [writer] = service.writers

    async def send() -> None:
        while not writer.is_closing():
            writer.write(b" ")
            await asyncio.sleep(0.02)

    sending = asyncio.create_task(send())
    assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 408")
    sending.cancel()


async def test_results_without_space_on_the_disk_are_a_problem(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored_before = _spool.stored_bytes()
    body, headers = LINE * 20_000, {"Content-Type": NDJSON}
    response = await service.client.post("/lines", content=body, headers=headers)
    assert (response.status_code, len(response.content.splitlines())) == (200, 20_000)
    assert _spool.stored_bytes() == stored_before
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    response = await service.client.post("/lines", content=body, headers=headers)
    assert (response.status_code, response.json()["type"]) == (503, "urn:howdah:problem:too-many-streams")
    assert "retry-after" in response.headers
    assert (await service.client.post("/lines", content=LINE, headers=headers)).content == b'{"line":1}\n'


@pytest.mark.parametrize("kind", [NDJSON, "application/json"])
@pytest.mark.parametrize("is_declared", [True, False])
async def test_a_body_that_is_too_large_is_rejected(service: Service, kind: str, is_declared: bool) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield LINE * 10

    response = await service.client.post(
        "/small", content=LINE * 10 if is_declared else parts(), headers={"Content-Type": kind}
    )
    assert response.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    assert (response.json()["type"], response.json()["max_bytes"]) == ("urn:howdah:problem:body-too-large", 100)


async def test_an_upload_without_space_on_the_disk_is_rejected(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    body, headers = LINE * 10_000, {"Content-Type": NDJSON}
    response = await service.client.post("/upload", content=body, headers=headers)
    assert (response.status_code, response.json()["type"]) == (503, "urn:howdah:problem:too-many-streams")
    assert (await service.client.post("/upload", content=b"\n", headers=headers)).json() == 0


async def test_a_client_that_receives_too_slowly_is_disconnected(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    reader = await service.connect("GET /impatient-export HTTP/1.1")
    await reader.readuntil(b"\r\n\r\n")

    async def is_deleted() -> bool:
        return _spool.stored_bytes() == 0

    await until(service.is_idle)
    await until(is_deleted)
    received = await asyncio.wait_for(reader.read(), 5)
    assert not received.endswith(b"0\r\n\r\n")
    assert "Traceback" not in caplog.text


async def test_stored_bodies_and_responses_have_no_name_in_the_file_system(
    service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """So they are deleted even if the process is killed."""
    monkeypatch.setattr(_spool, "READ_AHEAD_BYTES_PER_SECOND", 1e9)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    await connect_all(lambda: service.connect("GET /export HTTP/1.1"))
    await service.connect(upload("/upload"), LINE * 20_000)

    async def is_stored() -> bool:
        return _spool.stored_bytes() > CLIENTS * 1_000_000

    await until(is_stored)
    assert [*tmp_path.iterdir()] == []
    for writer in service.writers:
        writer.transport.abort()

    async def is_deleted() -> bool:
        return _spool.stored_bytes() == 0

    await until(is_deleted)


async def test_an_upload_is_written_completely_and_a_retry_gets_its_answer(committed_url: str) -> None:
    async with serve(committed_url) as service:
        async with service.database.engine.begin() as connection:
            await connection.run_sync(IdempotentRequest.metadata.create_all)
        await check_retry(service)


async def check_retry(service: Service) -> None:
    rows = b"".join(b'{"email": "%d", "name": "Ada"}\n' % number for number in range(20_000))
    headers = {"Content-Type": NDJSON, "Idempotency-Key": "b"}
    first, second = [await service.client.post("/upload-with-key", content=rows, headers=headers) for _ in range(2)]
    assert (first.json(), second.json(), second.headers["idempotency-replayed"]) == (20_000, 20_000, "true")
    other = await service.client.post("/upload-with-key", content=rows[:-30], headers=headers)
    assert other.json()["type"] == "urn:howdah:problem:idempotency-key-reused"
    assert (await service.client.get("/users")).json() == 20_000


async def test_a_read_session_that_would_be_held_until_the_response_is_sent_is_rejected(database: Database) -> None:
    app = create_app(database)

    @app.get("/")
    async def read(db: Annotated[AsyncSession, Depends(get_read_db)]) -> None: ...

    async with http_client(app) as client:
        app.dependency_overrides[get_database] = lambda: database
        assert (await client.get("/")).status_code == HTTPStatus.INTERNAL_SERVER_ERROR


@pytest.mark.parametrize("kind", ["insert", "upsert"])
async def test_a_bulk_write_takes_no_connection_before_its_input_begins(real_database: Database, kind: str) -> None:
    """Control: it holds one while it waits for the second chunk."""
    in_use: list[int] = []

    async def rows() -> AsyncIterator[dict[str, str]]:
        for number in range(2):
            in_use.append(real_database.pool_status().in_use)
            yield {"email": str(number), "name": "a"}

    async with real_database.session() as session:
        users = AsyncRepository(session, User)
        if kind == "insert":
            await users.create_many(rows(), chunk_size=1)
        else:
            await users.upsert_many(rows(), on=["email"], chunk_size=1)
        await session.execute(text("SELECT 1"))
        await session.rollback()
    assert in_use == [0, 1]
