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
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import chain
from types import TracebackType
from typing import Final, Generic, TypeVar

from howdah._batch_calls import Apply, BatchCalls
from howdah._batch_figures import BatchFigures, CoalescerStatus
from howdah._connections.slots import new_batch_context
from howdah._queued_items import DeadlineTimer, QueuedItem, fail, give_results
from howdah._tracing import batch_span, current_link
from howdah.errors import (
    BatchAbandoned,
    CoalescerClosed,
    ConnectionFailed,
    PoolExhausted,
    QueueFull,
    QueueTimeout,
    ReadOnly,
    ResultTimeout,
    TransactionConflict,
    Unavailable,
)

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

# Without a connection the next batch would fail, too, after the same wait.
_NO_CONNECTION: Final = (ConnectionFailed, PoolExhausted)
# A single item doesn't cause these errors. Each half of the batch would fail again, perhaps after the same timeout.
_NOT_OF_ONE_ITEM: Final = (Unavailable, TransactionConflict, ReadOnly, TimeoutError, OSError)

# Deadlines are checked at most this often, because a check looks at all waiters.
_DEADLINE_PRECISION_SECONDS: Final = 0.05
# At the end, running batches may finish within this time if no task waits for them.
_UNOBSERVED_CLOSE_SECONDS: Final = 1.0
# Cancelled batches are given this time to release their connections.
_CANCEL_SECONDS: Final = 1.0

# With `split_between_workers`, the queue isn't divided into parts smaller than this. While a batch is running, no
# further worker starts for fewer items. The fixed cost of a further batch would exceed the gain.
_MIN_SPLIT_BATCH_SIZE: Final = 32


