"""The items of a Coalescer, the tasks that wait for them, and their deadlines."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Wait(NamedTuple):
    """When a task has called `submit`, and until when it waits. Both are times of the event loop."""

    since: float
    deadline: float


class QueuedItem(Generic[ItemT, ResultT]):
    """An item of the queue. `waiters` has the futures of the waiting tasks."""

    __slots__ = ("item", "links", "waiters")

    def __init__(self, item: ItemT) -> None:
        self.item = item
        self.waiters: dict[asyncio.Future[ResultT], Wait] = {}
        self.links: list[Any] = []

    def has_waiters(self) -> bool:
        """Whether a task still waits for the result: it wasn't cancelled, and its deadline hasn't passed."""
        return any(not waiter.done() for waiter in self.waiters)


class DeadlineTimer:
    """One timer for the deadlines of all waiters: a timer for each waiter would cost more than the rest of its wait."""

    def __init__(self, expire: Callable[[asyncio.AbstractEventLoop], None]) -> None:
        self._expire = expire
        self._handle: asyncio.TimerHandle | None = None
        self.at = math.inf

    def set(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        """Call `expire` at this time of the loop, and no more at the time that was set before."""
        self.cancel()
        self._handle, self.at = loop.call_at(at, self._run, loop), at

    def cancel(self) -> None:
        """Without this, the loop would keep the coalescer in memory until the time that was set."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle, self.at = None, math.inf

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        self._handle, self.at = None, math.inf
        self._expire(loop)


def find_expired(entry: QueuedItem[Any, ResultT], now: float) -> list[tuple[asyncio.Future[ResultT], float]]:
    """The waiters of this item whose deadline has passed, each with the seconds that it has waited."""
    return [
        (waiter, now - wait.since)
        for waiter, wait in entry.waiters.items()
        if wait.deadline <= now and not waiter.done()
    ]


def next_deadline(entries: Iterable[QueuedItem[Any, Any]]) -> float:
    """The first deadline of the waiters that still wait; infinity if there is none."""
    return min(_iterate_deadlines(entries), default=math.inf)


def last_deadline(entries: Iterable[QueuedItem[Any, Any]]) -> float:
    """The last deadline of the waiters that still wait; minus infinity if there is none."""
    return max(_iterate_deadlines(entries), default=-math.inf)


def _iterate_deadlines(entries: Iterable[QueuedItem[Any, Any]]) -> Iterable[float]:
    return (wait.deadline for entry in entries for waiter, wait in entry.waiters.items() if not waiter.done())


def give_results(batch: Sequence[QueuedItem[Any, Any]], results: Any) -> None:
    """Give each waiter the result of its item. A result that is an exception is raised for it."""
    count = len(results) if isinstance(results, Sequence) else None
    if count != len(batch):  # no retry: the batch has been written
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
