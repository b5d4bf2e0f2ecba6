"""Responses with any number of rows."""

from __future__ import annotations

import csv
import io
import json
import logging
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sqlalchemy import ColumnElement, Executable, Float, Select, Text, cast, func, literal, literal_column, select, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from starlette.types import Receive, Scope, Send

from howdah import AsyncRepository, Database, JsonView, logs
from howdah.fastapi import (
    ExportFormat,
    ReadDbSession,
    SendLimits,
    _spool,
    configure_app,
    describe_export,
    export_response,
    ndjson_response,
    unescape_formula,
)
from howdah.testing import open_client
from howdah_tests.support.fastapi_apps import asgi_client, create_app, create_bare_app, http_client
from howdah_tests.support.sample_models import Order, Status, User
from howdah_tests.support.sample_rows import user_rows
from howdah_tests.support.waiting import until

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"
MANY = 30_000  # rows of 1 KiB: more than the buffers hold between PostgreSQL and a client that has stopped reading


class UserOut(BaseModel):
    email: str
    name: str


def add_export(app: FastAPI, statement: Executable, **options: Any) -> FastAPI:
    @app.get("/export", response_class=StreamingResponse, responses=describe_export(UserOut))
    async def export(db: ReadDbSession, format: ExportFormat = ExportFormat.NDJSON) -> StreamingResponse:
        return await export_response(db, statement, format, name="rows", **options)

    return app


def select_numbers(count: int) -> Select[Any]:
    return select(func.repeat("x", 1_000).label("text"), func.generate_series(1, count).label("n"))


async def test_rows_are_written_in_the_order_of_the_list_query(database: Database) -> None:
    async with database.begin() as session:
        await AsyncRepository(session, User).create_many(user_rows(700))
    statement = select(User).order_by(User.name.desc())
    app = add_export(create_bare_app(database), statement, columns=[User.id, User.email])
    async with asgi_client(app) as client:
        ndjson, table = await client.get("/export"), await client.get("/export?format=csv")
        unknown = await client.get("/export?format=xml")
    async with database.session() as session:
        users = await AsyncRepository(session, User).list(statement.order_by(User.id.desc()), limit=None)
    assert [json.loads(line) for line in ndjson.content.splitlines()] == [
        {"id": str(user.id), "email": user.email} for user in users
    ]
    assert [row["email"] for row in csv.DictReader(io.StringIO(table.text, newline=""))] == [u.email for u in users]
    assert ndjson.headers["content-disposition"] == 'attachment; filename="rows.ndjson"'
    assert table.headers["content-type"] == "text/csv; charset=utf-8"
    assert unknown.status_code == 422


async def test_values_of_every_type_are_written_exactly_or_are_an_error(database: Database) -> None:
    columns: dict[str, Any] = {
        "time": literal(datetime(2026, 1, 1, 12, tzinfo=UTC)),
        "number": literal(Decimal("1.10")),
        "flag": literal(True),
        "nothing": literal_column("NULL"),
        "quoted": literal('a "b", c\r\nd'),
        "status": literal(Status.PAID, Order.status.type),
        "json": cast(literal('{"a": [1]}'), JSONB),
    }
    app = add_export(create_bare_app(database), select(*(value.label(name) for name, value in columns.items())))
    async with asgi_client(app) as client:
        [line] = (await client.get("/export")).text.splitlines()
        [header, row] = csv.reader(io.StringIO((await client.get("/export?format=csv")).text, newline=""))
    expected = {
        "time": "2026-01-01T12:00:00Z",
        "number": "1.10",
        "flag": True,
        "nothing": None,
        "quoted": 'a "b", c\r\nd',
        "status": "paid",
    }
    document = json.loads(line)
    assert {name: document[name] for name in expected} == expected
    assert row[:-1] == ["true" if each is True else "" if each is None else each for each in expected.values()]
    assert header == [*columns]

    values: list[ColumnElement[Any]] = [
        cast(literal("NaN"), Float),
        cast(literal("infinity"), Float),
        func.decode("ff", "hex"),
    ]
    for value in values:
        failing = add_export(create_bare_app(database), select(value.label("value")))
        async with asgi_client(failing) as client:
            assert (await client.get("/export")).status_code == 500
    nested = add_export(create_bare_app(database), select(cast(literal([float("nan")]), ARRAY(Float)).label("value")))
    async with asgi_client(nested) as client:
        assert [(await client.get(f"/export?format={each}")).status_code for each in ExportFormat] == [500, 500]


