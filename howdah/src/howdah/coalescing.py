"""Request batching: concurrent calls share one statement or one transaction.

    async def prices(skus: Sequence[str]) -> list[int | NotFound]:
        found = dict(await connection.fetch("SELECT sku, price FROM items WHERE sku = ANY($1)", skus))
        return [found.get(sku) or NotFound(Item, [sku]) for sku in skus]

    async with Coalescer(prices, key=lambda sku: sku) as coalescer:
        price = await coalescer.submit("A-1")  # in many tasks concurrently

There is no timer. If nothing is running, an item is sent immediately. While a batch is running, new items are collected
for the next one. So an idle system adds no latency, and the batches grow with the load. PostgreSQL's group commit does
the same with its log (<https://www.postgresql.org/docs/current/wal-configuration.html>).
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
from howdah._retry import call_with_retries
from howdah._tracing import batch_span, current_link
from howdah.errors import BatchAbandoned, CoalescerClosed, ConnectionFailed, QueueFull, TransactionConflict, Unavailable

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
Apply: TypeAlias = Callable[[Sequence[ItemT]], Awaitable[Sequence[ResultT | Exception]]]

# These errors mean that nothing was written, so `apply` can be called again with the same batch.
_RETRIED: Final = (TransactionConflict, ConnectionFailed)

# With `split_between_workers`, a batch isn't split into parts smaller than this: the fixed cost of a batch would exceed
# the gain.
_MIN_SPLIT_BATCH_SIZE: Final = 32


@dataclass(frozen=True, slots=True)
class CoalescerStatus:
    """Figures for monitoring. `waiting` and `running` are current values; all others only grow."""

    waiting: int
    """Tasks whose item isn't in a batch yet."""
    running: int
    """Batches that are running."""
    batches: int
    """Calls of `apply`, including running ones and retries."""
    items: int
    """The items of these calls."""
    rejected: int
    """Calls of `submit` that found the queue full."""
    batch_size_histogram: Mapping[int, int]
    """The number of calls of `apply` by size. A key is an upper limit; the lower limit is half of it."""
    wait_histogram: Mapping[float, int]
    """The number of tasks by their wait in seconds, until their batch started. A key is an upper limit, as above."""
    wait_seconds_sum: float
    """The sum of these waits."""


