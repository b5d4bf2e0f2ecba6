"""Request bodies with many rows: NDJSON, or a JSON array. Every error names its line.

@router.post("/issues/bulk", openapi_extra=describe_rows_body(IssueIn))
async def create_issues(request: Request, db: DbSession) -> Created:
    rows = BodyRows(request, IssueIn)
    with rows.locate_errors():
        created = await AsyncRepository(db, Issue).create_many((row.model_dump() async for row in rows), keys=False)
    return Created(created=created.count)

- `howdah.fastapi.line_results`: a response with one line for each line of the body.
- `howdah.fastapi.exports`: responses with any number of rows.
"""

from __future__ import annotations

import asyncio
import codecs
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from http import HTTPStatus
from typing import Any, Final, Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from howdah.errors import DatabaseError
from howdah.fastapi._bodies import find_pool, read_stored, receive_parts
from howdah.fastapi.client_text import shorten_message, shorten_place
from howdah.fastapi.exports import NDJSON
from howdah.fastapi.json_bodies import InvalidJSON, parse_json
from howdah.fastapi.openapi import describe_problems, get_schema_ref
from howdah.fastapi.problem import ProblemException
from howdah.fastapi.stream_limits import BodyLimits, StreamTicket, take_ticket

ModelT = TypeVar("ModelT", bound=BaseModel)

JSON: Final = "application/json"
MAX_LINE_BYTES: Final = 65_536
# With a byte order mark and a CR. Longer lines are cut off while they are read, and a cut off line may look valid.
_MAX_READ_BYTES: Final = MAX_LINE_BYTES + len(codecs.BOM_UTF8) + 1
# Parsing blocks the event loop, so other tasks get a turn after this many lines. One of them may be the task that
# processes the previous batch.
_LINES_BETWEEN_PAUSES: Final = 50
_LIMIT_STATUSES: Final = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
# Blank lines make the number of a line differ from that of its row. Only the latest differences are kept, so that
# memory use is constant. That is enough, because a bulk write reports a row that it has read recently.
_MAX_SHIFTS: Final = 10_000


class UnsupportedMediaType(ProblemException):
    """The `Content-Type` of the body is none of `accepted` (415, `unsupported-media-type`, with `Accept-Post`)."""

    def __init__(self, *accepted: str) -> None:
        self.accepted = accepted
        super().__init__(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            f"the body must be {' or '.join(accepted)}: set Content-Type accordingly",
            headers={"Accept-Post": ", ".join(accepted)},
        )


