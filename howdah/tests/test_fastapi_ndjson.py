"""Bodies with many rows, and responses with a line for each of them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from howdah import AsyncRepository, Database
from howdah.fastapi import (
    MAX_LINE_BYTES,
    NDJSON,
    BodyRows,
    DbSession,
    StrictJSONRoute,
    answer_batches,
    answer_lines,
    describe_rows_body,
    parse_line,
    read_lines,
)
from howdah.fastapi.line_results import BATCH_LINES
from howdah_tests.support.fastapi_apps import asgi_client, create_bare_app
from howdah_tests.support.sample_models import User


class UserIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    email: str
    name: Annotated[str, Field(max_length=20)]


def create_app(database: Database | None = None) -> FastAPI:
    app = create_bare_app(database)
    router = APIRouter(route_class=StrictJSONRoute)

    @router.post("/bulk", openapi_extra=describe_rows_body(UserIn))
    async def bulk(request: Request, db: DbSession) -> int:
        rows = BodyRows(request, UserIn)
        with rows.locate_errors():
            created = await AsyncRepository(db, User).create_many(
                (row.model_dump() async for row in rows), keys=False, chunk_size=500
            )
        return created.count

    @router.post("/lines", openapi_extra=describe_rows_body(UserIn, array=False))
    async def lines(request: Request) -> StreamingResponse:
        async def process(batch: Sequence[UserIn]) -> list[dict[str, Any]]:
            return [{"outcome": "created", "name": row.name, "size": len(batch)} for row in batch]

        return await answer_lines(request, UserIn, process, batch_lines=3)

    app.include_router(router)
    return app


def line(number: object, **values: Any) -> str:
    return json.dumps({"email": f"user{number}@example.com", "name": f"Ada {number}"} | values)


async def post(app: FastAPI, path: str, body: str | bytes, kind: str = NDJSON) -> httpx.Response:
    content = body.encode() if isinstance(body, str) else body
    async with asgi_client(app) as client:
        return await client.post(path, content=content, headers={"Content-Type": kind})


@pytest.mark.parametrize("kind", [NDJSON, "application/json", "application/json; charset=utf-8"])
async def test_lines_and_arrays_are_written_in_one_transaction(database: Database, kind: str) -> None:
    lines = [line(number) for number in range(1_100)]
    body = "\n".join(lines) if kind == NDJSON else f"[{','.join(lines)}]"
    response = await post(create_app(database), "/bulk", body, kind)
    assert (response.status_code, response.json()) == (200, 1_100)


@pytest.mark.parametrize("before", [0, 1, 499, 500, 1_200])
async def test_a_rejected_row_is_reported_with_its_line(database: Database, before: int) -> None:
    """Also if blank lines are between the rows, and if the row is in a later chunk."""
    async with database.begin() as session:
        await AsyncRepository(session, User).create(email="taken@example.com", name="Ada")
    rows = [line(number) + "\n" * (1 + number % 3) for number in range(before)]
    body = "\n\n" + "".join(rows) + line("", email="taken@example.com") + "\n" + line("behind")
    expected = 3 + sum(row.count("\n") for row in rows)
    response = await post(create_app(database), "/bulk", body)
    assert response.status_code == 409
    assert response.json()["line"] == expected
    assert response.json()["type"] == "urn:howdah:problem:unique-violation"
    async with database.session() as session:
        assert len([*await session.scalars(select(User))]) == 1


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("nonsense", "Expecting value|not JSON"),
        (line(1, admin=True), "admin: Extra inputs"),
        ('{"email": "a", "email": "b", "name": "c"}', "occurs more than once"),
        (line(1, name="x" * 21), "name: String should have at most 20"),
        (line(1, name="x" * MAX_LINE_BYTES), f"longer than {MAX_LINE_BYTES} bytes"),
    ],
)
async def test_an_invalid_line_fails_the_whole_body_and_is_reported(database: Database, bad: str, reason: str) -> None:
    response = await post(create_app(database), "/bulk", f"{line(0)}\n\n{bad}\n{line(2)}")
    assert response.status_code == 422
    problem = response.json()
    assert (problem["type"], problem["line"]) == ("urn:howdah:problem:invalid-line", 3)
    assert re.search(f"^line 3: .*({reason})", problem["detail"])
    async with database.session() as session:
        assert [*await session.scalars(select(User))] == []


async def test_a_body_of_another_media_type_is_rejected(database: Database) -> None:
    both, lines = [await post(create_app(database), path, "", "text/csv") for path in ("/bulk", "/lines")]
    assert (both.status_code, both.headers["accept-post"]) == (415, "application/json, application/x-ndjson")
    assert (lines.status_code, lines.headers["accept-post"]) == (415, "application/x-ndjson")
    assert both.json()["type"] == "urn:howdah:problem:unsupported-media-type"


async def test_each_line_has_an_answer_in_the_same_order() -> None:
    body = "\n".join(["", line(1), "nonsense", line(2), line(3), "{}", line(4)])
    response = await post(create_app(), "/lines", body)
    assert response.headers["content-type"] == NDJSON
    assert [json.loads(each) for each in response.content.splitlines()] == [
        {"line": 2, "outcome": "created", "name": "Ada 1", "size": 2},
        {"line": 3, "outcome": "invalid", "detail": "this is not JSON: Expecting value at character 0"},
        {"line": 4, "outcome": "created", "name": "Ada 2", "size": 2},
        {"line": 5, "outcome": "created", "name": "Ada 3", "size": 2},
        {"line": 6, "outcome": "invalid", "detail": "email: Field required"},
        {"line": 7, "outcome": "created", "name": "Ada 4", "size": 2},
    ]


async def test_the_next_batch_is_read_while_one_is_processed_and_one_is_processed_at_a_time() -> None:
    events: list[str] = []
    app = create_bare_app()

    @app.post("/")
    async def lines(request: Request) -> StreamingResponse:
        async def batches() -> AsyncIterator[dict[int, UserIn]]:
            async for number, content in read_lines(request):
                events.append(f"read {number}")
                yield {number: parse_line(number, content, UserIn)}

        async def process(batch: list[UserIn]) -> list[dict[str, Any]]:
            events.append(f"start {batch[0].name}")
            await asyncio.sleep(0)
            events.append(f"end {batch[0].name}")
            return [{}]

        return await answer_batches(batches(), process)

    response = await post(app, "/", "\n".join(line(number) for number in (1, 2, 3)))
    assert len(response.content.splitlines()) == 3
    assert events.index("read 2") < events.index("end Ada 1") < events.index("start Ada 2")
    assert [each for each in events if not each.startswith("read")] == [
        f"{what} Ada {number}" for number in (1, 2, 3) for what in ("start", "end")
    ]


async def test_an_error_of_a_batch_is_the_response_and_the_batches_before_it_were_processed() -> None:
    processed: list[int] = []
    app = create_bare_app()

    @app.post("/")
    async def lines(request: Request) -> StreamingResponse:
        async def process(batch: list[UserIn]) -> list[dict[str, Any]]:
            if processed:
                raise ZeroDivisionError
            processed.append(len(batch))
            return [{} for _ in batch]

        return await answer_lines(request, UserIn, process)

    response = await post(app, "/", "\n".join(map(line, range(BATCH_LINES + 1))))
    assert (response.status_code, processed) == (500, [BATCH_LINES])


async def test_a_wrong_number_of_results_is_an_error() -> None:
    app = create_bare_app()

    @app.post("/")
    async def lines(request: Request) -> StreamingResponse:
        async def process(batch: list[UserIn]) -> list[dict[str, Any]]:
            return [{}]

        with pytest.raises(ValueError, match="1 results for 2 rows"):
            await answer_lines(request, UserIn, process)
        raise ZeroDivisionError

    assert (await post(app, "/", f"{line(1)}\n{line(2)}")).status_code == 500


def test_the_description_has_the_body() -> None:
    paths = create_app().openapi()["paths"]
    schema = {"$ref": "#/components/schemas/UserIn"}
    assert paths["/bulk"]["post"]["requestBody"]["content"] == {
        "application/json": {"schema": {"type": "array", "items": schema}},
        NDJSON: {"schema": schema},
    }
    assert paths["/lines"]["post"]["requestBody"]["content"] == {NDJSON: {"schema": schema}}
    for path in ("/bulk", "/lines"):
        unsupported = paths[path]["post"]["responses"]["415"]
        assert unsupported["content"]["application/problem+json"]["schema"] == {"$ref": "#/components/schemas/Problem"}
        assert "Accept-Post" in unsupported["headers"]


@pytest.mark.parametrize(
    "parts",
    [
        (b" " * MAX_LINE_BYTES * 2 + b'{"email": "a"}', b"\n"),
        (b'{"email": "a", "name": "b"}' + b" " * MAX_LINE_BYTES * 2 + b"nonsense", b"\n"),
        (b'{"email": "a", "name": "b"}' + b" " * MAX_LINE_BYTES, b" nonsense"),
    ],
)
async def test_a_long_line_that_arrives_in_parts_is_neither_skipped_nor_cut_off(parts: tuple[bytes, ...]) -> None:
    async def body() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    async with asgi_client(create_app()) as client:
        response = await client.post("/lines", content=body(), headers={"Content-Type": NDJSON})
    [answer] = map(json.loads, response.text.splitlines())
    assert answer == {"line": 1, "outcome": "invalid", "detail": f"longer than {MAX_LINE_BYTES} bytes"}


async def test_a_result_that_json_can_not_hold_is_an_error() -> None:
    """orjson would write null."""
    app = create_bare_app()

    @app.post("/")
    async def post_lines(request: Request) -> StreamingResponse:
        async def process(batch: Sequence[UserIn]) -> list[dict[str, Any]]:
            return [{"score": {"parts": [1.5, None, float(row.name)]}} for row in batch]

        return await answer_lines(request, UserIn, process)

    assert (await post(app, "/", line(1, name="2.5"))).text == '{"line":1,"score":{"parts":[1.5,null,2.5]}}\n'
    for name in ("nan", "-inf"):
        assert (await post(app, "/", line(1, name=name))).status_code == 500
