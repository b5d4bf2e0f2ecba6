"""Responses with any number of rows, as NDJSON or CSV. Each batch of rows is sent before the next one is read."""

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
# The same as `idle_in_transaction_timeout`, after which PostgreSQL closes a connection that reads no rows.
CLIENT_SEND_TIMEOUT_SECONDS = 60.0
_BATCH_ROWS: Final = 500


async def export_response(
    db: AsyncSession, columns: Select[Any], export_format: ExportFormat, *, name: str
) -> StreamingResponse:
    """A response with the rows of a SELECT of columns. `name` is the name of the file, without its extension.

    Memory use doesn't depend on the number of rows: a batch is read when the client has received the previous one. All
    rows come from one statement, and so from one snapshot. `db` is a `ReadDbSession`. Its connection stays in use until
    the last row has been sent or the client disconnects. A client that receives nothing for
    `CLIENT_SEND_TIMEOUT_SECONDS` is disconnected.

    The first batch is read before the response starts, so that an error of the statement gets a problem response. An
    error after that closes the connection without the final chunk (RFC 9112, section 8), so that the client knows that
    the response is incomplete. HTTP/1.0 has no chunks, so a proxy must use HTTP/1.1 to connect to the service.
    """
    result = await db.stream(columns.execution_options(yield_per=_BATCH_ROWS))
    names = list(result.keys())
    batches = result.partitions()
    first = await anext(batches, None)
    match export_format:
        case ExportFormat.NDJSON:
            media_type, head, encode = NDJSON, b"", _ndjson_encoder(names)
        case ExportFormat.CSV:
            media_type, head, encode = CSV, _encode_csv([names]), _encode_csv
        case _:
            assert_never(export_format)

    async def encode_batches() -> AsyncIterator[bytes]:
        yield head + encode(first or ())
        async for batch in batches:
            yield encode(batch)

    disposition = {"Content-Disposition": f'attachment; filename="{name}.{export_format}"'}
    return _TimedResponse(encode_batches(), media_type=media_type, headers=disposition)


class _TimedResponse(StreamingResponse):
    """A streaming response that ends early if the client doesn't receive a part in time."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(CLIENT_SEND_TIMEOUT_SECONDS):
                await send(message)

        # Starlette raises this after a disconnect and after the timeout. Neither is an error of the service.
        with suppress(ClientDisconnect):
            await super().__call__(scope, receive, send_in_time)


def _ndjson_encoder(names: Sequence[str]) -> Callable[[Iterable[Sequence[Any]]], bytes]:
    """A function that encodes rows as objects with these names, one per line."""
    option = orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE

    def encode(rows: Iterable[Sequence[Any]]) -> bytes:
        # `default=str` is for the driver's subclass of UUID, which orjson doesn't encode
        return b"".join(orjson.dumps(dict(zip(names, row, strict=True)), default=str, option=option) for row in rows)

    return encode


def _encode_csv(rows: Iterable[Sequence[Any]]) -> bytes:
    """Lines by RFC 4180. NULL is an empty field, and a time is written as in JSON.

    Text is written unchanged. A spreadsheet may interpret text that begins with `=` as a formula.
    """
    lines = StringIO(newline="")
    csv.writer(lines).writerows(map(_to_csv_fields, rows))
    return lines.getvalue().encode()


def _to_csv_fields(row: Sequence[Any]) -> list[Any]:
    return [each.isoformat().replace("+00:00", "Z") if isinstance(each, datetime) else each for each in row]
