"""Routes with all kinds of responses, errors, sessions and dependencies with `yield`."""

# No `from __future__ import annotations`: FastAPI can't resolve the name of a local type in a string.

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from http import HTTPStatus
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from pydantic import BaseModel
from sqlalchemy import Integer, literal, select, text
from starlette.background import BackgroundTask

from howdah import JsonView
from howdah._reads.lookups import JsonBytes
from howdah.fastapi import (
    DbSession,
    ExportFormat,
    PageParameters,
    ReadDbSession,
    Resource,
    export_response,
    json_response,
    list_response,
    make_etag,
)
from howdah_tests.support.idempotent_app import Note
from howdah_tests.support.path_errors import ERRORS, UnhandledError, fail
from howdah_tests.support.path_inputs import PathItemOut
from howdah_tests.support.path_pairs import Mark

JSON: Final = JsonBytes(b'{"id":1,"name":"caf\xc3\xa9"}')


CREATE_ROWS: Final = (
    "INSERT INTO notes (id, text) SELECT CAST(lpad(n::text, 32, '0') AS uuid), n FROM generate_series(1, 5) AS n",
    "CREATE TABLE path_rows (name text)",
    "CREATE FUNCTION reject_late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "IF NEW.name = 'late' THEN RAISE unique_violation USING CONSTRAINT = 'late'; END IF; "
    "IF NEW.name = 'conflict' THEN RAISE serialization_failure; END IF; RETURN NULL; END $$",
    "CREATE CONSTRAINT TRIGGER reject_late AFTER INSERT ON path_rows DEFERRABLE INITIALLY DEFERRED "
    "FOR EACH ROW EXECUTE FUNCTION reject_late()",
)


class PathNoteOut(BaseModel):
    id: UUID
    text: str


note_reader: Final = Resource("note", JsonView(Note, PathNoteOut).open)


class ShoutingResponse(PlainTextResponse):
    def render(self, content: Any) -> bytes:
        return str(content).upper().encode()


def add_responses(router: APIRouter, mark: Mark) -> None:
    @router.get("/json")
    @mark
    async def get_json(request: Request) -> Response:
        return json_response(JSON, request)

    @router.get("/changed/{status}")
    @mark
    async def get_changed(status: int, response: Response) -> dict[str, int]:
        response.status_code = status
        response.headers["X-Status"] = str(status)
        response.headers.append("Vary", "Accept")
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        response.headers["ETag"] = make_etag(status)
        return {"status": status}

    async def change(response: Response) -> None:
        response.status_code = 202
        response.headers["X-Changed"] = "by a dependency"

    @router.get("/changed-by-dependency", dependencies=[Depends(change)])
    @mark
    async def get_changed_by_dependency() -> str:
        return "value"

    @router.get("/own-response", dependencies=[Depends(change)])
    @mark
    async def get_own_response() -> Response:
        return PlainTextResponse("own", 203)

    @router.delete("/nothing", status_code=HTTPStatus.NO_CONTENT)
    @mark
    async def delete_nothing() -> None: ...

    @router.get("/none")
    @mark
    async def get_none() -> None: ...

    @router.get("/shouting", response_class=ShoutingResponse)
    @mark
    async def get_shouting() -> str:
        return "loud"

    @router.get("/untyped", response_model=None, response_class=JSONResponse)
    @mark
    async def get_untyped() -> Any:
        return {"when": UUID(int=1), "set": {1}}

    @router.get("/redirect", response_class=RedirectResponse)
    @mark
    async def get_redirect() -> str:
        return "/elsewhere"

    @router.get("/excluded", response_model_exclude={"price"}, response_model_exclude_defaults=True)
    @mark
    async def get_excluded() -> PathItemOut:
        return PathItemOut(name="a", count=5, price=1.5)

    @router.get("/invalid-response", response_model=PathItemOut)
    @mark
    async def get_invalid() -> Any:
        return {"name": 5}

    @router.get("/nan", response_model=None, response_class=JSONResponse)
    @mark
    async def get_nan() -> Any:
        return float("nan")

    @router.get("/stream")
    @mark
    async def get_stream(broken: bool = False) -> StreamingResponse:
        async def generate() -> AsyncIterator[bytes]:
            yield b"first,"
            if broken:
                raise UnhandledError("secret")
            yield b"second"

        return StreamingResponse(generate(), headers={"X-Streams": "yes"})

    @router.get("/background/{name}")
    @mark
    async def get_background(name: str) -> Response:
        async def run() -> None:
            if name in ERRORS:
                fail(name)

        return Response(name, background=BackgroundTask(run))

    @router.get("/hang")
    @mark
    async def hang() -> None:
        await asyncio.Event().wait()

    cleaned: list[str] = []

    async def clean(name: Annotated[str, Query()] = "") -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asyncio.sleep(0)
            cleaned.append(name)

    @router.get("/cleaned/{what}", dependencies=[Depends(clean, scope="function")])
    @mark
    async def get_cleaned(what: str) -> list[str]:
        if what == "hang":
            await asyncio.Event().wait()
        return cleaned

    @router.get("/errors/{name}")
    @mark
    async def get_error(name: str) -> None:
        fail(name)

    @router.put("/methods")
    @router.patch("/methods")
    @mark
    async def change_methods(request: Request) -> str:
        return request.method

    @router.api_route("/several", methods=["GET", "POST", "OPTIONS"])
    @mark
    async def get_several(request: Request) -> str:
        return request.method

    @router.head("/only-head")
    @mark
    async def head_only() -> Response:
        return Response(headers={"X-Head": "yes"})


