"""Requests whose client has disconnected stop, in the application and in PostgreSQL."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from itertools import cycle
from typing import Annotated

import pytest
from fastapi import APIRouter, Depends, Response
from sqlalchemy import text
from starlette.background import BackgroundTask

from howdah import Database
from howdah.fastapi import DbSession, ReadDbSession, configure_app, finish_without_client, get_database
from howdah_tests.support.path_pairs import MARKS, Mark
from howdah_tests.support.served_apps import PROTOCOLS, MakeProtocol, RawClient, ServedApp, served
from howdah_tests.support.untraced import create_fastapi
from howdah_tests.support.waiting import until

AT_A_TIME = 24
BUSY = 2  # some connections of the pool are reserved for batches
WAVES = 4

ACTIVE = text(
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE datname = current_database() AND application_name = 'heavy' AND state = 'active'"
)
SLEEP_AT_COMMIT = (
    "CREATE TABLE abandoned_commits (id int)",
    "CREATE FUNCTION sleep_at_commit() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END $$",
    "CREATE CONSTRAINT TRIGGER sleep_at_commit AFTER INSERT ON abandoned_commits "
    "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sleep_at_commit()",
)


@pytest.fixture(params=[*PROTOCOLS.values()], ids=[*PROTOCOLS])
def protocol(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MakeProtocol:
    monkeypatch.setattr("howdah.fastapi.in_progress._WATCHED_AFTER_SECONDS", 0.05)
    found: MakeProtocol = request.param
    return found


class HeavyApp:
    """Routes that take long: `/direct/read` is a direct route, and FastAPI serves `/fastapi/read`."""

    def __init__(self, database_url: str, *, cancel_abandoned: bool = True) -> None:
        self.app = create_fastapi()
        self.entered = self.finished = self.mailed = 0
        self.released = asyncio.Event()
        configure_app(
            self.app,
            database=lambda: Database(database_url, pool_size=5, max_overflow=0, application_name="heavy"),
            cancel_abandoned=cancel_abandoned,
        )

        for name, mark in MARKS.items():
            router = APIRouter(prefix=f"/{name}")
            self._add_routes(router, mark)
            self.app.include_router(router)

    def _add_routes(self, router: APIRouter, mark: Mark) -> None:
        @router.get("/read")
        @mark
        async def read(db: ReadDbSession) -> None:
            await db.execute(text("SELECT pg_sleep(20)"))

        @router.post("/write")
        @mark
        async def write(db: DbSession) -> None:
            await db.execute(text("SELECT pg_sleep(20)"))

        @router.get("/sessionless")
        @mark
        async def use_database(database: Annotated[Database, Depends(get_database)]) -> None:
            async with database.begin() as session:
                await session.execute(text("SELECT pg_sleep(20)"))

        @router.post("/commit")
        @mark
        async def commit(db: DbSession) -> Response:
            await db.execute(text("INSERT INTO abandoned_commits VALUES (1)"))
            self.entered += 1
            return Response(background=BackgroundTask(self.mail))

        @router.post("/commit-block")
        @mark
        async def commit_block(database: Annotated[Database, Depends(get_database)]) -> None:
            async with database.begin() as session:
                await session.execute(text("INSERT INTO abandoned_commits VALUES (1)"))

        @router.post("/pay", dependencies=[Depends(finish_without_client)])
        @mark
        async def pay() -> None:
            self.entered += 1
            await self.released.wait()
            self.finished += 1

    async def mail(self) -> None:
        self.mailed += 1


@pytest.fixture
async def monitor(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url, pool_size=1) as database:
        yield database


async def count_active(monitor: Database) -> int:
    async with monitor.session() as session:
        return await session.scalar(ACTIVE) or 0


async def read_metrics_when(client: RawClient, line: str) -> str:
    """The metrics as soon as they have the line."""
    body = ""

    async def has_line() -> bool:
        nonlocal body
        body = (await client.get("/metrics")).body.decode()
        return line in body

    await until(has_line)
    return body


async def send_on_both_paths(server: ServedApp, path: str) -> list[RawClient]:
    """The clients, which wait for a response."""
    clients = [await server.connect() for _ in MARKS]
    for client, name in zip(clients, MARKS, strict=True):
        client.send("POST", f"/{name}{path}")
    return clients


async def until_busy(monitor: Database) -> None:
    async def is_busy() -> bool:
        return await count_active(monitor) >= BUSY

    await until(is_busy)


async def until_committing(monitor: Database) -> None:
    committing = text("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query ILIKE 'COMMIT%'")

    async def is_committing() -> bool:
        async with monitor.session() as session:
            return (await session.scalar(committing) or 0) == len(MARKS)

    await until(is_committing)


async def until_inactive(monitor: Database) -> None:
    async def is_inactive() -> bool:
        return await count_active(monitor) == 0

    await until(is_inactive)


@pytest.mark.parametrize("route", ["GET /read", "POST /write", "GET /sessionless"])
async def test_requests_without_a_client_stop_and_so_do_their_statements(
    database_url: str,
    monitor: Database,
    protocol: MakeProtocol,
    route: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    method, path = route.split()
    heavy = HeavyApp(database_url)
    async with served(heavy.app, protocol) as server:
        for _ in range(WAVES):
            clients = [await server.connect() for _ in range(AT_A_TIME)]
            for client, name in zip(clients, cycle(MARKS), strict=False):
                client.send(method, f"/{name}{path}")
            await until_busy(monitor)  # the others wait for a connection
            for client in clients:
                client.close()
            async with server.client() as other, asyncio.timeout(2):
                assert (await other.get("/healthz")).status == 200
            await until_inactive(monitor)
        async with server.client() as other, asyncio.timeout(5):
            assert (await other.get("/readyz")).status == 200  # a connection is free
            # those that waited for a connection may be noticed later than those that had one
            body = await read_metrics_when(other, f"howdah_requests_abandoned_total {AT_A_TIME * WAVES:.1f}")
    for name in MARKS:
        assert f'method="{method}",route="/{name}{path}",status="499"}} {AT_A_TIME * WAVES / 2:.1f}' in body
    assert 'howdah_pool_connections{database="main",state="in_use"} 0.0' in body
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []


async def test_control_without_cancellation_requests_continue_without_a_client(
    database_url: str, monitor: Database, protocol: MakeProtocol
) -> None:
    heavy = HeavyApp(database_url, cancel_abandoned=False)
    async with served(heavy.app, protocol) as server:
        clients = [await server.connect() for _ in range(AT_A_TIME)]
        for client in clients:
            client.send("GET", "/fastapi/read")
        await until_busy(monitor)
        for client in clients:
            client.close()
        async with server.client() as other:
            for _ in range(3):
                assert (await other.get("/healthz")).status == 200
        await asyncio.sleep(0.3)
        assert await count_active(monitor) >= BUSY
        async with monitor.session() as session:  # ends those that hold a connection, and those that wait for one
            end = text("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = 'heavy'")
            for _ in range(AT_A_TIME):
                await session.execute(end)
                await asyncio.sleep(0.02)


@pytest.fixture
async def slow_commits(monitor: Database) -> AsyncIterator[None]:
    async with monitor.begin() as session:
        for statement in SLEEP_AT_COMMIT:
            await session.execute(text(statement))
    yield
    async with monitor.begin() as session:
        await session.execute(text("DROP TABLE abandoned_commits"))
        await session.execute(text("DROP FUNCTION sleep_at_commit"))


async def count_commits(monitor: Database) -> int:
    async with monitor.session() as session:
        return await session.scalar(text("SELECT count(*) FROM abandoned_commits")) or 0


@pytest.mark.usefixtures("slow_commits")
async def test_a_commit_is_finished_and_background_tasks_run(
    database_url: str, monitor: Database, protocol: MakeProtocol
) -> None:
    heavy = HeavyApp(database_url)
    async with served(heavy.app, protocol) as server:
        clients = await send_on_both_paths(server, "/commit")
        await until_committing(monitor)
        for client in clients:
            client.close()
        await until(lambda: _is_true(heavy.mailed == 2))
    assert await count_commits(monitor) == 2


@pytest.mark.usefixtures("slow_commits")
async def test_the_commit_of_a_block_is_finished(database_url: str, monitor: Database, protocol: MakeProtocol) -> None:
    heavy = HeavyApp(database_url)
    async with served(heavy.app, protocol) as server:
        clients = await send_on_both_paths(server, "/commit-block")
        await until_committing(monitor)
        for client in clients:
            client.close()
        async with server.client() as other:
            await read_metrics_when(other, "howdah_requests_abandoned_total 2.0")
    assert await count_commits(monitor) == 2


async def test_a_route_can_finish_without_its_client(database_url: str, protocol: MakeProtocol) -> None:
    heavy = HeavyApp(database_url)
    async with served(heavy.app, protocol) as server:
        clients = await send_on_both_paths(server, "/pay")
        await until(lambda: _is_true(heavy.entered == 2))
        for client in clients:
            client.close()
        async with server.client() as other:
            await _until_noticed(other)
        heavy.released.set()
        await until(lambda: _is_true(heavy.finished == 2))


async def _is_true(value: bool) -> bool:
    return value


async def _until_noticed(client: RawClient) -> None:
    """Wait longer than the server needs to notice a disconnect."""
    for _ in range(4):
        assert (await client.get("/healthz")).status == 200
        await asyncio.sleep(0.05)
