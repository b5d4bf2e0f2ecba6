"""Process a request of any number of lines in parts, at constant memory."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import IO, Any, Final, TypeVar

BATCH_LINES: Final = 500
LINES_BETWEEN_OTHERS: Final = 50
"""After this many lines the reader lets other tasks run, such as the one that processes the previous part."""
_SPOOL_BYTES: Final = 1_048_576
_PART_BYTES: Final = 65_536

PartT = TypeVar("PartT")
ResultT = TypeVar("ResultT")


async def answered_in_parts(
    parts: AsyncIterator[PartT],
    carry_out: Callable[[PartT], Coroutine[Any, Any, ResultT]],
    write: Callable[[PartT, ResultT, IO[bytes]], None],
) -> AsyncIterator[bytes]:
    """Carry out the parts in order, and return what `write` writes for each part and its result.

    While one part is carried out, the next one is read and the previous one is written. The responses are spooled to
    disk, because a client may send its whole request before it reads anything.
    """
    answers = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115  # closed after it has been sent
    running: tuple[PartT, asyncio.Task[ResultT]] | None = None
    finished: tuple[PartT, ResultT] | None = None
    try:
        async for part in parts:
            if finished is not None:
                write(*finished, answers)
            finished = None if running is None else (running[0], await running[1])
            running = part, asyncio.create_task(carry_out(part))
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
    return _sent(answers)


async def _sent(answers: IO[bytes]) -> AsyncIterator[bytes]:
    try:
        while part := await asyncio.to_thread(answers.read, _PART_BYTES):
            yield part
    finally:
        answers.close()