def add_sessions(router: APIRouter, mark: Mark) -> None:
    @router.post("/commits/{name}", status_code=HTTPStatus.CREATED)
    @mark
    async def commit(name: str, db: DbSession, response: Response) -> dict[str, str]:
        """Write a row whose commit fails if its text is `late`."""
        response.headers["X-Written"] = "yes"
        await db.execute(text("INSERT INTO path_rows VALUES (:name)"), {"name": name})
        if name in ERRORS:
            fail(name)
        return {"name": name}

    @router.get("/commits")
    @mark
    async def count_commits(db: ReadDbSession) -> int:
        return await db.scalar(text("SELECT count(*) FROM path_rows")) or 0

    @router.get("/write-in-read-session")
    @mark
    async def write(db: ReadDbSession) -> None:
        await db.execute(text("INSERT INTO path_rows VALUES ('never')"))

    @router.get("/exports/{count}", response_class=StreamingResponse)
    @mark
    async def export(count: int, db: ReadDbSession, format: ExportFormat = ExportFormat.NDJSON) -> Response:
        """Fails at the last row if there are more than 1,000."""
        fail_late = "1 / (:count - n)" if count > 1_000 else "n"
        rows = text(f"SELECT n, {fail_late} AS value FROM generate_series(1, :count) AS n").bindparams(count=count)
        return await export_response(db, rows.columns(n=Integer, value=Integer), format, name="n")

    @router.get("/own-stream")
    @mark
    async def stream_from_session(db: ReadDbSession) -> Response:
        async def generate() -> AsyncIterator[bytes]:
            for number in range(3):
                yield f"{await db.scalar(select(literal(number)))}\n".encode()

        return StreamingResponse(generate())

    @router.get("/views")
    @mark
    async def get_views(
        parameters: Annotated[PageParameters, Query()], notes: Annotated[Any, Depends(note_reader)]
    ) -> Response:
        return await list_response(notes, parameters)

    @router.get("/views/{note_id}")
    @mark
    async def get_view(note_id: UUID, request: Request, notes: Annotated[Any, Depends(note_reader)]) -> Response:
        return json_response(await notes.get(note_id), request)

    async def yield_function(before: str = "", after: str = "") -> AsyncIterator[str]:
        if before:
            fail(before)
        yield "function"
        if after:
            fail(after)

    async def yield_request(late: str = "") -> AsyncIterator[str]:
        yield "request"
        if late:
            fail(late)

    async def translate(translated: str = "") -> AsyncIterator[None]:
        try:
            yield
        except UnhandledError as error:
            if translated == "swallow":
                return
            if translated:
                raise HTTPException(409, translated) from error
            raise

    async def swallow() -> AsyncIterator[None]:
        with suppress(UnhandledError):
            yield

    @router.get("/swallowed-late", dependencies=[Depends(swallow)])
    @mark
    async def get_swallowed() -> None:
        fail("unexpected")

    @router.get("/yields/{name}", dependencies=[Depends(translate, scope="function")])
    @mark
    async def get_yields(
        name: str,
        first: Annotated[str, Depends(yield_function, scope="function")],
        second: Annotated[str, Depends(yield_request, scope="request")],
    ) -> list[str]:
        if name in ERRORS:
            fail(name)
        return [name, first, second]
