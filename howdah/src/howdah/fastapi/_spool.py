"""A queue of bytes between a writer and a reader of different speeds. It is in memory while it is short.

Bytes that don't fit in memory are stored in temporary files without a name. The kernel deletes them when the process
ends, even if it is killed. Each file is closed as soon as it has been read.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import IO, Final

MEMORY_BYTES: Final = 131_072
"""The size at which the bytes in memory are moved to a file."""
PART_BYTES: Final = 65_536
"""The most that is read at once."""
FILE_BYTES: Final = 16_777_216
"""The size at which a further file is started, so that the disk space of the first one can be freed."""
MAX_STORED_BYTES: Final = 1_073_741_824
"""The most that all spools of the process store in files."""
READ_AHEAD_BYTES_PER_SECOND: Final = 2_097_152
"""The speed of reading rows that no client waits for yet, for all responses of the process together.

At full speed, one export uses all of the CPU time of an event loop and produces about 25 MB/s (`make bench
ONLY=slow-clients`). So this speed leaves about 90 % of the time to other requests.
"""


class SpoolFull(Exception):
    """No more bytes can be stored: all spools have `MAX_STORED_BYTES`, or the disk is full."""


class Spool:
    """The queue. One task writes to it and one task reads from it."""

    def __init__(self) -> None:
        self._tail = bytearray()  # the bytes that were written last
        self._blocks: deque[_Block] = deque()  # the bytes before them
        self._file: _File | None = None
        self._lock = asyncio.Lock()  # for the order of the tail and the blocks
        self._readable, self._writable = asyncio.Event(), asyncio.Event()
        self._is_finished = False
        self._error: Exception | None = None

    async def write(self, part: bytes, *, waits: bool) -> None:
        """Append the bytes. If they can't be stored, wait for the reader if `waits`, or else raise `SpoolFull`."""
        self._tail += part
        if not self._readable.is_set():
            self._readable.set()
            await asyncio.sleep(0)  # a reader that waits takes the bytes now, so they aren't stored
        while len(self._tail) >= MEMORY_BYTES and not await self._store_tail():
            if not waits:
                raise SpoolFull
            self._writable.clear()
            await self._writable.wait()

    def is_ahead(self) -> bool:
        """Whether files have bytes that the reader hasn't read."""
        return bool(self._blocks)

    async def wait_until_read(self) -> None:
        """Wait until the reader has read all files."""
        while self._blocks:
            self._writable.clear()
            await self._writable.wait()

    def finish(self, error: Exception | None = None) -> None:
        """End the queue. With an error the reader gets the bytes before it, and then the error."""
        self._is_finished, self._error = True, error
        self._readable.set()

    async def read(self) -> bytes:
        """The next bytes, any number of them. Waits for the writer. Returns no bytes at the end."""
        while True:
            async with self._lock:
                if self._blocks:
                    return await self._read_block()
            if self._tail:
                part = bytes(self._tail[:PART_BYTES])
                del self._tail[:PART_BYTES]
                self._writable.set()
                return part
            if self._is_finished:
                if self._error is not None:
                    raise self._error
                return b""
            self._readable.clear()
            await self._readable.wait()

    def close(self) -> None:
        """Delete all bytes. Call it after the last `write`."""
        for file in {block.file for block in self._blocks} | ({self._file} if self._file else set()):
            self._close_file(file)
        self._blocks.clear()
        self._tail.clear()
        self._file = None

    def __del__(self) -> None:  # of a response that is never sent
        self.close()

    async def _store_tail(self) -> bool:
        """Move the tail to a file. Returns false if that is impossible. Then the bytes stay in memory."""
        async with self._lock:
            data = bytes(self._tail)
            if not data:  # the reader has taken it
                return True
            if not _usage.reserve(len(data)):
                return False
            file = self._file
            try:
                if file is None:
                    file = self._file = _File()
                await asyncio.to_thread(file.write, data)
            except BaseException as error:
                _usage.release(len(data))
                if isinstance(error, OSError):
                    return False
                raise
            self._blocks.append(_Block(file, file.size, file.size + len(data)))
            file.size += len(data)
            file.unread += 1
            del self._tail[: len(data)]
            if file.size >= FILE_BYTES:
                self._file = None
            return True

    async def _read_block(self) -> bytes:
        """The next part of the first block."""
        block = self._blocks[0]
        data = await asyncio.to_thread(block.file.read, block.start, min(PART_BYTES, block.end - block.start))
        block.start += len(data)
        if block.start == block.end:
            self._blocks.popleft()
            block.file.unread -= 1
            if not block.file.unread:
                self._close_file(block.file)
            self._writable.set()
        return data

    def _close_file(self, file: _File) -> None:
        if file is self._file:
            self._file = None
        file.close()
        _usage.release(file.size)


