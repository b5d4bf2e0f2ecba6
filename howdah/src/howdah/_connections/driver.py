"""A driver's connection that can be closed in a limited time, even if the server is frozen."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import asyncpg

# A server that is alive closes a connection within milliseconds. The pool often waits for this while it holds a slot.
_CLOSE_SECONDS: Final = 1.0
# The limit for all idle connections of a pool together, so that a process can exit.
_DISPOSE_SECONDS: Final = 2.0

# The driver's transaction sends it in this form.
_COMMIT: Final = "COMMIT;"


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

    A COMMIT isn't interrupted if its task is cancelled. Otherwise nobody would know whether it took effect, and the
    connection would be lost.
    """

    close_limit = CloseLimit()
    rollback_seconds: float | None = None

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:  # noqa: ASYNC109
        if query == _COMMIT and not args:
            return await self._finish_commit(asyncio.ensure_future(super().execute(query, timeout=timeout)))
        is_limited = timeout is None and not args and query.rstrip("; ") == "ROLLBACK"
        try:
            status: str = await super().execute(query, *args, timeout=self.rollback_seconds if is_limited else timeout)
        except TimeoutError:
            if not is_limited or self.rollback_seconds is None:
                raise
            self.terminate()
            return "ROLLBACK"
        return status

    async def _finish_commit(self, commit: asyncio.Future[str]) -> str:
        """The result of COMMIT. If the task is cancelled meanwhile, this is as if it was cancelled afterwards.

        After the cancellation, `rollback_seconds` limits the wait. Then the connection is terminated, and it is unknown
        whether the transaction was committed.
        """
        try:
            return await asyncio.shield(commit)
        except asyncio.CancelledError as error:
            if commit.cancelled():
                raise
            if not await _wait_uninterrupted(commit, self.rollback_seconds):
                self.terminate()
                raise
            failure = commit.exception()
            if failure is not None:
                raise error from failure
            # The next `await` raises CancelledError. `uncancel` keeps the number of cancellations, which
            # `asyncio.timeout` compares.
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            task.cancel(*error.args)
            return commit.result()

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


async def _wait_uninterrupted(future: asyncio.Future[Any], seconds: float | None) -> bool:
    """Wait for the future, although the task may be cancelled again. Return whether it is done in time."""
    loop = asyncio.get_running_loop()
    deadline = math.inf if seconds is None else loop.time() + seconds
    while not future.done() and loop.time() < deadline:
        with suppress(asyncio.CancelledError):
            await asyncio.wait([future], timeout=None if seconds is None else deadline - loop.time())
    if future.done():
        return True
    future.cancel()
    return False