async def test_two_columns_with_the_same_name_are_an_error(database: Database) -> None:
    app = add_export(create_bare_app(database), text("SELECT 1 AS a, 2 AS a"))
    async with asgi_client(app) as client:
        assert [(await client.get(f"/export?format={each}")).status_code for each in ExportFormat] == [500, 500]


async def test_an_export_without_rows_has_only_the_header_of_csv(database: Database) -> None:
    app = add_export(create_bare_app(database), select(User.id, User.email))
    async with asgi_client(app) as client:
        assert (await client.get("/export")).content == b""
        assert (await client.get("/export?format=csv")).text == "id,email\r\n"


async def test_an_error_before_the_first_row_is_a_problem(database: Database) -> None:
    app = add_export(create_bare_app(database), select(cast(literal("x"), JSONB).label("value")))
    async with asgi_client(app) as client:
        response = await client.get("/export")
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"


async def test_a_wrong_file_name_is_an_error(database: Database) -> None:
    async with database.session() as session:
        with pytest.raises(ValueError, match="is not the name of a file"):
            await export_response(session, select(User.id), ExportFormat.CSV, name='a"; x="')


async def test_the_lines_of_a_view_are_a_response(database: Database) -> None:
    async with database.begin() as session:
        await AsyncRepository(session, User).create_many(user_rows(3))
    app = create_bare_app(database)
    async with JsonView(User, UserOut).open(database) as view:

        @app.get("/view")
        async def export() -> StreamingResponse:
            return await ndjson_response(view.stream(select(User).order_by(User.email)), name="users")

        async with asgi_client(app) as client:
            response = await client.get("/view")
    assert [json.loads(line).keys() for line in response.content.splitlines()] == [{"email", "name"}] * 3
    assert response.headers["content-disposition"] == 'attachment; filename="users.ndjson"'


async def is_idle(database: Database) -> bool:
    return database.pool_status().in_use == 0


def slow_client_of(client: httpx.AsyncClient) -> httpx.AsyncClient:
    """A client with small buffers between itself and the service."""
    small = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)]
    return httpx.AsyncClient(
        base_url=client.base_url, transport=httpx.AsyncHTTPTransport(socket_options=small), timeout=20
    )


async def read(parts: AsyncIterator[bytes]) -> int:
    return sum([len(part) async for part in parts])


@pytest.mark.parametrize("stored", [_spool.MAX_STORED_BYTES, 0])
@pytest.mark.parametrize("ending", ["slow", "disconnected", "failed", "complete"])
async def test_an_export_that_ends_early_releases_its_connection_and_is_incomplete(
    real_database: Database, monkeypatch: pytest.MonkeyPatch, ending: str, stored: int
) -> None:
    """With `stored=0` no file can be used, so rows wait for the client. Control: a client that reads gets all rows."""
    monkeypatch.setattr(_spool, "MAX_STORED_BYTES", stored)
    limits = SendLimits(window_seconds=0.3 if ending == "slow" else 60)
    numbers = select_numbers(MANY)
    if ending == "failed":
        numbers = numbers.add_columns(1 / (MANY - func.generate_series(1, MANY)))
    app = add_export(create_app(real_database), numbers, limits=limits)

    async def is_released() -> bool:
        return await is_idle(real_database) and _spool.stored_bytes() == 0

    async with (
        http_client(app) as client,
        slow_client_of(client) as slow,
        slow.stream("GET", "/export") as response,
    ):
        parts = response.aiter_raw()
        first = await anext(parts)
        if ending == "complete":
            assert (len(first) + await read(parts)) > MANY * 1_000
        elif ending == "disconnected":
            await response.aclose()
        else:
            if ending == "slow":
                await until(is_released)
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
                await read(parts)

        await until(is_released)


