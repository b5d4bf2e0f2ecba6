"""A route with a tenant's session and view reader, and what happens without a tenant."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import HTTPConnection

from howdah import Database
from howdah.fastapi import (
    Resource,
    configure_app,
    find_named_database,
    get_database,
    json_response,
    reader_from,
    session_from,
)
from howdah.testing import open_client
from howdah_tests.support.fastapi_apps import asgi_client, create_bare_app
from howdah_tests.support.tenants import SETTING, Note, NoteReader, NoteView, create_notes


async def get_tenant(tenant: Annotated[int | None, Header()] = None) -> int | None:
    if tenant == 0:
        raise HTTPException(401)
    return tenant


async def get_tenant_database(
    tenant: Annotated[int, Depends(get_tenant)], database: Annotated[Database, Depends(get_database)]
) -> Database:
    return database.with_settings({SETTING: tenant})


TenantDatabase = Annotated[Database, Depends(get_tenant_database)]
TenantDb = Annotated[AsyncSession, session_from(get_tenant_database)]
TenantReadDb = Annotated[AsyncSession, session_from(get_tenant_database, read_only=True)]


def create_app(database: Database, notes: NoteReader) -> FastAPI:
    app = create_bare_app(database)

    @app.get("/notes")
    async def list_notes(db: TenantReadDb) -> list[int]:
        return [*await db.scalars(select(Note.tenant_id))]

    @app.get("/notes/{note_id}")
    async def get_note(note_id: int, database: TenantDatabase) -> Any:
        return json_response(await notes.scoped(database).get(note_id))

    @app.post("/notes")
    async def create_note(note_id: int, tenant_id: int, db: TenantDb) -> int:
        db.add(Note(id=note_id, tenant_id=tenant_id))
        return note_id

    return app


note_reader = Resource("note", NoteView.open)


async def find_database(connection: HTTPConnection) -> Database:
    if connection.headers.get("tenant") == "all":
        return find_named_database(connection, "all")
    return (await get_database(connection)).with_settings({SETTING: connection.headers["tenant"]})


Notes = Annotated[NoteReader, reader_from(note_reader, find_database)]


@pytest.fixture
async def database(committed_url: str) -> AsyncIterator[Database]:
    async with create_notes(committed_url) as url, Database(url, pool_size=2, max_overflow=0) as database:
        yield database


@pytest.fixture
async def client(database: Database) -> AsyncIterator[httpx.AsyncClient]:
    async with NoteView.open(database) as notes, asgi_client(create_app(database, notes)) as client:
        yield client


async def test_a_route_reads_and_writes_the_rows_of_its_tenant(client: httpx.AsyncClient, database: Database) -> None:
    one, two = {"tenant": "1"}, {"tenant": "2"}
    assert (await client.get("/notes", headers=one)).json() == [1, 1, 1]
    assert (await client.get("/notes/0", headers=one)).json() == {"id": 0, "tenant_id": 1}
    assert (await client.get("/notes/0", headers=two)).status_code == 404
    created = await client.post("/notes", params={"note_id": 100, "tenant_id": 2}, headers=two)
    assert created.status_code == 200
    assert (await client.get("/notes/100", headers=two)).json() == {"id": 100, "tenant_id": 2}
    foreign = await client.post("/notes", params={"note_id": 101, "tenant_id": 1}, headers=two)
    assert foreign.status_code == 403
    assert foreign.json() == {
        "type": "urn:howdah:problem:policy-violation",
        "title": "Forbidden",
        "status": 403,
        "detail": "A row-level-security policy doesn't allow this row to be written.",
    }
    assert (await client.get("/notes", headers=one)).json() == [1, 1, 1]


async def test_without_a_tenant_nothing_is_sent_to_the_database(client: httpx.AsyncClient, database: Database) -> None:
    for headers, status in (({}, 500), ({"tenant": "0"}, 401), ({"tenant": "x"}, 422)):
        for path in ("/notes", "/notes/0"):
            assert (await client.get(path, headers=headers)).status_code == status
        assert (await client.post("/notes?note_id=7&tenant_id=1", headers=headers)).status_code == status
    assert database.pool_status().idle == 0  # no connection was ever opened


async def test_a_dependency_that_returns_no_database_is_rejected(committed_database: Database) -> None:
    app = create_bare_app(committed_database)

    @app.get("/")
    async def route(db: Annotated[AsyncSession, session_from(lambda: None)]) -> None: ...

    async with asgi_client(app) as client:
        assert (await client.get("/")).status_code == 500


def create_configured_app(*, resources: list[Resource[Any]]) -> FastAPI:
    app = FastAPI()
    nowhere = "postgresql://127.0.0.1:1/none"
    configure_app(
        app,
        database=lambda: Database(nowhere),
        databases={"all": lambda: Database(nowhere)},
        resources=resources,
        metrics=False,
    )

    @app.get("/notes/{note_id}")
    async def get_note(note_id: int, notes: Notes) -> Any:
        return json_response(await notes.get(note_id))

    return app


async def test_a_reader_reads_the_database_that_is_found_for_the_request(
    database: Database, committed_url: str
) -> None:
    app = create_configured_app(resources=[note_reader])
    async with (
        Database(committed_url) as owner,  # no policy applies to it
        open_client(app, {"main": database, "all": owner}) as client,
    ):
        answers = await asyncio.gather(
            *(client.get("/notes/0", headers={"tenant": each}) for each in ("1", "2", "all") for _ in range(5))
        )
    assert [each.status_code for each in answers] == [200] * 5 + [404] * 5 + [200] * 5


async def test_an_application_that_does_not_open_the_reader_does_not_start(database: Database) -> None:
    with pytest.raises(RuntimeError, match="does not open the resource 'note'"):
        async with open_client(create_configured_app(resources=[]), {"main": database, "all": database}):
            pass