class Coalescer(Generic[ItemT, ResultT]):
    """Collects the items that tasks `submit`, and calls `apply` with a batch of them.

    `apply` gets at least one item and returns one result for each, in the same order. It doesn't see the context
    variables of the submitting tasks. If it writes, it must return after its commit.

    At most `workers` calls run at a time, each with at most `max_batch_size` items. While calls are running, another
    one starts only if the queue has at least as many items as the running batches together, or `max_batch_size` items.

    With `key`, waiting items with the same key are sent as one item, and their waiters get the same result object. Use
    it for reads.

    With `split_between_workers`, the queue is divided evenly among the idle workers, so that one batch can be prepared
    while another one is being written. Use it if part of `apply` is serialized. While calls are running, another one
    then starts only if the queue has at least 32 items (or `max_batch_size`). The fixed cost of a smaller batch would
    exceed the gain.

    While the function `one_at_a_time` returns True, a single worker runs, and the next batch is formed after the tasks
    have got the results of the last one. So that batch includes what these tasks submit at once. Use it if the batches
    wait for those of other processes: a few large batches wait less often than many small ones.

    Errors:

    - A result that is an `Exception` is raised for the waiters of its item only.
    - After `TransactionConflict` and `ConnectionFailed` nothing has been done. The batch is retried after a random
      delay, up to `max_attempts` attempts in all.
      No retry starts if it couldn't end before the deadline of the waiters.
    - Any other error of `apply` is raised for every waiter of the batch. Each one gets a copy, whose cause is the
      error.
    - If a batch gets no connection (`ConnectionFailed`, `PoolExhausted`), all waiting items fail with it.
    - With `bisect_on_error`, a batch that fails because of an item is split in two and retried, until only the faulty
      items fail. `apply` must write all items of a batch or none. After an error that isn't caused by one item
      (`Unavailable`, which includes the timeouts, `TransactionConflict`, `ReadOnly`) the batch isn't split.
    - If a waiter is cancelled, other waiters aren't affected. An item without waiters is removed from the queue, but
      not from a running batch.
    - If `max_waiting` tasks are waiting, `submit` raises `QueueFull` immediately.

    Each waiter gets a result or an error within `submit_timeout` seconds after its `submit`. If its item is still in
    the queue at that time, the error is `QueueTimeout`, and the item is never sent. If its item is in a running batch,
    the error is `ResultTimeout`: the outcome is unknown. The batch goes on for its other waiters.

    A call of `apply` that takes longer than `batch_timeout` seconds is cancelled, and its waiters get `BatchAbandoned`:
    the outcome is unknown. By default this is `submit_timeout`, after which no task waits for the batch any more. So
    frozen batches end, too, and never more than `workers` run.

    The end of the `async with` block rejects new items with `CoalescerClosed`. It waits until all accepted items have a
    result, at most for `close_timeout` seconds, and at most for 1 s if no task waits for a result. Then items in the
    queue fail with `CoalescerClosed`, and running batches are cancelled (`BatchAbandoned`). A coalescer belongs to the
    event loop that uses it first.

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
        one_at_a_time: Callable[[], bool] = bool,  # `bool()` is False
        max_attempts: int = 3,
        submit_timeout: float = 10.0,
        batch_timeout: float | None = None,
        close_timeout: float = 5.0,
    ) -> None:
        counts = {"max_batch_size": max_batch_size, "max_waiting": max_waiting, "workers": workers}
        for name, value in (*counts.items(), ("max_attempts", max_attempts)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        batch_timeout = submit_timeout if batch_timeout is None else batch_timeout
        timeouts = {"submit_timeout": submit_timeout, "batch_timeout": batch_timeout, "close_timeout": close_timeout}
        for name, seconds in timeouts.items():
            if not 0 < seconds < math.inf:
                raise ValueError(f"{name} must be more than 0 seconds and finite, not {seconds}")
        self._apply = apply
        self._max_batch_size, self._max_waiting, self._workers = max_batch_size, max_waiting, workers
        self._key, self._bisect_on_error = key, bisect_on_error
        self._is_split, self._is_one_at_a_time = split_between_workers, one_at_a_time
        self._submit_timeout, self._close_timeout = submit_timeout, close_timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._figures = BatchFigures()
        self._calls = BatchCalls(max_attempts, submit_timeout, batch_timeout, self._figures)
        self._clear()

    def _clear(self) -> None:
        self._queue: OrderedDict[Hashable, QueuedItem[ItemT, ResultT]] = OrderedDict()
        self._waiting = 0
        self._running: set[asyncio.Task[None]] = set()
        self._running_batches: dict[int, Sequence[QueuedItem[ItemT, ResultT]]] = {}
        self._running_items = 0
        self._timer = DeadlineTimer(self._expire)
        self._succeeded_at = -math.inf
        self._is_worker_starting = False
        self._closed = False

    def copy_for(self, apply: Apply[ItemT, ResultT]) -> Coalescer[ItemT, ResultT]:
        """A coalescer with the same options and another `apply`, which counts in the figures of this one."""
        copied: Coalescer[ItemT, ResultT] = object.__new__(type(self))  # much faster than the constructor
        copied.__dict__.update(self.__dict__)
        copied._apply = apply
        copied._clear()
        return copied

    async def __aenter__(self) -> Coalescer[ItemT, ResultT]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Reject new items, and wait until all items of the queue and of running batches have a result.

        After `close_timeout` the remaining items fail, and the running batches are cancelled.
        """
        self._closed = True
        if self._running:
            await self._finish_running()
        self.release()

    def release(self) -> None:
        """Cancel the timer, so that nothing keeps this object. Call it only if nobody waits.

        After that, the object is in no reference cycle. So it is freed at once, and not by the garbage collector.
        """
        self._timer.release()

    async def _finish_running(self) -> None:
        """Wait until all batches have ended, and cancel them if that takes too long."""
        loop = asyncio.get_running_loop()
        has_waiters = any(True for _ in self._iterate_deadlines())
        until = loop.time() + (self._close_timeout if has_waiters else _UNOBSERVED_CLOSE_SECONDS)
        while self._running and (remaining := until - loop.time()) > 0:
            await asyncio.wait(self._running, timeout=remaining)
        if not self._running:
            return
        self._fail_queue(CoalescerClosed("the item was not sent: the Coalescer was closed, and its time has passed"))
        for batch in self._running_batches.values():
            fail(batch, BatchAbandoned("the Coalescer was closed before the batch ended; it may have been written"))
        for worker in self._running:
            worker.cancel()
        await asyncio.wait(self._running, timeout=_CANCEL_SECONDS)

    async def submit(self, item: ItemT, *, timeout: float | None = None) -> ResultT:  # noqa: ASYNC109
        """Add the item to the next batch, and return its result when the batch is done, or raise its error.

        `timeout` shortens `submit_timeout` for this call, in seconds. Raises `QueueFull` or `CoalescerClosed` if the
        item isn't accepted, and `QueueTimeout` or `ResultTimeout` if there is no result in time.
        """
        loop = asyncio.get_running_loop()
        self._check_accepts(loop)
        if timeout is not None and timeout <= 0:
            raise QueueTimeout("the item was not sent: its timeout had passed before")
        key = object() if self._key is None else self._key(item)
        entry = self._queue.get(key)
        if entry is None:
            entry = self._queue[key] = QueuedItem(item)
        waiter: asyncio.Future[ResultT] = loop.create_future()
        entry.waiters[waiter] = now = loop.time()
        if timeout is not None and timeout < self._submit_timeout:
            entry.set_timeout(waiter, timeout)
            self._timer.set(loop, now + timeout)
        elif not self._timer.is_set:
            self._timer.set(loop, now + self._submit_timeout)
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
        return self._figures.to_status(self._waiting, len(self._running) - self._is_worker_starting)

    def _check_accepts(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise RuntimeError("this Coalescer belongs to another event loop: create one for each event loop")
        if self._closed:
            raise CoalescerClosed("the item was rejected: this Coalescer is closed, or closing")
        if self._waiting >= self._max_waiting:
            self._figures.rejected += 1
            raise QueueFull(
                f"the queue is full: {self._waiting:,} tasks are waiting; retry later, or raise max_waiting"
            )

    def _start_worker(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start a worker if one is idle, and if the queue has enough items.

        Enough is the number of items in the running batches, with `split_between_workers` at least 32 while one runs,
        and at most `max_batch_size`. With more workers the batches would be smaller, and each batch has a fixed cost.

        The worker starts in the next iteration of the event loop, so its batch includes all items that are submitted in
        this iteration.
        """
        if not self._queue or self._is_worker_starting or len(self._running) >= self._count_workers():
            return
        minimum = _MIN_SPLIT_BATCH_SIZE if self._is_split and self._running_items else 0
        if len(self._queue) < min(max(self._running_items, minimum), self._max_batch_size):
            return
        self._is_worker_starting = True
        worker = loop.create_task(self._run_batches(loop), context=new_batch_context())
        self._running.add(worker)
        worker.add_done_callback(self._worker_ended)

    async def _run_batches(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run one batch after the other until the queue is empty. With `one_at_a_time` run one batch."""
        self._is_worker_starting = False
        while self._queue:
            batch = self._next_batch(loop)
            self._running_items += len(batch)
            self._running_batches[id(batch)] = batch
            self._start_worker(loop)  # for the items beyond `max_batch_size`
            try:
                await self._run(batch)
            finally:
                self._running_items -= len(batch)
                del self._running_batches[id(batch)]
                fail(batch, BatchAbandoned("the batch was cancelled before it had a result; it may have been written"))
            if self._is_one_at_a_time():
                return  # `_worker_ended` is called after the tasks have got their results, and starts the next worker

    def _count_workers(self) -> int:
        return 1 if self._is_one_at_a_time() else self._workers

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
        self._fail_queue(CoalescerClosed("the item was not sent: the event loop is ending"))

    def _fail_queue(self, error: Exception) -> None:
        """Remove all items from the queue, and raise the error for their waiters."""
        queued = list(self._queue.values())
        self._queue.clear()
        self._waiting = 0
        fail(queued, error)

    def _iterate_deadlines(self) -> Iterator[float]:
        for entry in chain(self._queue.values(), *self._running_batches.values()):
            yield from entry.iterate_deadlines(self._submit_timeout)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        """Fail all waiters whose deadline has passed, and set the timer for the next deadline.

        In normal operation this runs once in `submit_timeout`, because later waiters don't set the timer again.
        """
        now = loop.time()
        for key, entry in list(self._queue.items()):
            for waiter, waited in entry.find_expired(now, self._submit_timeout):
                del entry.waiters[waiter]
                waiter.set_exception(QueueTimeout(f"the item was not sent: it was in the queue for {waited:.3g} s"))
                self._waiting -= 1
                self._figures.expired += 1
            if not entry.waiters:
                del self._queue[key]
        for entry in chain(*self._running_batches.values()):
            for waiter, waited in entry.find_expired(now, self._submit_timeout):
                waiter.set_exception(ResultTimeout(f"no result after {waited:.3g} s: the batch may be written later"))
                self._figures.expired += 1
        following = min(self._iterate_deadlines(), default=math.inf)
        if following < math.inf:
            self._timer.set(loop, max(following, now + min(_DEADLINE_PRECISION_SECONDS, self._submit_timeout / 20)))

    def _next_batch(self, loop: asyncio.AbstractEventLoop) -> list[QueuedItem[ItemT, ResultT]]:
        """Take the next batch from the queue, and count how long its tasks have waited."""
        waiting = len(self._queue)
        # This worker is idle, but in `_running`. If `one_at_a_time` has just become True, another one may be, too.
        idle = max(self._count_workers() - len(self._running) + 1, 1) if self._is_split else 1
        share = max(-(-waiting // idle), min(waiting, _MIN_SPLIT_BATCH_SIZE))
        batch = [self._queue.popitem(last=False)[1] for _ in range(min(self._max_batch_size, share))]
        now, waits, waited = loop.time(), self._figures.waits, 0.0
        for entry in batch:
            self._waiting -= len(entry.waiters)
            for since in entry.waiters.values():
                waits[int((now - since) * 1000).bit_length()] += 1
                waited += now - since
        self._figures.wait_seconds_sum += waited
        return batch

    async def _run(self, batch: Sequence[QueuedItem[ItemT, ResultT]]) -> None:
        """Apply the batch, and give every waiter its result or its error."""
        started = time.monotonic()
        try:
            with batch_span(len(batch), (link for entry in batch for link in entry.links)):
                results = await self._calls.run(self._apply, batch)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            fail(batch, BatchAbandoned("a call in `apply` was cancelled; the batch may have been written"))
        except Exception as error:
            if self._bisect_on_error and len(batch) > 1 and not isinstance(error, _NOT_OF_ONE_ITEM):
                await self._run_halves(batch)
                return
            fail(batch, error)
            # If another batch got its connection in the meantime, the database can be reached.
            if isinstance(error, _NO_CONNECTION) and self._succeeded_at < started:
                self._fail_queue(error)
        else:
            self._succeeded_at = time.monotonic()
            give_results(batch, results)

    async def _run_halves(self, batch: Sequence[QueuedItem[ItemT, ResultT]]) -> None:
        """Run each half of a failed batch. Items whose waiters have left in the meantime aren't sent again."""
        half = len(batch) // 2
        for part in (batch[:half], batch[half:]):
            if remaining := [entry for entry in part if entry.has_waiters()]:
                await self._run(remaining)
