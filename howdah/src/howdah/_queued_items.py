"""The items of a Coalescer, the tasks that wait for them, and their deadlines."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class QueuedItem(Generic[ItemT, ResultT]):
    """An item of the queue. `waiters` has the futures of the waiting tasks, each with the time of its `submit`."""

    __slots__ = ("_timeouts", "item", "links", "waiters")

    def __init__(self, item: ItemT) -> None:
        self.item = item
        self.waiters: dict[asyncio.Future[ResultT], float] = {}
        self.links: list[Any] = []
        self._timeouts: dict[asyncio.Future[ResultT], float] | None = None

    def set_timeout(self, waiter: asyncio.Future[ResultT], seconds: float) -> None:
        """Set a timeout for this waiter, which must be shorter than `submit_timeout`."""
        if self._timeouts is None:
            self._timeouts = {}
        self._timeouts[waiter] = seconds

    def has_waiters(self) -> bool:
        """Whether a task still waits for the result: it wasn't cancelled, and its deadline hasn't passed."""
        return any(not waiter.done() for waiter in self.waiters)

    def iterate_deadlines(self, timeout: float) -> Iterator[float]:
        """The deadlines of the waiters that still wait, as times of the event loop."""
        own = self._timeouts or {}
        return (since + own.get(waiter, timeout) for waiter, since in self.waiters.items() if not waiter.done())

    def find_expired(self, now: float, timeout: float) -> list[tuple[asyncio.Future[ResultT], float]]:
        """The waiters whose deadline has passed, each with the seconds that it has waited."""
        own = self._timeouts or {}
        return [
            (waiter, now - since)
            for waiter, since in self.waiters.items()
            if since + own.get(waiter, timeout) <= now and not waiter.done()
        ]


def last_deadline(batch: Sequence[QueuedItem[Any, Any]], timeout: float) -> float:
    """The last deadline of the waiters that still wait; minus infinity if there is none."""
    return max((deadline for entry in batch for deadline in entry.iterate_deadlines(timeout)), default=-math.inf)


class DeadlineTimer:
    """One timer for the deadlines of all waiters. A timer for each one would cost as much as the rest of `submit`."""

    def __init__(self, expire: Callable[[asyncio.AbstractEventLoop], None]) -> None:
        self._expire = expire
        self._handle: asyncio.TimerHandle | None = None
        self._at = math.inf
        self.is_set = False

    def set(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        """Call `expire` at this time of the loop, unless it will be called earlier."""
        if at < self._at:
            self.cancel()
            self._handle, self._at, self.is_set = loop.call_at(at, self._run, loop), at, True

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle, self._at, self.is_set = None, math.inf, False

    def release(self) -> None:
        """Cancel the timer, and forget `expire`: it refers to the owner of the timer, which would be in a cycle."""
        self.cancel()
        self._expire = _do_nothing

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        self._handle, self._at, self.is_set = None, math.inf, False
        self._expire(loop)


def _do_nothing(_loop: asyncio.AbstractEventLoop) -> None: ...


def give_results(batch: Sequence[QueuedItem[Any, Any]], results: Any) -> None:
    """Give each waiter the result of its item. A result that is an exception is raised for it."""
    count = len(results) if isinstance(results, Sequence) else None
    if count != len(batch):  # the batch isn't retried, because it may have been written
        what = f"a {type(results).__name__}" if count is None else f"{count} results"
        fail(batch, TypeError(f"apply got {len(batch)} items and returned {what}: return one result per item"))
        return
    for entry, result in zip(batch, results, strict=True):
        if isinstance(result, Exception):
            fail([entry], result)
            continue
        for waiter in entry.waiters:
            if not waiter.done():
                waiter.set_result(result)


def fail(batch: Sequence[QueuedItem[Any, Any]], error: Exception) -> None:
    """Raise the error for all waiters that have no result. If there are several, each one gets a copy."""
    if isinstance(error, StopIteration):  # a Future doesn't accept StopIteration
        wrapped = RuntimeError("apply failed with StopIteration")
        wrapped.__cause__ = error
        error = wrapped
    pending = [waiter for entry in batch for waiter in entry.waiters if not waiter.done()]
    for waiter in pending:
        waiter.set_exception(error if len(pending) == 1 else _copy_error(error))


def _copy_error(error: Exception) -> Exception:
    """A copy of the error, or the error itself if it can't be copied.

    Each waiter needs a copy, because raising an error adds to its traceback.
    """
    try:
        own = copy.copy(error)
    except Exception:
        return error
    if type(own) is not type(error):
        return error
    own.__cause__ = error
    return own
