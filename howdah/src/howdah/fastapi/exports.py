"""Responses with any number of rows, as NDJSON or CSV. Each batch of rows is sent before the next one is read."""

from __future__ import annotations

import asyncio
import csv
import math
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum, StrEnum
from io import StringIO
from typing import Any, Final, assert_never
from uuid import UUID

import orjson
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sqlalchemy import Executable, Select, SQLColumnExpression
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from howdah.fastapi.openapi import get_schema_ref
from howdah.pagination import with_total_order

CSV: Final = "text/csv"
NDJSON: Final = "application/x-ndjson"
CLIENT_SEND_TIMEOUT_SECONDS: Final = 60.0
"""The same as `idle_in_transaction_timeout`, after which PostgreSQL closes a connection that reads no rows."""
_BATCH_ROWS: Final = 500
_FILE_NAME: Final = re.compile(r"[\w-]+(\.[\w-]+)*", re.ASCII)


class ExportFormat(StrEnum):
    """The format of an export, as a parameter of the query.

    It isn't the header `Accept`. So a link to the export can be stored and opened in a browser, and an unknown format
    is a validation error.
    """

    NDJSON = "ndjson"
    CSV = "csv"


async def export_response(
    db: AsyncSession,
    statement: Executable,
    export_format: ExportFormat,
    *,
    name: str,
    columns: Iterable[SQLColumnExpression[Any]] | None = None,
    send_timeout: float | None = None,
) -> StreamingResponse:
    """A response with the rows of a SELECT. `name` is the name of the file, without its extension.

    With `columns` the statement is a `select(Model)`, as a list route has it. The export has these columns. Its rows
    are in the order of the statement and then of the primary key. Without `columns` the statement selects columns
    itself.

    Memory use doesn't depend on the number of rows: a batch is read when the client has received the previous one. All
    rows come from one statement, and so from one snapshot. `db` is a `ReadDbSession`. Its connection stays in use until
    the last row has been sent or the client disconnects. A client that receives nothing for `send_timeout` seconds
    (`CLIENT_SEND_TIMEOUT_SECONDS`) is disconnected.

    The first batch is read before the response starts, so that an error of the statement gets a problem response. An
    error after that closes the connection without the final chunk (RFC 9112, section 8), so that the client knows that
    the response is incomplete. HTTP/1.0 has no chunks, so a proxy must use HTTP/1.1 to connect to the service.

    CSV is written by RFC 4180, with a header line. NULL is an empty field, and times are written as in JSON. Text is
    written unchanged: a spreadsheet may interpret a text that begins with `=` as a formula.
    """
    if columns is not None:
        if not isinstance(statement, Select):
            raise TypeError("with columns, the statement of an export must be a select(Model)")
        statement = with_total_order(statement).with_only_columns(*columns, maintain_column_froms=True)
    headers = _make_disposition(f"{name}.{export_format}")
    result = await db.stream(statement.execution_options(yield_per=_BATCH_ROWS))
    names = list(result.keys())
    if len(set(names)) < len(names):
        raise ValueError(f"two columns of an export have the same name: {', '.join(names)}; give each its own label")
    batches = result.partitions()
    match export_format:
        case ExportFormat.NDJSON:
            media_type, head, encode = NDJSON, b"", _make_ndjson_encoder(names)
        case ExportFormat.CSV:
            media_type, head, encode = CSV, _encode_csv([names]), _encode_csv
        case _:
            assert_never(export_format)
    batch: Sequence[Sequence[Any]] | None = await anext(batches, None)
    first = head + encode(batch or ())

    async def encode_batches() -> AsyncIterator[bytes]:
        yield first
        async for batch in batches:
            yield encode(batch)

    return _TimedResponse(
        encode_batches(),
        send_timeout=send_timeout,
        media_type=media_type,
        headers=headers,
    )


async def ndjson_response(
    lines: AsyncIterator[bytes], *, name: str | None = None, send_timeout: float | None = None
) -> StreamingResponse:
    """A response with lines of NDJSON, such as those of `JsonViewReader.stream`.

    With `name` it is a file with that name and the extension `.ndjson`. The first line is read before the response
    starts. Errors and slow clients are treated as by `export_response`.
    """
    first = await anext(lines, b"")

    async def send_lines() -> AsyncIterator[bytes]:
        yield first
        async for line in lines:
            yield line

    headers = None if name is None else _make_disposition(f"{name}.ndjson")
    return _TimedResponse(send_lines(), send_timeout=send_timeout, media_type=NDJSON, headers=headers)


