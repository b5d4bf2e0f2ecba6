"""Locks between processes, which the kernel frees with the process that holds them."""

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

_POLL_SECONDS = 0.01


def open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


@contextlib.contextmanager
def locked(path: Path, deadline: float) -> Iterator[None]:
    lock = open_lock(path)

    def is_ours() -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    try:
        if not wait(is_ours, deadline):
            raise EmbeddedPostgresError(f"another process holds {path}: it starts or stops the server, or hangs")
        yield
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)  # closing isn't enough when another thread has forked meanwhile
        os.close(lock)


def wait(condition: Callable[[], bool], deadline: float) -> bool:
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
