"""Request bodies with many rows: NDJSON, or a JSON array."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator
from typing import Final, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from howdah.fastapi import InvalidJSON, parse_json
from shop.web.problems import InvalidLine, UnsupportedMediaType

ModelT = TypeVar("ModelT", bound=BaseModel)

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
MAX_LINE_BYTES: Final = 65_536
TOO_LONG: Final = f"longer than {MAX_LINE_BYTES} bytes"


async def read_ndjson_lines(request: Request) -> AsyncIterator[tuple[int, bytes | None]]:
    """The lines of the body as they arrive, each with its number, from 1. Blank lines are left out.

    Instead of a line that is longer than `MAX_LINE_BYTES`, None is yielded. Raises `UnsupportedMediaType` if the body
    isn't NDJSON.
    """
    if _get_media_type(request) != NDJSON:
        raise UnsupportedMediaType(NDJSON)
    number, rest = 0, b""
    async for part in request.stream():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            number += 1
            if content := _strip(number, line):
                yield number, content if len(content) <= MAX_LINE_BYTES else None
        rest = rest[: MAX_LINE_BYTES + 1]  # enough to tell that it is too long
    if content := _strip(number + 1, rest):
        yield number + 1, content if len(content) <= MAX_LINE_BYTES else None


async def read_rows(request: Request, model: type[ModelT]) -> AsyncIterator[tuple[int, ModelT]]:
    """The rows of a body, each with the number of its line (NDJSON) or of its element (JSON array), from 1.

    NDJSON is read as it arrives, with constant memory use. An array is read as a whole. Raises `InvalidLine` for the
    first row that the model rejects. Raises `UnsupportedMediaType` if the body is neither NDJSON nor JSON.
    """
    if _get_media_type(request) == NDJSON:
        async for number, line in read_ndjson_lines(request):
            if line is None:
                raise InvalidLine(number, TOO_LONG)
            try:
                row = model.model_validate(parse_json(line))
            except (InvalidJSON, ValidationError) as error:
                raise InvalidLine(number, describe_first_error(error)) from error
            yield number, row
        return
    if _get_media_type(request) != JSON:
        raise UnsupportedMediaType(JSON, NDJSON)
    try:
        elements = parse_json(body := await request.body())
    except InvalidJSON as error:
        raise InvalidLine(_find_position(error, body), describe_first_error(error)) from error
    if not isinstance(elements, list):
        raise InvalidLine(1, f"a JSON array is expected, or {NDJSON}")
    for number, element in enumerate(elements, start=1):
        try:
            row = model.model_validate(element)
        except ValidationError as error:
            raise InvalidLine(number, describe_first_error(error)) from error
        yield number, row


def describe_first_error(error: ValidationError | InvalidJSON) -> str:
    """The first fault and its place, without the rejected value."""
    if isinstance(error, InvalidJSON):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]


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


def _strip(number: int, line: bytes) -> bytes:
    return (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip()