class SpooledParts:
    """An asynchronous iterator over the bytes of `parts`. It reads ahead while its user waits for a client.

    A task iterates over `parts`. It starts when the first part is requested. `at_end` is called when `parts` has ended
    or has failed, even if its bytes haven't been read yet. Call `aclose` in any case.
    """

    def __init__(self, parts: AsyncIterator[bytes], *, at_end: Callable[[], None]) -> None:
        self._parts, self._at_end = parts, at_end
        self._spool = Spool()
        self._filling: asyncio.Task[None] | None = None

    def __aiter__(self) -> SpooledParts:
        return self

    async def __anext__(self) -> bytes:
        if self._filling is None:
            self._filling = asyncio.create_task(self._fill())
        part = await self._spool.read()
        if not part:
            raise StopAsyncIteration
        return part

    async def aclose(self) -> None:
        """End the iteration of `parts`, and delete the stored bytes."""
        if self._filling is None:
            await self._close_parts()
            return
        self._filling.cancel()
        self._filling.add_done_callback(lambda _: self._spool.close())
        try:
            await asyncio.wait([self._filling])
        finally:
            self._at_end()  # here, because a task that is cancelled before it starts runs nothing

    async def _fill(self) -> None:
        """Write all of `parts` to the spool, and read ahead at a limited speed."""
        error = None
        try:
            try:
                async for part in self._parts:
                    await self._spool.write(part, waits=True)
                    if self._spool.is_ahead():
                        await _read_ahead.wait(self._spool, len(part))
            finally:
                await self._close_parts()
        except Exception as raised:
            error = raised
        self._spool.finish(error)

    async def _close_parts(self) -> None:
        try:
            close = getattr(self._parts, "aclose", None)  # only a generator has it
            if close is not None:
                await close()
        finally:
            self._at_end()


class _ReadAhead:
    """Divides `READ_AHEAD_BYTES_PER_SECOND` between all responses of the process."""

    def __init__(self) -> None:
        self._allowed_at = 0.0  # when the next bytes may be read ahead

    async def wait(self, spool: Spool, size: int) -> None:
        """Wait as long as the speed limit requires for so many bytes, or until the client needs the next ones."""
        now = time.monotonic()
        allowed_at = self._allowed_at = max(now, self._allowed_at) + size / READ_AHEAD_BYTES_PER_SECOND
        try:
            async with asyncio.timeout(allowed_at - now):
                await spool.wait_until_read()
        except TimeoutError:
            return
        self._allowed_at -= max(0.0, allowed_at - time.monotonic())


_read_ahead = _ReadAhead()


class _File:
    """A temporary file. `size` is the position of its end, and `unread` the number of its blocks in the queue."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # closed by the spool
        # A thread continues after its task was cancelled. It must not write to a descriptor that has been closed,
        # because another file may have the same number by then.
        self._lock = threading.Lock()
        self.size = self.unread = 0

    def write(self, data: bytes) -> None:
        """Write the bytes after the end. They belong to the file when the caller has changed `size`."""
        with self._lock:
            remaining, offset = memoryview(data), self.size
            while remaining and not self._file.closed:
                written = os.pwrite(self._file.fileno(), remaining, offset)
                remaining, offset = remaining[written:], offset + written

    def read(self, offset: int, size: int) -> bytes:
        with self._lock:
            return os.pread(self._file.fileno(), size, offset)

    def close(self) -> None:
        with self._lock:
            self._file.close()


class _Usage:
    """The bytes in the files of all spools of the process, whose event loops may run in several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.stored_bytes = 0

    def reserve(self, size: int) -> bool:
        with self._lock:
            if self.stored_bytes + size > MAX_STORED_BYTES:
                return False
            self.stored_bytes += size
            return True

    def release(self, size: int) -> None:
        with self._lock:
            self.stored_bytes -= size


_usage = _Usage()


def stored_bytes() -> int:
    """The bytes in the files of all spools of the process."""
    return _usage.stored_bytes


@dataclass(slots=True)
class _Block:
    """The bytes of a file from `start` to `end`, which haven't been read yet."""

    file: _File
    start: int
    end: int