class Coalescer(Generic[ItemT, ResultT]):
    """Collects the items that tasks `submit`, and calls `apply` with a batch of them.

    `apply` gets at least one item and returns one result for each, in the same order. It doesn't see the context
    variables of the submitting tasks. If it writes, it must return after its commit.

    At most `workers` calls run at a time, each with at most `max_batch_size` items. While calls are running, another
    one starts only if the queue has at least as many items as the running batches together, or `max_batch_size` items.

    With `key`, waiting items with the same key are sent as one item, and their waiters get the same result object. Use
    it for reads.

    With `split_between_workers`, the queue is divided evenly among the idle workers, so that one batch can be prepared
    while another one is being written. Use it if part of `apply` is serialized.

    Errors:

    - A result that is an `Exception` is raised for the waiters of its item only.
    - After `TransactionConflict` and `ConnectionFailed` nothing has been done. The batch is retried after a random
      delay, up to `max_attempts` attempts in all.
    - Any other error of `apply` is raised for every waiter of the batch. Each one gets a copy, whose cause is the
      error.
    - With `bisect_on_error`, a batch that fails (other than with `Unavailable` or `TransactionConflict`) is split in
      two and retried, until only the faulty items fail. `apply` must write all items of a batch or none.
    - A call that takes longer than `batch_timeout` seconds is cancelled. Its waiters get `BatchAbandoned`. Its changes
      may have been written, as after a lost connection.
    - If a waiter is cancelled, other waiters aren't affected. An item without waiters is removed from the queue, but
      not from a running batch.
    - If `max_waiting` tasks are waiting, `submit` raises `QueueFull` immediately.

    Each waiter gets a result or an error. No wait is endless, because `batch_timeout` and `max_attempts` limit the
    earlier batches. The end of the `async with` block waits until all accepted items have a result. New items are then
    rejected with `CoalescerClosed`. A coalescer belongs to the event loop that uses it first.

    A task may submit while it holds a transaction open, because some connections of the pool are reserved for batches.
    The transaction keeps its locks in the meantime. A batch that needs one of them fails with `LockTimeout` after
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
                raise ValueError(f"{name} must be at least 1, not {value}")
        if max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, not {max_attempts}")
        if batch_timeout <= 0:
            raise ValueError(f"batch_timeout must be more than 0 seconds, not {batch_timeout}")
        self._apply = apply
        self._max_batch_size, self._max_waiting, self._workers = max_batch_size, max_waiting, workers
        self._key, self._bisect_on_error = key, bisect_on_error
        self._split_between_workers = split_between_workers
        self._max_attempts, self._batch_timeout = max_attempts, batch_timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: OrderedDict[Hashable, _QueuedItem[ItemT, ResultT]] = OrderedDict()
        self._waiting = 0
        self._running: set[asyncio.Task[None]] = set()
        self._running_items = 0
        self._is_worker_starting = False
        self._closed = False
        self._batches = self._items = self._rejected = 0
        self._batch_sizes: Counter[int] = Counter()
        self._waits: Counter[int] = Counter()
        self._wait_seconds_sum = 0.0

    async def __aenter__(self) -> Coalescer[ItemT, ResultT]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Reject new items, and wait until all items of the queue and of running batches have a result."""
        self._closed = True
        while self._running:
            await asyncio.wait(self._running)

    async def submit(self, item: ItemT) -> ResultT:
        """Add the item to the next batch, and return its result when the batch is done, or raise its error.

        Raises `QueueFull` or `CoalescerClosed` if the item isn't accepted.
        """
        loop = asyncio.get_running_loop()
        self._check_accepts(loop)
        key = object() if self._key is None else self._key(item)
        entry = self._queue.get(key)
        if entry is None:
            entry = self._queue[key] = _QueuedItem(item)
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
                waiter.exception()  # otherwise asyncio would log that the error was never retrieved
            raise

    def status(self) -> CoalescerStatus:
        """The current figures, in this process."""
        return CoalescerStatus(
            waiting=self._waiting,
            running=len(self._running) - self._is_worker_starting,
            batches=self._batches,
            items=self._items,
            rejected=self._rejected,
            batch_size_histogram={2**power: count for power, count in sorted(self._batch_sizes.items())},
            wait_histogram={2**power / 1000: count for power, count in sorted(self._waits.items())},
            wait_seconds_sum=self._wait_seconds_sum,
        )

    def _check_accepts(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise RuntimeError("this Coalescer belongs to another event loop: create one for each event loop")
        if self._closed:
            raise CoalescerClosed("the item was rejected: this Coalescer is closed, or closing")
        if self._waiting >= self._max_waiting:
            self._rejected += 1
            raise QueueFull(
                f"the queue is full: {self._waiting:,} tasks are waiting; retry later, or raise max_waiting"
            )

    def _start_worker(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start a worker if one is idle, and if the queue has enough items.

        Enough is the number of items in the running batches, or `max_batch_size` if that is less. With more workers the
        batches would be smaller, and each batch has a fixed cost.

        The worker starts in the next iteration of the event loop, so its batch includes all items that are submitted in
        this iteration.
        """
        if not self._queue or self._is_worker_starting or len(self._running) >= self._workers:
            return
        if len(self._queue) < min(self._running_items, self._max_batch_size):
            return
        self._is_worker_starting = True
        worker = loop.create_task(self._run_batches(loop), context=new_batch_context())
        self._running.add(worker)
        worker.add_done_callback(self._worker_ended)

    async def _run_batches(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run one batch after the other until the queue is empty."""
        self._is_worker_starting = False
        while self._queue:
            batch = self._next_batch(loop)
            self._running_items += len(batch)
            self._start_worker(loop)  # for the items beyond `max_batch_size`
            try:
                await self._run(batch)
            finally:
                self._running_items -= len(batch)
                _fail(batch, BatchAbandoned("the batch was cancelled before it had a result; it may have been written"))

    def _worker_ended(self, worker: asyncio.Task[None]) -> None:
        """Start the next worker, or fail all waiters if the event loop is ending."""
        self._running.discard(worker)
        error = None if worker.cancelled() else worker.exception()
        if not worker.cancelled() and (error is None or isinstance(error, Exception)):
            if error is not None:
                worker.get_loop().call_exception_handler(
                    {"message": "a batch of a Coalescer failed", "exception": error, "task": worker}
                )
            self._start_worker(worker.get_loop())  # for items that came after the worker found the queue empty
            return
        # The event loop or the process is ending, so no further worker can run.
        self._is_worker_starting = False
        self._closed = True
        queued = list(self._queue.values())
        self._queue.clear()
        self._waiting = 0
        _fail(queued, BatchAbandoned("the item was not sent: the event loop is ending"))

    def _next_batch(self, loop: asyncio.AbstractEventLoop) -> list[_QueuedItem[ItemT, ResultT]]:
        """Take the next batch from the queue, and count how long its tasks have waited."""
        waiting = len(self._queue)
        # This worker is in `_running`, but it is idle.
        idle = self._workers - len(self._running) + 1 if self._split_between_workers else 1
        share = max(-(-waiting // idle), min(waiting, _MIN_SPLIT_BATCH_SIZE))
        batch = [self._queue.popitem(last=False)[1] for _ in range(min(self._max_batch_size, share))]
        now = loop.time()
        for entry in batch:
            self._waiting -= len(entry.waiters)
            for since in entry.waiters.values():
                self._waits[int((now - since) * 1000).bit_length()] += 1
                self._wait_seconds_sum += now - since
        return batch

    async def _run(self, batch: Sequence[_QueuedItem[ItemT, ResultT]]) -> None:
        """Apply the batch, and give every waiter its result or its error."""
        try:
            with batch_span(len(batch), (link for entry in batch for link in entry.links)):
                results = await self._apply_with_retries([entry.item for entry in batch])
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            _fail(batch, BatchAbandoned("a call in `apply` was cancelled; the batch may have been written"))
        except Exception as error:
            if self._bisect_on_error and len(batch) > 1 and not isinstance(error, Unavailable | TransactionConflict):
                half = len(batch) // 2
                await self._run(batch[:half])
                await self._run(batch[half:])
            else:
                _fail(batch, error)
        else:
            count = len(results) if isinstance(results, Sequence) else None
            if count != len(batch):  # no retry: the batch has been written
                what = f"a {type(results).__name__}" if count is None else f"{count} results"
                _fail(batch, TypeError(f"apply got {len(batch)} items and returned {what}: return one result per item"))
                return
            for entry, result in zip(batch, results, strict=True):
                if isinstance(result, Exception):
                    _fail([entry], result)
                    continue
                for waiter in entry.waiters:
                    if not waiter.done():
                        waiter.set_result(result)

    async def _apply_with_retries(self, items: Sequence[ItemT]) -> Sequence[ResultT | Exception]:
        return await call_with_retries(lambda: self._call_apply(items), on=_RETRIED, attempts=self._max_attempts)

    async def _call_apply(self, items: Sequence[ItemT]) -> Sequence[ResultT | Exception]:
        """Call `apply` within `batch_timeout`, and count the call."""
        self._batches += 1
        self._items += len(items)
        self._batch_sizes[(len(items) - 1).bit_length()] += 1
        bound = asyncio.timeout(self._batch_timeout)
        try:
            async with bound:
                return await self._apply(items)
        except TimeoutError as error:
            if not bound.expired():
                raise
            raise BatchAbandoned(
                f"the batch took longer than batch_timeout ({self._batch_timeout:g} s); it may have been written"
            ) from error


class _QueuedItem(Generic[ItemT, ResultT]):
    """An item of the queue. `waiters` has the futures of the waiting tasks, each with the time of its `submit`."""

    __slots__ = ("item", "links", "waiters")

    def __init__(self, item: ItemT) -> None:
        self.item = item
        self.waiters: dict[asyncio.Future[ResultT], float] = {}
        self.links: list[Any] = []


def _fail(batch: Sequence[_QueuedItem[Any, Any]], error: Exception) -> None:
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
