"""Many riders, one trip: tasks that wait for the database at the same moment share one call.

    async def prices(skus: Sequence[str]) -> list[int | NotFound]:
        found = dict(await connection.fetch("SELECT sku, price FROM items WHERE sku = ANY($1)", skus))
        return [found.get(sku) or NotFound(Item, [sku]) for sku in skus]

    async with Coalescer(prices, key=lambda sku: sku) as coalescer:
        price = await coalescer.submit("A-1")  # in many tasks at once

There is no timer. While a trip is under way the next batch gathers, so an idle system adds no latency, and a busy one
grows its batches by itself: group commit, as PostgreSQL does it with its log
(<https://www.postgresql.org/docs/current/wal-configuration.html>).
"""

from __future__ import annotations

import asyncio
import copy
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Generic, TypeAlias, TypeVar

from howdah._connections.slots import new_batch_context
from howdah._retry import retried
from howdah._tracing import batch_span, current_link
from howdah.errors import BatchAbandoned, CoalescerClosed, ConnectionFailed, QueueFull, TransactionConflict, Unavailable

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
Apply: TypeAlias = Callable[[Sequence[ItemT]], Awaitable[Sequence[ResultT | Exception]]]

_RETRIED: Final = (TransactionConflict, ConnectionFailed)
_MIN_SHARE: Final = 32
"""Fewer items aren't shared out: what a trip takes by itself would be more than what is won."""


@dataclass(frozen=True, slots=True)
class CoalescerStatus:
    """Figures to be exported. All but `waiting` and `under_way` only grow."""

    waiting: int
    """Tasks whose item isn't on a trip yet."""
    running: int
    """Trips."""
    batches: int
    """Calls of `apply`, those under way included."""
    items: int
    """That those calls were given."""
    rejected: int
    """Submits that found the queue full."""
    batch_size_histogram: Mapping[int, int]
    """How many calls were given at most so many items (and more than the next smaller number, half of it)."""
    wait_histogram: Mapping[float, int]
    """How many tasks waited at most so many seconds for their trip to begin (and more than half of it)."""
    wait_seconds_sum: float
    """All of them together."""


