"""Process a request with any number of lines part by part, with constant memory use."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import IO, Any, Final, TypeVar

BATCH_LINES: Final = 500
"""Lines of one part. Each part is one transaction."""
LINES_BETWEEN_PAUSES: Final = 50
"""After this many lines, the reader lets other tasks run. One of them processes the previous part."""
# A larger response is written to a temporary file.
_SPOOL_BYTES: Final = 1_048_576
_CHUNK_BYTES: Final = 65_536

PartT = TypeVar("PartT")
ResultT = TypeVar("ResultT")


async def process_in_parts(
    parts: AsyncIterator[PartT],
    process: Callable[[PartT], Coroutine[Any, Any, ResultT]],
    write: Callable[[PartT, ResultT, IO[bytes]], None],
) -> AsyncIterator[bytes]:
    """Process the parts in order. After each part `write` is called with it and its result. Returns the written bytes.

    While one part is processed, the next one is read and the result of the previous one is written. The results are
    stored in a temporary file, because a client may send its whole request before it reads the response.
    """
    results = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115  # closed by _read_and_close
    running: tuple[PartT, asyncio.Task[ResultT]] | None = None
    finished: tuple[PartT, ResultT] | None = None
    try:
        async for part in parts:
            if finished is not None:
                write(*finished, results)
            finished = None if running is None else (running[0], await running[1])
            running = part, asyncio.create_task(process(part))
        if finished is not None:
            write(*finished, results)
        if running is not None:
            write(running[0], await running[1], results)
    except BaseException:
        if running is not None:
            await asyncio.wait([running[1]])
        results.close()
        raise
    results.seek(0)
    return _read_and_close(results)


async def _read_and_close(results: IO[bytes]) -> AsyncIterator[bytes]:
    try:
        while part := await asyncio.to_thread(results.read, _CHUNK_BYTES):
            yield part
    finally:
        results.close()
