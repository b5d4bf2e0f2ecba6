"""Bodies of many rows: NDJSON, or a JSON array."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import orjson
from fastapi import Request

from shop.web.errors import BadLine

NDJSON: Final = "application/x-ndjson"
MAX_LINE_BYTES: Final = 1_048_576


async def ndjson_lines(request: Request) -> AsyncIterator[tuple[int, bytes]]:
    """The body's lines with their numbers from 1, empty ones left out, as they arrive.

    Raises `BadLine` for one of over a megabyte.
    """
    number, rest = 0, b""
    async for part in request.stream():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            number += 1
            if line.strip():
                yield number, line
        if len(rest) > MAX_LINE_BYTES:
            raise BadLine(number + 1, f"longer than {MAX_LINE_BYTES} bytes")
    if rest.strip():
        yield number + 1, rest


async def json_rows(request: Request) -> AsyncIterator[tuple[int, bytes]]:
    """The rows of a body that is NDJSON by its content type, or else a JSON array, each as JSON text with its number
    from 1. NDJSON is read as it arrives, at constant memory; an array is held whole. Raises `BadLine`."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() == NDJSON:
        async for line in ndjson_lines(request):
            yield line
        return
    try:
        rows = orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise BadLine(error.lineno, error.msg) from error
    if not isinstance(rows, list):
        raise BadLine(1, f"a JSON array is expected, or {NDJSON}")
    for number, row in enumerate(rows, start=1):
        yield number, orjson.dumps(row)
