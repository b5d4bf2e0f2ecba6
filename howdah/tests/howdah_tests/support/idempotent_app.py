"""An application with idempotent routes. `python -m` runs it in its own process: `URL PORT`."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import httpx
import uvicorn
from fastapi import APIRouter, FastAPI, Header, Request, Response
from pydantic import BaseModel
from sqlalchemy import MetaData, Text, func, select, text
from sqlalchemy.orm import Mapped, mapped_column

import howdah
from howdah import NAMING_CONVENTION, Base, Database, UUIDv7PrimaryKey
from howdah.fastapi import (
    DbSession,
    IdempotentRoute,
    StrictJSONRoute,
    idempotency_key,
    problem_response,
)
from howdah_tests.support.fastapi_apps import create_bare_app


class Model(Base):
    """Has its own metadata: only the tests of idempotent requests create these tables."""

    __abstract__ = True
    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class IdempotentRequest(howdah.IdempotentRequest, Model):
    __tablename__ = "idempotent_requests"


class Note(UUIDv7PrimaryKey, Model):
    __tablename__ = "notes"

    text: Mapped[str] = mapped_column(Text)


class NoteIn(BaseModel):
    text: str


async def get_caller(x_caller: Annotated[str, Header()] = "") -> str:
    return x_caller


class StrictIdempotentRoute(IdempotentRoute, StrictJSONRoute):
    """The combination that the documentation shows."""


note_key = idempotency_key(IdempotentRequest, scope=get_caller)
required_key = idempotency_key(IdempotentRequest, scope=get_caller, required=True, max_wait_seconds=0.05)
router = APIRouter(route_class=StrictIdempotentRoute)


@router.post("/notes", status_code=HTTPStatus.CREATED, dependencies=[note_key])
async def create_note(body: NoteIn, db: DbSession, response: Response) -> dict[str, Any]:
    note = Note(text=f"/notes {body.text}")
    db.add(note)
    await db.flush()
    response.headers["Location"] = f"/notes/{note.id}"
    response.headers.append("Set-Cookie", "a=1")
    response.headers.append("Set-Cookie", "b=2")
    return {"id": note.id, "text": note.text, "total": 1.50}


@router.post("/notes/required", dependencies=[required_key])
async def create_required_note(body: NoteIn, db: DbSession) -> UUID:
    note = Note(text=body.text)
    db.add(note)
    await db.flush()
    return note.id


@router.post("/notes/refused", dependencies=[note_key])
async def refuse_note(body: NoteIn, db: DbSession, status: int = HTTPStatus.CONFLICT) -> Response:
    """Write a row, and return a problem. It is the n-th row, so a repeated run gives another response."""
    db.add(Note(text=body.text))
    count = await db.scalar(select(func.count()).select_from(Note))
    return problem_response(status, "refused", detail=f"refusal {count}")


@router.post("/notes/lines", dependencies=[note_key])
async def create_notes(request: Request, db: DbSession) -> int:
    """Read the body in parts, and stop at an empty line."""
    count, rest = 0, b""
    async for chunk in request.stream():
        *lines, rest = (rest + chunk).split(b"\n")
        is_end = b"" in lines
        if is_end:
            lines = lines[: lines.index(b"") + 1]
        db.add_all(Note(text=line.decode()) for line in lines if line)
        count += len(lines)
        if is_end:
            break
    return count


def create_app(database: Database) -> FastAPI:
    app = create_bare_app(database)
    app.include_router(router)

    @app.post("/stored-later/notes", status_code=HTTPStatus.CREATED)
    async def create_note_and_store_later(body: NoteIn, idempotency_key: Annotated[str, Header()]) -> Response:
        """For a control test: the response is stored in a transaction of its own, after the commit of its effects."""
        async with database.session() as session:
            stored = await session.get(IdempotentRequest, ("", idempotency_key))
            if stored is not None:
                return Response(stored.body, stored.status or 0, {"Idempotency-Replayed": "true"})
        async with database.begin() as session:
            session.add(Note(text=f"/stored-later/notes {body.text}"))
        async with database.begin() as session:
            session.add(IdempotentRequest(scope="", key=idempotency_key, status=201, body=b"created"))
        return Response(b"created", HTTPStatus.CREATED)

    return app


BODY = {"text": "a"}


async def post(
    client: httpx.AsyncClient, key: str | None = "k", path: str = "/notes", *, caller: str = "", **options: Any
) -> httpx.Response:
    headers = {"X-Caller": caller} | ({} if key is None else {"Idempotency-Key": key})
    return await client.post(path, headers=headers | options.pop("headers", {}), **({"json": BODY} | options))


def without_replayed(response: httpx.Response) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    headers = [each for each in response.headers.raw if each[0].lower() != b"idempotency-replayed"]
    return response.status_code, headers, response.content


def is_replay(response: httpx.Response) -> bool:
    return "idempotency-replayed" in response.headers


def serve(database: Database, endpoint: Callable[..., Any], **options: Any) -> FastAPI:
    """An application with one idempotent route, `POST /`."""
    router = APIRouter(route_class=IdempotentRoute)
    router.post("/", **({"dependencies": [note_key]} | options))(endpoint)
    app = create_bare_app(database)
    app.include_router(router)
    return app


async def create_tables(database: Database) -> None:
    async with database.engine.begin() as connection:
        await connection.run_sync(Model.metadata.create_all)


async def count_notes(database: Database, note: str | None = None) -> int:
    """The number of notes, or of those with this text."""
    counted = select(func.count()).select_from(Note)
    async with database.session() as session:
        return await session.scalar(counted if note is None else counted.where(Note.text == note)) or 0


async def read_stored(database: Database) -> list[IdempotentRequest]:
    async with database.session() as session:
        return list(await session.scalars(select(IdempotentRequest).order_by(IdempotentRequest.key)))


COMMIT_LOCK = 4711


async def wait_in_commit(database: Database) -> None:
    """Make each COMMIT of a new note wait for the advisory lock `COMMIT_LOCK`."""
    async with database.begin() as session:
        await session.execute(
            text(
                "CREATE FUNCTION wait_in_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                f"PERFORM pg_advisory_xact_lock({COMMIT_LOCK}); RETURN NULL; END $$"
            )
        )
        await session.execute(
            text(
                "CREATE CONSTRAINT TRIGGER wait_in_commit AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION wait_in_commit()"
            )
        )


@asynccontextmanager
async def run_in_process(url: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, httpx.AsyncClient]]:
    """Run the application in a process of its own. It is killed at the end."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    folder = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, url, str(port)),
        env=os.environ | {"PYTHONPATH": str(folder)},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client, asyncio.timeout(30):
            while True:
                assert process.returncode is None
                try:
                    await client.get("/")
                    break
                except httpx.ConnectError:
                    await asyncio.sleep(0.02)
            yield process, client
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _serve(url: str, port: int) -> None:
    async with Database(url) as database:
        config = uvicorn.Config(create_app(database), port=port, log_config=None, access_log=False)
        await uvicorn.Server(config).serve()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
