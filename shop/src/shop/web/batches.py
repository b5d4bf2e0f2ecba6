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
    """Process the parts in order, and return the response. `write` writes the lines for a part and its result.

    While a part is processed, the next part is read, and the lines for the previous part are written. The response is
    spooled to disk, because a client may send its whole request before it reads anything.
    """
    answers = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115  # closed after it has been sent
    running: tuple[PartT, asyncio.Task[ResultT]] | None = None
    finished: tuple[PartT, ResultT] | None = None
    try:
        async for part in parts:
            if finished is not None:
                write(*finished, answers)
            finished = None if running is None else (running[0], await running[1])
            running = part, asyncio.create_task(process(part))
        if finished is not None:
            write(*finished, answers)
        if running is not None:
            write(running[0], await running[1], answers)
    except BaseException:
        if running is not None:
            await asyncio.wait([running[1]])
        answers.close()
        raise
    answers.seek(0)
    return _read_chunks(answers)


async def _read_chunks(answers: IO[bytes]) -> AsyncIterator[bytes]:
    try:
        while chunk := await asyncio.to_thread(answers.read, _CHUNK_BYTES):
            yield chunk
    finally:
        answers.close()
