"""On a disk that is really full, answers are 503, no acknowledged row is lost, and the service recovers."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import Response
from sqlalchemy import text

from howdah import Database
from howdah.embedded import EmbeddedPostgres
from howdah.fastapi import DbSession
from howdah_tests.support.embedded_servers import open_folder
from howdah_tests.support.fastapi_apps import asgi_client, create_bare_app

MEGABYTE = 1_000_000


async def run_program(*command: str) -> str | None:
    """Run a program. Return its error output if it fails."""
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    message = (await process.communicate())[1].decode()
    return message if process.returncode else None


@asynccontextmanager
async def mount_small_disk(folder: Path, owner: Path, megabytes: int) -> AsyncIterator[None]:
    """A file system of this size, whose files belong to the owner of `owner`."""
    status = owner.stat()
    options = f"size={megabytes}m,mode=700,uid={status.st_uid},gid={status.st_gid}"
    if shutil.which("mount") is None:
        pytest.skip("there is no program `mount`")
    if problem := await run_program("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)):
        pytest.skip(f"this user can't mount a file system: {problem}")
    try:
        yield
    finally:
        assert await run_program("umount", "--lazy", str(folder)) is None


@pytest.fixture
def space() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


def fill(disk: Path, megabytes: float) -> Path:
    """A file that the test deletes to make room."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(int(megabytes * MEGABYTE)))
    return ballast


@asynccontextmanager
async def notes_client(database: Database) -> AsyncIterator[httpx.AsyncClient]:
    """A service that stores notes. The database has a table `notes`."""
    app = create_bare_app(database)

    @app.post("/notes/{number}")
    async def store(number: int, db: DbSession) -> Response:
        values = {"number": number, "content": os.urandom(MEGABYTE // 4)}  # can't be compressed
        await db.execute(text("INSERT INTO notes VALUES (:number, :content)"), values)
        return Response(status_code=201)

    async with asgi_client(app) as client:
        yield client


async def store_until_full(client: httpx.AsyncClient) -> tuple[list[int], httpx.Response]:
    """Store notes until one is rejected. Returns the acknowledged ones, and the response of the rejected one."""
    for number in range(1_000):
        response = await client.post(f"/notes/{number}")
        if response.status_code != 201:
            return list(range(number)), response
    raise AssertionError("the disk isn't full")


async def stored_notes(database: Database) -> list[int]:
    async with database.session() as session:
        return list(await session.scalars(text("SELECT number FROM notes ORDER BY number")))


def assert_unavailable(response: httpx.Response, code: str) -> None:
    assert (response.status_code, response.json()["type"]) == (503, f"urn:howdah:problem:{code}")
    assert response.headers["retry-after"] in {"1", "2", "3"}


@asynccontextmanager
async def notes_service(server: EmbeddedPostgres) -> AsyncIterator[tuple[Database, httpx.AsyncClient]]:
    async with Database(server.url(), connect_timeout=1) as database, notes_client(database) as client:
        yield database, client


async def test_a_full_tablespace_rejects_writes_and_loses_nothing(used_data: Path, space: Path) -> None:
    async with mount_small_disk(space, used_data, 6):
        with EmbeddedPostgres(used_data) as server:
            async with notes_service(server) as (database, client):
                async with database.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
                    await connection.execute(text(f"CREATE TABLESPACE small LOCATION '{space}'"))
                    await connection.execute(text("CREATE TABLE notes (number int, content bytea) TABLESPACE small"))
                ballast = fill(space, 3)
                acknowledged, rejected = await store_until_full(client)
                assert_unavailable(rejected, "out-of-resources")
                assert acknowledged
                assert await stored_notes(database) == acknowledged, "reads go on"

                ballast.unlink()
                assert (await client.post("/notes/500")).status_code == 201
                assert await stored_notes(database) == [*acknowledged, 500]

        # a disk with errors is often mounted again as read-only
        assert await run_program("mount", "-o", "remount,ro", str(space)) is None
        with EmbeddedPostgres(used_data) as server:
            async with notes_service(server) as (database, client):
                assert_unavailable(await client.post("/notes/600"), "system-failure")
        assert await run_program("mount", "-o", "remount,rw", str(space)) is None
        with EmbeddedPostgres(used_data) as server:
            async with notes_service(server) as (database, client):
                assert (await client.post("/notes/700")).status_code == 201
                assert await stored_notes(database) == [*acknowledged, 500, 700]
                async with database.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
                    await connection.execute(text("DROP TABLE notes"))
                    await connection.execute(text("DROP TABLESPACE small"))


@pytest.mark.slow
async def test_a_full_disk_of_the_wal_stops_the_server_and_loses_nothing(used_data: Path) -> None:
    """PostgreSQL panics, because it can't write its WAL. It can't even start again until there is space."""
    with open_folder() as folder:
        data, log = folder / "data", folder / "data" / "pg_wal"
        assert await run_program("cp", "-a", str(used_data), str(data)) is None
        assert await run_program("cp", "-a", str(log), str(folder / "log")) is None
        async with mount_small_disk(log, data, 64):
            assert await run_program("cp", "-a", f"{folder}/log/.", str(log)) is None
            with EmbeddedPostgres(data) as server:
                async with notes_service(server) as (database, client):
                    async with database.begin() as session:
                        await session.execute(text("CREATE TABLE notes (number int, content bytea)"))
                    ballast = fill(log, 64 - 16 * 2.2)
                    acknowledged, rejected = await store_until_full(client)
                    assert_unavailable(rejected, "connection-lost")
                    assert acknowledged
                    assert (await client.post("/notes/900")).status_code == 503

                    ballast.unlink()
                    server.start()
                    async with asyncio.timeout(30):
                        while (await client.post("/notes/901")).status_code != 201:
                            await asyncio.sleep(0.05)  # the server is recovering
                    stored = await stored_notes(database)
                    assert set(acknowledged) <= set(stored)
                    assert 901 in stored