@pytest.mark.parametrize("is_complete", [True, False])
async def test_an_export_that_loses_its_connection_is_complete_or_cut_off(
    real_database: Database, is_complete: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If all rows have been read, only the rollback fails. Otherwise the log has a line, and no traceback."""
    app = FastAPI()

    @app.get("/export", response_class=StreamingResponse)
    async def export(db: ReadDbSession) -> StreamingResponse:
        pid, reset = await db.scalar(text("SELECT pg_backend_pid()")), db.reset

        async def terminate() -> None:
            async with real_database.session() as other:
                await other.execute(select(func.pg_terminate_backend(pid, 5_000)))

        async def reset_after_loss() -> None:
            await terminate()
            await reset()

        response = await export_response(db, select_numbers(3_000), ExportFormat.NDJSON, name="rows")
        if is_complete:
            monkeypatch.setattr(db, "reset", reset_after_loss)
        else:
            await terminate()
        return response

    configure_app(app, database=lambda: Database(NOWHERE))
    async with open_client(app, {"main": real_database}, is_serial=False) as client:
        if is_complete:
            answer = await client.get("/export")
            assert (answer.status_code, answer.text.count("\n")) == (200, 3_000)
        else:
            with pytest.raises(RuntimeError, match="already started") as raised:
                await client.get("/export")
            record = logging.makeLogRecord({"exc_info": (RuntimeError, raised.value, None)})
            assert not logs._is_new(record)  # so uvicorn doesn't log it
            assert logs._is_new(logging.makeLogRecord({"exc_info": (RuntimeError, RuntimeError(), None)}))
        assert (await client.get("/readyz")).status_code == 200
    printed = capsys.readouterr().out
    assert ("the response was cut off" in printed) is not is_complete
    assert "Traceback" not in printed
    assert "unexpected error" not in printed
    await until(partial(is_idle, real_database))


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_an_error_of_the_operating_system_is_not_taken_for_a_disconnected_client(spec_version: str) -> None:
    app = create_bare_app()

    async def read_file() -> AsyncIterator[bytes]:
        yield b"1\n"
        raise FileNotFoundError

    @app.get("/")
    async def export() -> StreamingResponse:
        return await ndjson_response(read_file())

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "asgi": {"version": "3.0", "spec_version": spec_version}}, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url="http://test") as client:
        with pytest.raises(RuntimeError, match="could not be read"):
            await client.get("/")


FORMULAS = (
    "=1+1",
    "+1",
    "-1+cmd|' /C calc'!A0",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "\nx",
    " =1",
    "\u00a0=1",
    "\ufeff=1",
    "\x01=1",
    "'=1",
    "''=1",
    '"=1',
    "'\tx",
    "\uff1d1",
    "\uff0b1",
    "\uff0d1",
    "\uff201",
)
TEXTS = ("a=1", "1-1", "'t Hooft", "", " ", "a\n=1", "’=1")


async def export_csv(database: Database, statement: Executable, **options: Any) -> list[list[str]]:
    async with asgi_client(add_export(create_bare_app(database), statement, **options)) as client:
        response = await client.get("/export?format=csv")
    assert response.status_code == 200, response.text
    return [*csv.reader(io.StringIO(response.text, newline=""), strict=True)]


async def test_texts_that_a_spreadsheet_would_execute_are_escaped_and_can_be_restored(database: Database) -> None:
    texts = [*FORMULAS, *TEXTS]
    statement = select(func.unnest(literal(texts, ARRAY(Text))).label("=text"))
    header, *rows = await export_csv(database, statement)
    fields = [field for [field] in rows]
    assert header == ["'=text"]
    assert fields == [*(f"'{each}" for each in FORMULAS), *TEXTS]
    assert [unescape_formula(field) for field in fields] == texts
    assert [field for [field] in await export_csv(database, statement, escapes_formulas=False)] == ["=text", *texts]


async def test_numbers_are_never_escaped_and_other_values_are_as_texts(database: Database) -> None:
    columns: dict[str, tuple[Any, str]] = {
        "integer": (literal(-1), "-1"),
        "decimal": (literal(Decimal("-1.50")), "-1.50"),
        "real": (literal(-0.5), "-0.5"),
        "span": (literal(timedelta(seconds=-1)), "'-1 day, 23:59:59"),
        "json": (literal("=1", JSONB), "'=1"),
        "array": (cast(literal(["=1"]), ARRAY(Text)), '["=1"]'),
        "nothing": (literal_column("NULL"), ""),
    }
    _, row = await export_csv(database, select(*(value.label(name) for name, (value, _) in columns.items())))
    assert row == [expected for _, expected in columns.values()]


async def test_ndjson_is_never_escaped(database: Database) -> None:
    app = add_export(create_bare_app(database), select(literal("=1").label("text")))
    async with asgi_client(app) as client:
        assert (await client.get("/export")).json() == {"text": "=1"}