class Coalescer(Generic[ItemT, ResultT]):
    """Gathers the items that tasks `submit`, and calls `apply` with all that wait when a trip is free.

    `apply` gets at least one item and returns a result for each, in their order. It sees none of the submitters'
    context variables, and if it writes, returns after its commit. At most `trips` calls run at a time, each with at
    most `max_batch_size` items; a further one sets off beside others when as many items wait as those carry. With `key`,
    items that are waiting with the same key travel as one and share the result (the object itself): for reads. With
    `split_between_workers`, for an `apply` part of which waits for its turn, those who wait are shared out among the trips that are
    free, so that one is prepared while another one is under way.

    What goes wrong:

    - a result that is an `Exception` is raised for its item's waiters alone;
    - `TransactionConflict` and `ConnectionFailed`, after which nothing has been done, have the batch tried again, `attempts` times
      in all, at random intervals;
    - any other error that `apply` raises is raised for every waiter of the batch, each getting a copy of its own, with
      the error as its cause. With `isolate`, a batch of several items that fails with something else than `Unavailable`
      is halved and tried again, until only the items at fault fail: for an `apply` that does all or nothing;
    - a call that takes longer than `timeout` seconds is cancelled, and its waiters get `BatchAbandoned`: as after any
      lost connection, what it was to write may have been written;
    - a waiter that is cancelled leaves, and its neighbours don't notice; if nobody waits for an item any more it isn't
      sent, unless it is under way already;
    - the submit that would be one too many for `max_waiting` raises `QueueFull` at once.

    A waiter always gets an answer: within the time of the batches before it, each of which is bounded by `timeout` and
    `attempts`. `async with` drains: leaving it, no more items are taken (`CoalescerClosed`), and those there are
    carried through. It belongs to the event loop that uses it first.

    A task may submit while it holds a transaction open, because some connections of the pool are reserved for batches.
    The transaction keeps its locks meanwhile. A batch that needs one of them fails with `LockTimeout` after
    `lock_timeout`.
    """

    def __init__(
        self,
        apply: Apply[ItemT, ResultT],
        *,
        max_batch_size: int = 1_000,
        max_waiting: int = 10_000,
        workers: int = 1,
        key: Callable[[ItemT], Hashable] | None = None,
        bisect_on_error: bool = False,
        split_between_workers: bool = False,
        max_attempts: int = 3,
        batch_timeout: float = 30.0,
    ) -> None:
        for name, value in (("max_batch_size", max_batch_size), ("max_waiting", max_waiting), ("workers", workers)):
            if value < 1:
                raise ValueError(f"{name} is at least 1, not {value}")
        if max_attempts < 1 or batch_timeout <= 0:
            raise ValueError(
                f"max_attempts must be at least 1 and batch_timeout more than 0 s, not {max_attempts} and {batch_timeout}"
            )
        self._apply = apply
        self._max_batch, self._max_waiting, self._workers = max_batch_size, max_waiting, workers
        self._key, self._bisect_on_error, self._max_attempts, self._batch_timeout = (
            key,
            bisect_on_error,
            max_attempts,
            batch_timeout,
        )
        self._pipelined = split_between_workers
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: OrderedDict[Hashable, _Entry[ItemT, ResultT]] = OrderedDict()
        self._waiting = 0
        self._running: set[asyncio.Task[None]] = set()
        self._running_items = 0
        self._is_starting = False
        self._closed = False
        self._calls = self._items = self._rejected = 0
        self._sizes: Counter[int] = Counter()
        self._waits: Counter[int] = Counter()
        self._wait_seconds_sum = 0.0

    async def __aenter__(self) -> Coalescer[ItemT, ResultT]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Take no more items, and wait until those there are have their answers."""
        self._closed = True
        while self._running:
            await asyncio.wait(self._running)

    async def submit(self, item: ItemT) -> ResultT:
        """The item's result, or its error. Raises `QueueFull` and `CoalescerClosed` before the item is taken."""
        loop = asyncio.get_running_loop()
        self._check_accepts(loop)
        key = object() if self._key is None else self._key(item)
        entry = self._queue.get(key)
        if entry is None:
            entry = self._queue[key] = _Entry(item)
        waiter: asyncio.Future[ResultT] = loop.create_future()
        entry.waiters[waiter] = loop.time()
        link = current_link()
        if link is not None:
            entry.links.append(link)
        self._waiting += 1
        self._start_worker(loop)
        try:
            return await waiter
        except asyncio.CancelledError:
            if self._queue.get(key) is entry and entry.waiters.pop(waiter, None) is not None:
                self._waiting -= 1
                if not entry.waiters:
                    del self._queue[key]
            if waiter.done() and not waiter.cancelled():
                waiter.exception()  # seen: it came in the same moment
            raise

    def status(self) -> CoalescerStatus:
        """How it stands now, in this process."""
        return CoalescerStatus(
            waiting=self._waiting,
            running=len(self._running) - self._is_starting,
            batches=self._calls,
            items=self._items,
            rejected=self._rejected,
            batch_size_histogram={2**power: count for power, count in sorted(self._sizes.items())},
            wait_histogram={2**power / 1000: count for power, count in sorted(self._waits.items())},
            wait_seconds_sum=self._wait_seconds_sum,
        )

    def _check_accepts(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise RuntimeError("this coalescer belongs to another event loop: make one in each")
        if self._closed:
            raise CoalescerClosed("the coalescer takes no more items: it is closed, or closing")
        if self._waiting >= self._max_waiting:
            self._rejected += 1
            raise QueueFull(f"{self._waiting:,} tasks wait already")

    def _start_worker(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start a trip if one is free, and as many wait as are under way: batches are to grow with the load, not to be
        split among the trips. It departs in the loop's next round, so that all who come in this one are on."""
        if not self._queue or self._is_starting or len(self._running) >= self._workers:
            return
        if len(self._queue) < min(self._running_items, self._max_batch):
            return
        self._is_starting = True
        worker = loop.create_task(self._work(loop), context=new_batch_context())
        self._running.add(worker)
        worker.add_done_callback(self._worker_ended)

    async def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_starting = False
        while self._queue:
            batch = self._next_batch(loop)
            self._running_items += len(batch)
            self._start_worker(loop)  # for those who found no room
            try:
                await self._run(batch)
            finally:
                self._running_items -= len(batch)
                _fail(batch, BatchAbandoned("the trip was given up before there was an answer"))

    def _worker_ended(self, worker: asyncio.Task[None]) -> None:
        self._running.discard(worker)
        error = None if worker.cancelled() else worker.exception()
        if not worker.cancelled() and (error is None or isinstance(error, Exception)):
            if error is not None:
                worker.get_loop().call_exception_handler(
                    {"message": "a trip failed", "exception": error, "task": worker}
                )
            self._start_worker(worker.get_loop())  # with those who came after its last look at the queue
            return
        # Somebody ends the event loop, or the process: there are no more trips.
        self._is_starting = False
        self._closed = True
        left = list(self._queue.values())
        self._queue.clear()
        self._waiting = 0
        _fail(left, BatchAbandoned("the event loop is ending"))

    def _next_batch(self, loop: asyncio.AbstractEventLoop) -> list[_Entry[ItemT, ResultT]]:
        waiting = len(self._queue)
        free = self._workers - len(self._running) + 1 if self._pipelined else 1
        share = max(-(-waiting // free), min(waiting, _MIN_SHARE))
        batch = [self._queue.popitem(last=False)[1] for _ in range(min(self._max_batch, share))]
        now = loop.time()
        for entry in batch:
            self._waiting -= len(entry.waiters)
            for since in entry.waiters.values():
                self._waits[int((now - since) * 1000).bit_length()] += 1
                self._wait_seconds_sum += now - since
        return batch

    async def _run(self, batch: Sequence[_Entry[ItemT, ResultT]]) -> None:
        """Answer everybody in the batch."""
        try:
            with batch_span(link for entry in batch for link in entry.links):
                results = await self._apply_with_retries([entry.item for entry in batch])
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            _fail(batch, BatchAbandoned("what the trip waited for was cancelled"))
        except Exception as error:
            if self._bisect_on_error and len(batch) > 1 and not isinstance(error, Unavailable | TransactionConflict):
                half = len(batch) // 2
                await self._run(batch[:half])
                await self._run(batch[half:])
            else:
                _fail(batch, error)
        else:
            given = len(results) if isinstance(results, Sequence) else None
            if given != len(batch):  # what it was to do is done: nothing to be tried again
                what = "no sequence" if given is None else f"{given} results"
                _fail(batch, TypeError(f"apply was given {len(batch)} items and returned {what}"))
                return
            for entry, result in zip(batch, results, strict=True):
                if isinstance(result, Exception):
                    _fail([entry], result)
                    continue
                for waiter in entry.waiters:
                    if not waiter.done():
                        waiter.set_result(result)

    async def _apply_with_retries(self, items: Sequence[ItemT]) -> Sequence[ResultT | Exception]:
        return await retried(lambda: self._call_apply(items), on=_RETRIED, attempts=self._max_attempts)

    async def _call_apply(self, items: Sequence[ItemT]) -> Sequence[ResultT | Exception]:
        self._calls += 1
        self._items += len(items)
        self._sizes[(len(items) - 1).bit_length()] += 1
        bound = asyncio.timeout(self._batch_timeout)
        try:
            async with bound:
                return await self._apply(items)
        except TimeoutError as error:
            if not bound.expired():
                raise
            raise BatchAbandoned(f"the trip took longer than {self._batch_timeout:g} s") from error


class _Entry(Generic[ItemT, ResultT]):
    """An item, and who waits for it since when."""

    __slots__ = ("item", "links", "waiters")

    def __init__(self, item: ItemT) -> None:
        self.item = item
        self.waiters: dict[asyncio.Future[ResultT], float] = {}
        self.links: list[Any] = []


def _fail(batch: Sequence[_Entry[Any, Any]], error: Exception) -> None:
    """Raise the error for all who still wait, for each a copy of its own."""
    if isinstance(error, StopIteration):  # which would end whatever awaits it
        wrapped = RuntimeError("an item failed with StopIteration")
        wrapped.__cause__ = error
        error = wrapped
    left = [waiter for entry in batch for waiter in entry.waiters if not waiter.done()]
    for waiter in left:
        waiter.set_exception(error if len(left) == 1 else _copy_of(error))


def _copy_of(error: Exception) -> Exception:
    """As itself where it can't be copied: its type tells more than whose it is."""
    try:
        own = copy.copy(error)
    except Exception:
        return error
    if type(own) is not type(error):
        return error
    own.__cause__ = error
    return own
