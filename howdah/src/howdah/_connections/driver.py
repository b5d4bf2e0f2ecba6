"""A driver's connection that can be closed in a limited time, even if the server is frozen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import asyncpg

# A server that is alive closes a connection within milliseconds. The pool often waits for this while it holds a slot.
_CLOSE_SECONDS: Final = 1.0
# The limit for all idle connections of a pool together, so that a process can exit.
_DISPOSE_SECONDS: Final = 2.0


class CloseLimit:
    """The time for which a connection waits for the server to close it. All connections of a `Database` share it."""

    def __init__(self) -> None:
        self._deadline: float | None = None

    @property
    def seconds(self) -> float:
        if self._deadline is None:
            return _CLOSE_SECONDS
        return max(0.0, min(_CLOSE_SECONDS, self._deadline - time.monotonic()))

    @contextmanager
    def for_all(self) -> Iterator[None]:
        """In this block one deadline applies to all connections that are closed."""
        self._deadline = time.monotonic() + _DISPOSE_SECONDS
        try:
            yield
        finally:
            self._deadline = None


class BoundedConnection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection that is terminated if the server answers neither ROLLBACK nor the end of the connection in time.

    In both cases the result is certain without an answer: the server rolls back the transaction of a connection that
    has ended. So no error is raised. With `command_timeout` alone, each of them could take `statement_timeout` + 5 s.
    """

    close_limit = CloseLimit()
    rollback_seconds: float | None = None

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:  # noqa: ASYNC109
        is_limited = timeout is None and not args and query.rstrip("; ") == "ROLLBACK"
        try:
            status: str = await super().execute(query, *args, timeout=self.rollback_seconds if is_limited else timeout)
        except TimeoutError:
            if not is_limited or self.rollback_seconds is None:
                raise
            self.terminate()
            return "ROLLBACK"
        return status

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109
        limit = self.close_limit.seconds if timeout is None else min(timeout, self.close_limit.seconds)
        if limit <= 0:
            self.terminate()
            return
        try:
            async with asyncio.timeout(limit):  # the driver's own timeout doesn't limit all of its waits
                await super().close(timeout=limit)
        except TimeoutError:
            self.terminate()
