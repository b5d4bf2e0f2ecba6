"""Answers of any number of rows, sent as they come from the database: NDJSON or CSV."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from io import StringIO
from typing import Any, Final, assert_never

import orjson
from fastapi.responses import StreamingResponse
from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from shop.web.fields import ExportFormat
from shop.web.lines import NDJSON

CSV: Final = "text/csv"
# PostgreSQL's side of the connection ends at the same time, by `idle_in_transaction_timeout`.
CLIENT_SEND_TIMEOUT_SECONDS = 60.0
_BATCH_ROWS: Final = 500


async def exported(db: AsyncSession, columns: Select[Any], form: ExportFormat, *, name: str) -> StreamingResponse:
    """The rows of a select of columns, each field under its column's name; `name` is the file's for who saves it.

    At constant memory: a batch of rows is read when the client has taken the one before. All come from one statement
    and so from one snapshot. `db` is a `ReadDbSession`, whose connection is held until the last row has been sent or
    the client leaves; one that takes nothing for `CLIENT_SEND_TIMEOUT_SECONDS` is cut off.

    The first batch is read before the answer begins, so that what the database refuses is answered as a problem. An
    error after that breaks the connection off without the chunk that ends an answer (RFC 9112, section 8), so that
    nobody takes a part for the whole. HTTP/1.0 has no such chunk: a proxy in between must speak 1.1 to the service.
    """
    result = await db.stream(columns.execution_options(yield_per=_BATCH_ROWS))
    names = list(result.keys())
    batches = result.partitions()
    first = await anext(batches, None)
    match form:
        case ExportFormat.NDJSON:
            media_type, head, written = NDJSON, b"", _ndjson(names)
        case ExportFormat.CSV:
            media_type, head, written = CSV, _csv([names]), _csv
        case _:
            assert_never(form)

    async def parts() -> AsyncIterator[bytes]:
        yield head + written(first or ())
        async for batch in batches:
            yield written(batch)

    disposition = {"Content-Disposition": f'attachment; filename="{name}.{form}"'}
    return _Streamed(parts(), media_type=media_type, headers=disposition)


class _Streamed(StreamingResponse):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(CLIENT_SEND_TIMEOUT_SECONDS):
                await send(message)

        with suppress(ClientDisconnect):  # it has left or been cut off, and that is no fault of the service
            await super().__call__(scope, receive, send_in_time)


def _ndjson(names: Sequence[str]) -> Callable[[Iterable[Sequence[Any]]], bytes]:
    option = orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE

    def written(rows: Iterable[Sequence[Any]]) -> bytes:
        # the driver's UUIDs are a subclass, which orjson leaves to the default
        return b"".join(orjson.dumps(dict(zip(names, row, strict=True)), default=str, option=option) for row in rows)

    return written


def _csv(rows: Iterable[Sequence[Any]]) -> bytes:
    """Lines as RFC 4180 has them; null is an empty field, a time is written as in JSON. Texts are written as they are,
    also those that a spreadsheet would take for a formula."""
    lines = StringIO(newline="")
    csv.writer(lines).writerows(map(_fields, rows))
    return lines.getvalue().encode()


def _fields(row: Sequence[Any]) -> list[Any]:
    return [each.isoformat().replace("+00:00", "Z") if isinstance(each, datetime) else each for each in row]
