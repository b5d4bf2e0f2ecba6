"""Write log lines in a thread, so that a log that nobody reads never blocks the caller."""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, Protocol, TextIO

# A queue of this size holds the lines of a few seconds under load. When it is full, further lines are dropped.
MAX_LINES: Final = 20_000
MAX_BYTES: Final = 16_000_000

# The thread collects lines for this time, and then writes them together, because it takes the GIL from the event loop
# each time that it runs. A process that is killed loses the lines of this time.
_COLLECT_SECONDS: Final = 0.05
# After an error such as a full disk, the thread tries again after a pause.
_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 1.0
# The wait for the last lines at the end of the process.
_EXIT_SECONDS: Final = 1.0


class LineWriter(Protocol):
    """Where `howdah.logs` writes."""

    def write(self, line: bytes) -> None:
        """Write a line, which ends with a newline. Never raises an error of the operating system."""

    def close(self) -> None:
        """Write the lines that are left."""


class ThreadedWriter:
    """Writes to a file descriptor in a thread of its own. Lines keep their order, and are never mixed.

    `write` only appends to a queue. When the queue is full, because the reader of a pipe is slow or a disk is full,
    lines are dropped and counted. When the reader has caught up, the line of `describe_dropped` says how many. Any
    thread may call `write`, and so may signal handlers and finalizers. A forked child begins with an empty queue.
    """

    def __init__(
        self,
        descriptor: int,
        describe_dropped: Callable[[int], bytes],
        *,
        max_lines: int = MAX_LINES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._descriptor = os.dup(descriptor)  # the process may close its own one, and another file may get that number
        self._describe_dropped = describe_dropped
        self._max_lines, self._max_bytes = max_lines, max_bytes
        self._begin()
        _writers.append(self)
        self._start()

    def _begin(self) -> None:
        """Begin with an empty queue. A forked child calls this, too, because its parent writes the queued lines."""
        # A signal handler or a finalizer may log while its own thread holds the lock, so the lock is reentrant.
        self._lock = threading.RLock()
        self.dropped = 0
        self._lines: deque[bytes] = deque()
        self._waiting_bytes = 0  # of the queue, and of the lines that are being written
        self._dropped_now = 0  # since the last notice
        self._has_work = threading.Event()
        self._is_urgent = threading.Event()
        self._is_ending = False  # the same as `_is_urgent`, because an attribute is read faster
        self._is_awake = False
        self._is_failing = False
        self._is_closed = False
        self._is_started = False

    def write(self, line: bytes) -> None:
        """Queue a line, which takes a microsecond."""
        with self._lock:
            size = self._waiting_bytes + len(line)
            if size > self._max_bytes or len(self._lines) >= self._max_lines or self._is_closed:
                self.dropped += 1
                self._dropped_now += 1
                return
            self._waiting_bytes = size
            self._lines.append(line)
            is_awake, self._is_awake = self._is_awake, True
        if not is_awake:
            if not self._is_started:
                self._start()
            self._has_work.set()
        if self._is_ending:
            self.flush(_remaining_seconds())

    def flush(self, seconds: float) -> None:
        """Wait until all lines are written, at most for this time."""
        self._is_ending = True
        self._is_urgent.set()
        deadline = time.monotonic() + seconds
        # It polls, because a waiter of a condition would make each `write` slower.
        while self._waiting_bytes and not self._is_failing and time.monotonic() < deadline:
            time.sleep(0.001)

    def close(self) -> None:
        """Write the lines that are left, for at most a second, and end the thread. Later lines are dropped."""
        self.flush(_EXIT_SECONDS)
        self._is_closed = True
        self._has_work.set()
        with contextlib.suppress(ValueError):
            _writers.remove(self)

    def _start(self) -> None:
        with self._lock:
            if self._is_started:
                return
            self._is_started = True
            # As a daemon, a thread that is blocked by a full pipe doesn't keep the process from ending.
            thread = threading.Thread(target=self._run, name="howdah log writer", daemon=True)
            with contextlib.suppress(RuntimeError):  # a forked child that logs for the first time while it ends
                thread.start()

    def _run(self) -> None:
        """The thread: write the queued lines until the writer is closed."""
        while not self._is_closed:
            self._has_work.wait()
            self._is_urgent.wait(_COLLECT_SECONDS)
            with self._lock:
                lines, self._lines = self._lines, deque()
                dropped, self._dropped_now = self._dropped_now, 0
                if not lines and not dropped:
                    self._is_awake = False
                    self._has_work.clear()
                    continue
            with _hold_shared_lock(self._descriptor):
                self._send(b"".join(lines))
            with self._lock:
                self._waiting_bytes -= sum(map(len, lines))
            if dropped:
                with _hold_shared_lock(self._descriptor):
                    self._send(self._describe_dropped(dropped))
        os.close(self._descriptor)

    def _send(self, data: bytes) -> None:
        """Write all of it, however long it takes, unless the writer is closed."""
        rest, pause = memoryview(data), _FIRST_PAUSE_SECONDS
        while rest and not self._is_closed:
            try:
                written = os.write(self._descriptor, rest)
            except BlockingIOError:  # the process that started this one has made its end non-blocking
                select.select([], [self._descriptor], [], _LONGEST_PAUSE_SECONDS)
            except OSError:  # the disk is full, or nobody has the pipe open for reading: this may change
                self._is_failing = True
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                rest, pause, self._is_failing = rest[written:], _FIRST_PAUSE_SECONDS, False


class DirectWriter:
    """Writes to a stream without a file descriptor, such as that of a test, at once."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, line: bytes) -> None:
        """Write a line. A closed stream is ignored."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(line.decode(errors="backslashreplace"))
            self._stream.flush()

    def close(self) -> None:
        """Do nothing, because each line was written at once."""


def open_standard_error(describe_dropped: Callable[[int], bytes]) -> LineWriter:
    """A writer to standard error. The writer of an earlier call is closed."""
    for writer in [*_writers]:
        writer.close()
    stream = sys.stderr
    if stream is None:  # a process without a console
        return DirectWriter(open(os.devnull, "w"))
    try:
        descriptor = stream.fileno()
    except (AttributeError, OSError, ValueError):
        return DirectWriter(stream)
    stream.flush()
    return ThreadedWriter(descriptor, describe_dropped)


def flush_lines(seconds: float) -> None:
    """Wait until all lines are written, at most for this time. For a process that ends at once after that."""
    for writer in [*_writers]:
        writer.flush(seconds)


def share_lines() -> None:
    """Don't mix the lines of this process with those of others that also call this and share its standard error.

    Otherwise a write of more than 4,096 bytes to a pipe may be mixed with other writes. From now on, a process writes
    while it holds a lock on the file. The kernel releases the lock if the process ends. macOS has no such locks for
    pipes.
    """
    global _shares_lines  # noqa: PLW0603
    _shares_lines = True


@contextlib.contextmanager
def _hold_shared_lock(descriptor: int) -> Iterator[None]:
    if not _shares_lines:
        yield
        return
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.lockf(descriptor, fcntl.LOCK_UN)


def dropped_lines() -> int:
    """The number of log lines that this process has dropped."""
    return sum(writer.dropped for writer in _writers)


_writers: list[ThreadedWriter] = []
_shares_lines = False
# The time until which lines are awaited while the process ends. Empty before that.
_exit_deadlines: list[float] = []


def _remaining_seconds() -> float:
    """The rest of the wait at the end of the process, which all later lines share."""
    return _exit_deadlines[0] - time.monotonic() if _exit_deadlines else _EXIT_SECONDS


@atexit.register
def _flush_at_exit() -> None:
    """Write the last lines. Functions that `atexit` calls later may log, too: they wait until their line is written."""
    _exit_deadlines.append(time.monotonic() + _EXIT_SECONDS)
    for writer in _writers:
        writer.flush(_remaining_seconds())


def _begin_in_child() -> None:
    for writer in _writers:
        writer._begin()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_begin_in_child)
