"""Answer an NDJSON body with one result line for each line of the body. An invalid line doesn't affect the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from howdah import RejectedRow
from howdah.fastapi._bodies import find_pool
from howdah.fastapi._spool import Spool, SpoolFull
from howdah.fastapi.exports import NDJSON, PacedResponse, encode_line
from howdah.fastapi.ndjson import InvalidLine, parse_line, read_lines
from howdah.fastapi.problem import describe_error
from howdah.fastapi.stream_limits import BodyLimits, SendLimits, TooManyStreams, take_ticket

BATCH_LINES: Final = 500
"""The number of lines in a batch, if `batch_lines` isn't set."""

ModelT = TypeVar("ModelT", bound=BaseModel)
RowT = TypeVar("RowT")
ResultT = TypeVar("ResultT")
Batch: TypeAlias = Mapping[int, RowT | InvalidLine]
"""By line number: the row, or the reason why the line is invalid."""


def describe_invalid_line(reason: str) -> dict[str, Any]:
    """The result line of an invalid line, if `invalid` isn't set."""
    return {"outcome": "invalid", "detail": reason}


def describe_rejected_row(row: RejectedRow) -> dict[str, Any]:
    """The members of the line of a row that `create_many` or `upsert_many` has skipped.

    `type` is that of the problem details for this error. The members contain no values of the row.
    """
    return {"outcome": "rejected", **describe_error(row.error)}


def keep_result(result: Any) -> Mapping[str, Any]:
    """The result, which is a mapping already, if `serialize` isn't set."""
    members: Mapping[str, Any] = result
    return members


async def answer_lines(
    request: Request,
    model: type[ModelT],
    process: Callable[[list[ModelT]], Awaitable[Sequence[ResultT]]],
    *,
    serialize: Callable[[ResultT], Mapping[str, Any]] = keep_result,
    invalid: Callable[[str], Mapping[str, Any]] = describe_invalid_line,
    batch_lines: int = BATCH_LINES,
    limits: BodyLimits | None = None,
    send_limits: SendLimits | None = None,
) -> StreamingResponse:
    """Process an NDJSON body of any length in batches, and answer with a line for each line, in the same order.

    `process` gets the rows of `batch_lines` lines and returns a result for each, in order. Each batch is usually one
    transaction. A line of the response is `{"line": 1, **serialize(result)}`. Without `serialize` the results are
    mappings. For a line that the model rejects it is `{"line": 1, **invalid(reason)}`.

    `process` should open a session for each batch, so that no connection is held while the next lines arrive. A client
    that sends more slowly than `limits` gets a 408, and one that receives more slowly than `send_limits` is
    disconnected.

    At most a quarter of `pool_size` batches are processed at a time, together with exports and bulk uploads. A batch
    waits for `pool_timeout`, and then raises `TooManyStreams` (503).

    Memory use is constant. The response starts when the last line has been processed, because a client may send its
    whole body before it reads the response. If `process` fails, the response is that error, and the batches before it
    stay committed. So that a rejected row doesn't make it fail, write with `max_rejected=len(rows)`, and use
    `describe_rejected_row`. The import can still fail, so a client must be able to send all lines again, for example
    with a key on each line.
    """
    pool = find_pool(request)

    async def process_in_turn(rows: list[ModelT]) -> Sequence[ResultT]:
        ticket = await take_ticket(pool)
        try:
            return await process(rows)
        finally:
            ticket.release()

    batches = _read_batches(request, model, batch_lines, limits)
    return await answer_batches(batches, process_in_turn, serialize=serialize, invalid=invalid, send_limits=send_limits)


async def answer_batches(
    batches: AsyncIterator[Batch[RowT]],
    process: Callable[[list[RowT]], Awaitable[Sequence[ResultT]]],
    *,
    serialize: Callable[[ResultT], Mapping[str, Any]] = keep_result,
    invalid: Callable[[str], Mapping[str, Any]] = describe_invalid_line,
    send_limits: SendLimits | None = None,
) -> StreamingResponse:
    """As `answer_lines`, for batches that the caller has read with `read_lines` and `parse_line`.

    A batch maps the number of each line to its row, or to the `InvalidLine`. The caller decides where a batch ends, and
    may convert the rows. The number of batches that are processed at a time isn't limited.
    """

    async def process_rows(batch: Batch[RowT]) -> Sequence[ResultT]:
        rows = [row for row in batch.values() if not isinstance(row, InvalidLine)]
        results = await process(rows) if rows else []
        if len(results) != len(rows):
            raise ValueError(f"process returned {len(results)} results for {len(rows)} rows: return one for each")
        return results

    def encode(batch: Batch[RowT], results: Sequence[ResultT]) -> bytes:
        remaining = iter(results)
        return b"".join(
            encode_line(
                {
                    "line": number,
                    **(invalid(row.reason) if isinstance(row, InvalidLine) else serialize(next(remaining))),
                }
            )
            for number, row in batch.items()
        )

    results = await _process_batches(batches, process_rows, encode)
    return PacedResponse(results, limits=send_limits, media_type=NDJSON)


async def _read_batches(
    request: Request, model: type[ModelT], batch_lines: int, limits: BodyLimits | None
) -> AsyncIterator[Batch[ModelT]]:
    """The parsed lines, `batch_lines` at a time."""
    batch: dict[int, ModelT | InvalidLine] = {}
    async for number, line in read_lines(request, limits=limits):
        try:
            batch[number] = parse_line(number, line, model)
        except InvalidLine as error:
            batch[number] = error
        if len(batch) >= batch_lines:
            yield batch
            batch = {}
    if batch:
        yield batch


async def _process_batches(
    batches: AsyncIterator[Batch[RowT]],
    process: Callable[[Batch[RowT]], Coroutine[Any, Any, Sequence[ResultT]]],
    encode: Callable[[Batch[RowT], Sequence[ResultT]], bytes],
) -> AsyncIterator[bytes]:
    """Process the batches in order. After each batch `encode` is called with it and its results.

    Returns the encoded bytes. While one batch is processed, the next one is read and the results of the previous one
    are stored.
    """
    output = Spool()
    running: tuple[Batch[RowT], asyncio.Task[Sequence[ResultT]]] | None = None
    finished: tuple[Batch[RowT], Sequence[ResultT]] | None = None
    try:
        async for batch in batches:
            if finished is not None:
                await _store(encode(*finished), output)
            finished = None if running is None else (running[0], await running[1])
            running = batch, asyncio.create_task(process(batch))
        if finished is not None:
            await _store(encode(*finished), output)
        if running is not None:
            await _store(encode(running[0], await running[1]), output)
    except BaseException:
        if running is not None:
            await asyncio.wait([running[1]])
        output.close()
        raise
    output.finish()
    return _read_and_close(output)


async def _store(lines: bytes, output: Spool) -> None:
    try:
        await output.write(lines, waits=False)
    except SpoolFull as error:
        raise TooManyStreams(
            "there is no space for the result lines: a part of the lines was processed, send all of them again later"
        ) from error


async def _read_and_close(output: Spool) -> AsyncIterator[bytes]:
    try:
        while part := await output.read():
            yield part
    finally:
        output.close()