def describe_export(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of an export whose rows have the members of the model, for `responses` of a route."""
    content = {NDJSON: {"schema": get_schema_ref(model)}, CSV: {"schema": {"type": "string"}}}
    return {200: {"description": "One row on each line", "content": content}}


def encode_line(members: Mapping[str, Any]) -> bytes:
    """A line of NDJSON. Times are in UTC with `Z`, and a `Decimal` is a string, as Pydantic writes them.

    Raises `TypeError` or `ValueError` for a value that JSON can't hold.
    """
    return _dump(members) + b"\n"


class _TimedResponse(StreamingResponse):
    """A streaming response that ends early if the client doesn't receive a part in time."""

    def __init__(self, content: AsyncIterator[bytes], *, send_timeout: float | None, **options: Any) -> None:
        super().__init__(_convert_os_errors(content), **options)
        self._send_timeout = CLIENT_SEND_TIMEOUT_SECONDS if send_timeout is None else send_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self._send_timeout):
                await send(message)

        # Starlette raises this after a disconnect and after the timeout. Neither is an error of the service.
        with suppress(ClientDisconnect):
            await super().__call__(scope, receive, send_in_time)


async def _convert_os_errors(content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same parts. Starlette takes an `OSError` for a disconnected client, so the error would not be logged."""
    try:
        async for part in content:
            yield part
    except OSError as error:
        raise RuntimeError("the rows of the response could not be read") from error


def _make_disposition(file_name: str) -> dict[str, str]:
    if _FILE_NAME.fullmatch(file_name) is None:
        raise ValueError(f"{file_name!r} is not the name of a file: use ASCII letters, digits, '-', '_' and '.'")
    return {"Content-Disposition": f'attachment; filename="{file_name}"'}


def _make_ndjson_encoder(names: Sequence[str]) -> Callable[[Iterable[Sequence[Any]]], bytes]:
    """A function that encodes rows as objects with these names, one per line."""

    def encode(rows: Iterable[Sequence[Any]]) -> bytes:
        return b"".join([encode_line(dict(zip(names, row, strict=True))) for row in rows])

    return encode


def _encode_csv(rows: Iterable[Sequence[Any]]) -> bytes:
    lines = StringIO(newline="")
    csv.writer(lines).writerows([_to_csv_field(each) for each in row] for row in rows)
    return lines.getvalue().encode()


def _to_csv_field(value: Any) -> Any:
    match value:
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case bool():
            return "true" if value else "false"
        case Enum():
            return value.value
        case dict() | list():
            return _dump(value).decode()
        case bytes():
            raise TypeError("an export can't have bytes: select encode(column, 'base64')")
    return value


def _dump(value: Any) -> bytes:
    """The value as JSON. orjson writes NaN and infinities as null, so each null is checked."""
    text = orjson.dumps(value, default=_encode_default, option=orjson.OPT_UTC_Z)
    if b"null" in text:
        _reject_non_finite(value)
    return text


def _reject_non_finite(value: Any) -> None:
    """Raise `ValueError` if there is a NaN or an infinity in the value. JSON has none of them."""
    match value:
        case float():
            if not math.isfinite(value):
                raise ValueError(f"JSON can't hold {value}: select nullif(column, 'NaN') or a cast to text")
        case dict():
            for each in value.values():
                _reject_non_finite(each)
        case list() | tuple():
            for each in value:
                _reject_non_finite(each)
        case BaseModel():
            _reject_non_finite(value.model_dump())
        case _ if is_dataclass(value) and not isinstance(value, type):
            for field in fields(value):
                _reject_non_finite(getattr(value, field.name))


def _encode_default(value: Any) -> Any:
    if isinstance(value, UUID | Decimal):  # asyncpg has its own UUID class
        return str(value)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"JSON can't hold a {type(value).__name__}: convert it, or cast it to text in the SELECT")
