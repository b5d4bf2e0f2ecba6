"""A route with a tenant's session and view reader, and what happens without a tenant."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database
from howdah.fastapi import get_database, json_response, session_from
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
