"""Locks between processes. The kernel releases them if the process ends."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from howdah.errors import EmbeddedPostgresError

if sys.platform != "win32":
    import fcntl

# `flock` has no timeout, so it is polled, like the other conditions of a start and stop.
_POLL_SECONDS = 0.01


def open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


@contextlib.contextmanager
def hold_lock(path: Path, deadline: float) -> Iterator[None]:
    """Hold the lock of this file exclusively. The deadline is a time of `time.monotonic()`."""
    lock = open_lock(path)

    def try_lock() -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    try:
        if not wait_until(try_lock, deadline):
            raise EmbeddedPostgresError(
                f"the lock {path} is held by another process, which starts or stops the server, or hangs"
            )
        yield
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)  # closing isn't enough if another thread has forked in the meantime
        os.close(lock)


def wait_until(condition: Callable[[], bool], deadline: float) -> bool:
    """Whether the condition becomes true before the deadline."""
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
