"""Responses with any number of rows, as NDJSON or CSV.

The rows are read at the speed of the database, and are stored in a temporary file until the client has received them.
So a slow client holds no connection.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum, StrEnum
from functools import lru_cache
from io import StringIO
from types import NoneType
from typing import Any, Final, assert_never
from uuid import UUID

import orjson
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sqlalchemy import Executable, Select, SQLColumnExpression
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from howdah.errors import Unavailable
from howdah.fastapi._spool import SpooledParts
from howdah.fastapi.openapi import get_schema_ref
from howdah.fastapi.stream_limits import ClientPace, SendLimits, StreamTicket, take_ticket
from howdah.pagination import with_total_order

CSV: Final = "text/csv"
NDJSON: Final = "application/x-ndjson"
_BATCH_ROWS: Final = 500
_FILE_NAME: Final = re.compile(r"[\w-]+(\.[\w-]+)*", re.ASCII)
# Spreadsheets execute a text that begins with one of these characters. In some languages this includes the full-width
# forms. A spreadsheet may skip spaces, control characters and quotes before them, or treat a line break as a new row.
_FORMULA: Final = re.compile(r"['\"\s\x00-\x1f\u200b\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20]|'*[\t\r\n]")


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
    escapes_formulas: bool = True,
    limits: SendLimits | None = None,
) -> StreamingResponse:
    """A response with the rows of a SELECT. `name` is the name of the file, without its extension.

    With `columns` the statement is a `select(Model)`, as a list route has it. The export has these columns. Its rows
    are in the order of the statement and then of the primary key. Without `columns` the statement selects columns
    itself.

    All rows come from one statement, and so from one snapshot. `db` is a `ReadDbSession`. Its rows are read at the
    speed of the database, and its connection is returned after the last one. A slow client holds no connection,
    because the rows wait for it in memory (up to 128 KiB) and then in a temporary file. If the files of all responses
    have 1 GiB, or the disk is full, further rows are read only after the client has received earlier ones.

    At most a quarter of `pool_size` exports and bulk uploads use the database at a time. Another one waits for
    `pool_timeout`, and then raises `TooManyStreams` (503). A client that is slower than `limits` is disconnected.

    The first batch is read before the response starts, so that an error of the statement gets a problem response. An
    error after that closes the connection without the final chunk (RFC 9112, section 8), so that the client knows that
    the response is incomplete. If the database can't be used any longer, the log has a warning and no traceback.
    HTTP/1.0 has no chunks, so a proxy must use HTTP/1.1 to connect to the service.

    CSV follows RFC 4180, with a header line. NULL is an empty field, and times are written as in JSON. A text that a
    spreadsheet would execute, such as `=1+1`, gets an apostrophe in front, unless `escapes_formulas` is false. Numbers
    are never changed. `unescape_formula` restores the text.
    """
    if columns is not None:
        if not isinstance(statement, Select):
            raise TypeError("with columns, the statement of an export must be a select(Model)")
        statement = with_total_order(statement).with_only_columns(*columns, maintain_column_froms=True)
    headers = _make_disposition(f"{name}.{export_format}")
    ticket = await take_ticket(db.get_bind().engine.pool)
    try:
        result = await db.stream(statement.execution_options(yield_per=_BATCH_ROWS))
        names = list(result.keys())
        if len(set(names)) < len(names):
            raise ValueError(
                f"two columns of an export have the same name: {', '.join(names)}; give each its own label"
            )
        batches = result.partitions()
        match export_format:
            case ExportFormat.NDJSON:
                media_type, head, encode = NDJSON, b"", _make_ndjson_encoder(names)
            case ExportFormat.CSV:
                encode = _make_csv_encoder(escapes_formulas=escapes_formulas)
                media_type, head = CSV, encode([names])
            case _:
                assert_never(export_format)
        batch: Sequence[Sequence[Any]] | None = await anext(batches, None)
        first = head + encode(batch or ())
    except BaseException:
        ticket.release()
        raise

    async def encode_batches() -> AsyncIterator[bytes]:
        try:
            yield first
            async for batch in batches:
                yield encode(batch)
        finally:
            # If the connection is lost now, the rows are complete, or the error of the read is raised.
            with suppress(Unavailable):
                await db.reset()  # returns the connection, while the client may still be receiving

    return _SpooledResponse(encode_batches(), ticket, limits=limits, media_type=media_type, headers=headers)


async def ndjson_response(
    lines: AsyncIterator[bytes], *, name: str | None = None, limits: SendLimits | None = None
) -> StreamingResponse:
    """A response with lines of NDJSON, such as those of `JsonViewReader.stream`.

    With `name` it is a file with that name and the extension `.ndjson`. The first line is read before the response
    starts. Slow clients and errors are handled as by `export_response`. At most five of these responses are read from
    the database at a time.
    """
    headers = None if name is None else _make_disposition(f"{name}.ndjson")
    ticket = await take_ticket(None)
    try:
        first = await anext(lines, b"")
    except BaseException:
        ticket.release()
        raise

    async def read_lines() -> AsyncIterator[bytes]:
        try:
            yield first
            async for line in lines:
                yield line
        finally:
            close = getattr(lines, "aclose", None)
            if close is not None:
                await close()

    return _SpooledResponse(read_lines(), ticket, limits=limits, media_type=NDJSON, headers=headers)


def unescape_formula(text: str) -> str:
    """The text of a field that `export_response` has written, without the apostrophe that it may have added."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text[1:]) else text


