"""Slots: the number of connections for each kind of use.

A task that holds a connection may wait for something that needs another one. For example, a route with an open session
awaits a view, a batch, or another transaction. Without a reserve, such tasks could hold all connections, and each would
wait for a further one until `pool_timeout`. So a few connections are reserved, and sessions never use them.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from enum import IntEnum
from itertools import count
from typing import Final


class Priority(IntEnum):
    """The priority of a use of a connection.

    If a task that holds a connection opens another one, the second has a higher priority, or again `BATCH`. A task that
    holds a connection for a `READ` opens no other one. So a task never waits for a connection of a lower priority, and
    only tasks at `BATCH` can wait for each other's connections.
    """

    SESSION = 0
    """A session of a task that holds no connection: a request, a job."""
    NESTED = 1
    """A session of a task that already holds the connection of a session."""
    BATCH = 2
    """A batch, a statement in `autocommit`, or a session of a task that already holds two connections."""
    READ = 3
    """A read: it waits for nothing else while it holds the connection."""


_PRIORITIES: Final = tuple(Priority)
# The supplies from which a use of each priority may take, in the order in which it tries them.
_ALLOWED: Final = {priority: tuple(reversed(_PRIORITIES[: priority + 1])) for priority in _PRIORITIES}


class Slot:
    """The right to use one connection. `priority` is that of the use. `supply` is the supply that the slot is from."""

    __slots__ = ("is_released", "priority", "supply")

    def __init__(self, supply: Priority, priority: Priority) -> None:
        self.supply = supply
        self.priority = priority
        self.is_released = False


class _SlotRecord:
    """The slots that are held in a context and in the tasks started from it. `outer` has those of the outer context."""

    __slots__ = ("outer", "slots")

    def __init__(self, outer: _SlotRecord | None) -> None:
        # A long-lived task starts a record for each session. Records without slots are skipped, so that the chain
        # doesn't grow.
        while outer is not None and not outer.has_slots():
            outer = outer.outer
        self.outer: _SlotRecord | None = outer
        self.slots: list[Slot] = []

    def has_slots(self) -> bool:
        return any(not slot.is_released for slot in self.slots)

    def priorities(self) -> Iterator[Priority]:
        """The priorities of all slots that are held here and in the outer contexts."""
        yield from (slot.priority for slot in self.slots if not slot.is_released)
        if self.outer is not None:
            yield from self.outer.priorities()


# The lowest priority of a checkout in this context. `current_priority` raises it if the context holds a connection.
_lowest_priority: ContextVar[Priority] = ContextVar("howdah_lowest_priority", default=Priority.SESSION)

# The slots of this context. A task inherits the record of the task that started it, because the starting task may await
# the new one.
_record: ContextVar[_SlotRecord | None] = ContextVar("howdah_slot_record", default=None)

# The slot for the next checkout in this context. Without one, a checkout takes a slot itself.
_next_slot: ContextVar[Slot | None] = ContextVar("howdah_next_slot", default=None)


def new_batch_context() -> Context:
    """An empty context in which every checkout has at least the priority of a batch."""
    context = Context()
    context.run(_lowest_priority.set, Priority.BATCH)
    return context


def start_slot_record() -> None:
    """Start a record of the slots of the next session or connection in this context.

    Tasks that are started from here use the same record: `asyncio.wait_for` and `gather` run the statements of a
    session in such tasks.
    """
    _record.set(_SlotRecord(_record.get()))


def current_priority() -> Priority:
    """The priority of a session that is opened in this context: one above the connections that the context holds."""
    record = _record.get()
    highest = None if record is None else max(record.priorities(), default=None)
    nested = Priority.SESSION if highest is None else Priority(min(highest + 1, Priority.BATCH))
    return max(_lowest_priority.get(), nested)


@contextmanager
def use_slot(slot: Slot) -> Iterator[None]:
    """The next checkout in this context uses the slot instead of taking one."""
    token = _next_slot.set(slot)
    try:
        yield
    finally:
        _next_slot.reset(token)


def pop_slot_to_use() -> Slot | None:
    """Return the slot of `use_slot`, and forget it. None if there is none."""
    slot = _next_slot.get()
    if slot is not None:
        _next_slot.set(None)
    return slot


class Slots:
    """One slot for each connection that the pool may open. There are a supply for all uses and three reserves.

    A use takes a slot from the reserves that its priority allows, then from the supply for all uses. If there is none,
    it waits.

    A slot that is released goes to the waiter that has waited longest. Tasks that hold a connection already, and
    batches, come first, because other tasks wait for them. There are few of them: each of these tasks has a slot, and
    each batch has a worker. So they don't delay the others for long. In order of arrival alone, a task would wait for
    its second connection behind all new tasks, and such tasks would soon hold all connections.

    No slot is free while a waiter may use it, so a new use never overtakes a waiter.
    """

    def __init__(self, *, pool_size: int, max_overflow: int) -> None:
        total = pool_size + max_overflow
        # A quarter of `pool_size`. One connection is for reads, which only take milliseconds.
        reserved = min(total - 1, max(3, pool_size // 4))
        reads = 1 if reserved > 1 else 0
        batches = (reserved - reads) // 2
        self._supplies = (total - reserved, reserved - reads - batches, batches, reads)
        self._free = [*self._supplies]
        # The waiters of each priority by number. The numbers ascend in order of arrival. A release looks only at the
        # first waiter of each priority, because thousands of sessions may wait before the first read.
        self._first = _Queues()
        self._others = _Queues()
        self._arrivals = count()

    @property
    def total(self) -> int:
        return sum(self._supplies)

    @property
    def in_use(self) -> int:
        return self.total - sum(self._free)

    @property
    def waiting(self) -> int:
        return len(self._first) + len(self._others)

    def limit(self, priority: Priority) -> int:
        """The number of slots that uses of this priority can have."""
        return sum(self._supplies[: priority + 1])

    async def take(self, priority: Priority, timeout: float) -> Slot:  # noqa: ASYNC109
        """Take a slot. Raises `TimeoutError` after `timeout` seconds."""
        for supply in _ALLOWED[priority]:
            if self._free[supply] > 0:
                self._free[supply] -= 1
                return _add_to_record(Slot(supply, priority))
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Slot] = loop.create_future()
        queues = self._first if _is_waited_for() else self._others
        number = next(self._arrivals)
        queues.add(priority, number, waiter)
        expiry = loop.call_later(timeout, _expire, waiter)
        try:
            return _add_to_record(await waiter)
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(waiter.result())  # the waiter got a slot just before the task was cancelled
            raise
        finally:
            expiry.cancel()
            queues.discard(priority, number)

    def release(self, slot: Slot) -> None:
        """Release a slot. A waiter that may use its supply gets a new one. A second release does nothing."""
        if slot.is_released:
            return
        slot.is_released = True
        found = self._first.pop_oldest(slot.supply) or self._others.pop_oldest(slot.supply)
        if found is None:
            self._free[slot.supply] += 1
        else:
            priority, waiter = found
            waiter.set_result(Slot(slot.supply, priority))


class _Queues:
    """The waiters of each priority, in order of arrival."""

    def __init__(self) -> None:
        # not a dict: after many removals, it takes a long time to find the first key of a dict
        self._queues: tuple[OrderedDict[int, asyncio.Future[Slot]], ...] = tuple(OrderedDict() for _ in Priority)

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    def add(self, priority: Priority, number: int, waiter: asyncio.Future[Slot]) -> None:
        self._queues[priority][number] = waiter

    def discard(self, priority: Priority, number: int) -> None:
        self._queues[priority].pop(number, None)

    def pop_oldest(self, supply: Priority) -> tuple[Priority, asyncio.Future[Slot]] | None:
        """Remove and return the waiter that has waited longest of those that may use this supply."""
        oldest: tuple[int, Priority] | None = None
        for priority in _PRIORITIES[supply:]:
            queue = self._queues[priority]
            while queue:
                number = next(iter(queue))
                if not queue[number].done():
                    oldest = (number, priority) if oldest is None else min(oldest, (number, priority))
                    break
                del queue[number]  # expired or cancelled; its task has not run yet
        return None if oldest is None else (oldest[1], self._queues[oldest[1]].pop(oldest[0]))


def _is_waited_for() -> bool:
    """Whether other tasks may wait for this one: it holds a connection, or runs a batch."""
    record = _record.get()
    return _lowest_priority.get() >= Priority.BATCH or (record is not None and any(True for _ in record.priorities()))


def _expire(waiter: asyncio.Future[Slot]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())


def _add_to_record(slot: Slot) -> Slot:
    """Add the slot to the record of this context, and return it."""
    if slot.priority is Priority.READ:  # a read opens no session while it holds its connection
        return slot
    record = _record.get()
    if record is None:
        record = _SlotRecord(None)
        _record.set(record)
    record.slots = [*(each for each in record.slots if not each.is_released), slot]
    return slot