class InvalidLine(ProblemException):
    """A line of an NDJSON body, or an element of an array, is invalid (422, `invalid-line`, with the member `line`)."""

    def __init__(self, line: int, reason: str) -> None:
        self.line = line
        self.reason = reason
        super().__init__(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-line", f"line {line}: {reason}", line=line)


class RejectedLine(Exception):
    """PostgreSQL rejected the row on this line of the body.

    The problem details are those of `error`, with the member `line`.
    """

    def __init__(self, line: int, error: DatabaseError) -> None:
        self.line = line
        self.error = error
        super().__init__(f"line {line}: {error}")


async def read_lines(request: Request, *, limits: BodyLimits | None = None) -> AsyncIterator[tuple[int, bytes | None]]:
    """The lines of an NDJSON body as they arrive, each with its number, from 1. Blank lines are left out.

    A line that is longer than `MAX_LINE_BYTES` is None. Raises `UnsupportedMediaType` if the body isn't NDJSON, and
    `BodyTimeout` or `BodyTooLarge` at a limit. Hold no connection while you wait for the next line.
    """
    if _get_media_type(request) != NDJSON:
        raise UnsupportedMediaType(NDJSON)
    limits = limits or BodyLimits()
    async for each in _split_into_lines(receive_parts(request, limits, max_bytes=limits.max_bytes)):
        yield each


async def _split_into_lines(parts: AsyncIterator[bytes]) -> AsyncIterator[tuple[int, bytes | None]]:
    """The lines with their numbers, from 1. A line that is too long is None."""
    number, rest = 0, b""
    async for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            number += 1
            if number % _LINES_BETWEEN_PAUSES == 0:
                await asyncio.sleep(0)
            content = _strip(number, line)
            if content != b"":
                yield number, content
        rest = rest[: _MAX_READ_BYTES + 1]  # enough to tell that it is too long
    content = _strip(number + 1, rest)
    if content != b"":
        yield number + 1, content


def parse_line(number: int, line: bytes | None, model: type[ModelT]) -> ModelT:
    """The row of a line that `read_lines` has yielded. Raises `InvalidLine`."""
    if line is None:
        raise InvalidLine(number, f"longer than {MAX_LINE_BYTES} bytes")
    try:
        return model.model_validate(parse_json(line))
    except (InvalidJSON, ValidationError) as error:
        raise InvalidLine(number, _describe_first_error(error)) from error


class BodyRows(Generic[ModelT]):
    """The rows of a body, as an asynchronous iterable that can be iterated once: `async for row in rows`.

    The first row is returned when the whole body has arrived, so that nothing waits for the client in a transaction.
    Until then NDJSON is stored in a temporary file, if it has more than 128 KiB. Memory use is constant. An array is
    read into memory as a whole. Don't use the session before the first row, because it would hold its connection while
    the body arrives.

    At most a quarter of `pool_size` bulk uploads and exports use the database at a time. Another one waits for
    `pool_timeout`, and then raises `TooManyStreams` (503). An upload counts until the end of `locate_errors`. Without
    `locate_errors`, it counts until this object is deleted.

    Iterating raises `InvalidLine` for the first row that the model rejects, with the number of its line (NDJSON) or of
    its element (JSON array), from 1. It raises `UnsupportedMediaType` if the body is neither NDJSON nor JSON, and
    `BodyTimeout` (408) or `BodyTooLarge` (413) at one of the `limits`.
    """

    def __init__(self, request: Request, model: type[ModelT], *, limits: BodyLimits | None = None) -> None:
        self._request, self._model = request, model
        self._limits = limits or BodyLimits()
        self._ticket: StreamTicket | None = None
        self._count = 0
        # the index of a row that follows blank lines, and the difference between its line and this index
        self._shifts: deque[tuple[int, int]] = deque(maxlen=_MAX_SHIFTS)

    def __aiter__(self) -> AsyncIterator[ModelT]:
        return self._read()

    @contextmanager
    def locate_errors(self) -> Iterator[None]:
        """Raise `RejectedLine` instead of a `DatabaseError` with a `row_index`.

        Use it for one bulk write that gets all rows of the body in their order.
        """
        try:
            yield
        except DatabaseError as error:
            line = None if error.row_index is None else self._find_line(error.row_index)
            if line is None:
                raise
            raise RejectedLine(line, error) from error
        finally:
            if self._ticket is not None:
                self._ticket.release()

    async def _read(self) -> AsyncIterator[ModelT]:
        media_type = _get_media_type(self._request)
        if media_type not in (JSON, NDJSON):
            raise UnsupportedMediaType(JSON, NDJSON)
        rows = self._read_array() if media_type == JSON else self._read_ndjson()
        async for number, row in rows:
            shift = number - self._count
            if not self._shifts or self._shifts[-1][1] != shift:
                self._shifts.append((self._count, shift))
            self._count += 1
            yield row

    async def _read_ndjson(self) -> AsyncIterator[tuple[int, ModelT]]:
        async with aclosing(read_stored(self._request, self._limits)) as parts:
            async for number, line in _split_into_lines(parts):
                await self._take_ticket()
                yield number, parse_line(number, line, self._model)

    async def _read_array(self) -> AsyncIterator[tuple[int, ModelT]]:
        """The elements of a JSON array as rows, with their numbers from 1."""
        parts = receive_parts(self._request, self._limits, max_bytes=self._limits.max_array_bytes)
        body = b"".join([part async for part in parts])
        await self._take_ticket()
        try:
            elements = parse_json(body)
        except InvalidJSON as error:
            raise InvalidLine(_find_position(error, body), _describe_first_error(error)) from error
        if not isinstance(elements, list):
            raise InvalidLine(1, f"a JSON array is expected, or {NDJSON}")
        for number, element in enumerate(elements, start=1):
            try:
                row = self._model.model_validate(element)
            except ValidationError as error:
                raise InvalidLine(number, _describe_first_error(error)) from error
            yield number, row

    async def _take_ticket(self) -> None:
        if self._ticket is None:
            self._ticket = await take_ticket(find_pool(self._request))

    def _find_line(self, index: int) -> int | None:
        """The line of the row, or None if too many blank lines came after it."""
        position = bisect_right(self._shifts, index, key=lambda shift: shift[0]) - 1
        return None if position < 0 else index + self._shifts[position][1]


def describe_rows_body(model: type[BaseModel], *, array: bool = True) -> dict[str, Any]:
    """The OpenAPI description of the body, for `openapi_extra` of a route: NDJSON, and with `array` a JSON array.

    It includes the 415 for a body of another media type, the 408 for a slow client, and the 413 for a large body.
    """
    schema = get_schema_ref(model, "validation")
    content = {NDJSON: {"schema": schema}}
    if array:
        content = {JSON: {"schema": {"type": "array", "items": schema}}, **content}  # type: ignore[dict-item]
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    unsupported = describe_problems(status)[status]
    unsupported["headers"] = {"Accept-Post": {"description": "The accepted media types", "schema": {"type": "string"}}}
    return {
        "requestBody": {"required": True, "content": content},
        "responses": {
            **{str(int(each)): problem for each, problem in describe_problems(*_LIMIT_STATUSES).items()},
            str(int(status)): unsupported,
        },
    }


def _describe_first_error(error: ValidationError | InvalidJSON) -> str:
    """The first fault and its place, without the rejected value."""
    if isinstance(error, InvalidJSON):
        return str(error)
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in shorten_place(first["loc"]))
    message = shorten_message(first)
    return f"{where}: {message}" if where else message


def _find_position(error: InvalidJSON, body: bytes) -> int:
    """The number of the element, from 1. If the body isn't JSON, the number of the line."""
    match error.code, error.loc:
        case "json_duplicate_name", (int(index), *_):
            return index + 1
        case "json_invalid", (int(position),):
            return body.decode().count("\n", 0, position) + 1
    return 1


def _get_media_type(request: Request) -> str:
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def _strip(number: int, line: bytes) -> bytes | None:
    """The line without its byte order mark and the spaces around it, or None if it is too long."""
    if len(line) > _MAX_READ_BYTES:
        return None
    content = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip()
    return content if len(content) <= MAX_LINE_BYTES else None