def describe_export(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of an export whose rows have the members of the model, for `responses` of a route."""
    content = {NDJSON: {"schema": get_schema_ref(model)}, CSV: {"schema": {"type": "string"}}}
    return {200: {"description": "One row on each line", "content": content}}


def encode_line(members: Mapping[str, Any]) -> bytes:
    """A line of NDJSON. Times are in UTC with `Z`, and a `Decimal` is a string, as Pydantic writes them.

    Raises `TypeError` or `ValueError` for a value that JSON can't hold.
    """
    return _dump(members) + b"\n"


class PacedResponse(StreamingResponse):
    """A streaming response that ends early if the client receives it too slowly."""

    def __init__(self, content: AsyncIterator[bytes], *, limits: SendLimits | None, **options: Any) -> None:
        super().__init__(_convert_os_errors(content), **options)
        self._limits = limits or SendLimits()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pace = ClientPace(self._limits)

        async def send_in_time(message: Message) -> None:
            try:
                await pace.wait(send(message))
            except TimeoutError as error:
                raise ClientDisconnect from error
            pace.count(len(message.get("body", b"")))

        # Neither a client that has disconnected nor a slow one is an error of the service.
        with suppress(ClientDisconnect):
            await super().__call__(scope, receive, send_in_time)


class _SpooledResponse(PacedResponse):
    """A response whose content is read ahead. The ticket is released when the content has been read."""

    def __init__(
        self, content: AsyncIterator[bytes], ticket: StreamTicket, *, limits: SendLimits | None, **options: Any
    ) -> None:
        self._parts = SpooledParts(content, at_end=ticket.release)
        super().__init__(self._parts, limits=limits, **options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._parts.aclose()


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


def _make_csv_encoder(*, escapes_formulas: bool) -> Callable[[Iterable[Sequence[Any]]], bytes]:
    """A function that encodes rows as lines of CSV."""
    convert = _escape_formula if escapes_formulas else str

    def convert_field(value: Any) -> Any:
        kind: Any = type(value)
        if _is_plain(kind):
            return value
        if isinstance(value, Enum):
            return convert_field(value.value)
        # Most texts begin with a letter or a digit. This test is several times as fast as the regular expression.
        return value if kind is str and value[:1].isalnum() else convert(_to_csv_text(value))

    def encode(rows: Iterable[Sequence[Any]]) -> bytes:
        lines = StringIO(newline="")
        csv.writer(lines).writerows([convert_field(each) for each in row] for row in rows)
        return lines.getvalue().encode()

    return encode


@lru_cache(maxsize=256)
def _is_plain(kind: type) -> bool:
    """Whether `csv` writes the values as they are, and none of them is a formula: numbers, UUIDs, and NULL."""
    return issubclass(kind, int | float | Decimal | UUID | NoneType) and not issubclass(kind, bool | Enum)


def _escape_formula(text: str) -> str:
    return f"'{text}" if _FORMULA.match(text) else text


def _to_csv_text(value: Any) -> str:
    match value:
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case bool():
            return "true" if value else "false"
        case dict() | list():
            return _dump(value).decode()
        case bytes():
            raise TypeError("an export can't have bytes: select encode(column, 'base64')")
    return str(value)


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
