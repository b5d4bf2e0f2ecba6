"""The connection pool, and the number of connections for each kind of use.

A task that holds a connection may wait for something that needs another one. For example, a route with an open session
awaits a view, a batch, or another transaction. Without a reserve, such tasks could hold all connections, and each would
wait for a further one until `pool_timeout`. So a few connections are reserved, and sessions never use them.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from enum import IntEnum
from functools import lru_cache
from typing import Any, Final

from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.exc import MissingGreenlet
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, ManagesConnection, PoolProxiedConnection
from sqlalchemy.util import await_only

from howdah._lazy_loads import explain_missing_await
from howdah.errors import DRIVER_ERRORS, ConnectionFailed, PoolExhausted

# The errors if a connection can't be opened: SQLAlchemy 2.0 raises the driver's own errors, 2.1 its wrappers of them.
CONNECTION_ERRORS: Final[tuple[type[Exception], ...]] = (OSError, AsyncAdapt_asyncpg_dbapi.Error, *DRIVER_ERRORS)

_SLOT: Final = "howdah_slot"

# Packages whose listeners only measure and trace, and modules of this library. They set nothing for a caller.
_OBSERVERS: Final = frozenset({"ddtrace", "elasticapm", "newrelic", "opentelemetry", "sentry_sdk"})
_OWN_MODULES: Final = frozenset({"howdah.database", "howdah.testing"})


class Priority(IntEnum):
    """The use of a connection. A use only waits for uses of the same or a higher priority.

    The highest priority waits for nothing else while it holds a connection. So uses of different priorities can't wait
    for each other.
    """

    SESSION = 0
    """A session of a task that holds no connection: a request, a job."""
    NESTED = 1
    """A session of a task that already holds the connection of a session."""
    BATCH = 2
    """A batch, a statement in `autocommit`, or a session of a task that already holds two connections."""
    READ = 3
    """A read: it waits for nothing else while it holds the connection."""


class Slot:
    """The right to use one connection, for a use of this priority. `kind` is the supply that it belongs to."""

    __slots__ = ("is_free", "kind", "priority")

    def __init__(self, kind: Priority, priority: Priority) -> None:
        self.kind = kind
        self.priority = priority
        self.is_free = False


class _Held:
    """The slots that were taken in a context and in the tasks started from it, and those of the contexts around it."""

    __slots__ = ("outer", "slots")

    def __init__(self, outer: _Held | None) -> None:
        while outer is not None and not outer.is_holding():
            outer = outer.outer  # so that a long-lived task doesn't collect them
        self.outer: _Held | None = outer
        self.slots: list[Slot] = []

    def is_holding(self) -> bool:
        return any(not slot.is_free for slot in self.slots)

    def priorities(self) -> Iterator[Priority]:
        yield from (slot.priority for slot in self.slots if not slot.is_free)
        if self.outer is not None:
            yield from self.outer.priorities()


# The priority of a checkout in this context. `priority_here` raises it if the context already holds a connection.
_priority: ContextVar[Priority] = ContextVar("howdah_priority", default=Priority.SESSION)

# The slots of this context. A task inherits those of the task that started it, which may await it.
_held: ContextVar[_Held | None] = ContextVar("howdah_held", default=None)

# The slot for the next checkout in this context. Without one, a checkout takes a slot itself.
_taken: ContextVar[Slot | None] = ContextVar("howdah_taken", default=None)


def batch_context() -> Context:
    """An empty context in which every checkout has the priority of a batch."""
    context = Context()
    context.run(_priority.set, Priority.BATCH)
    return context


def record_here() -> None:
    """Record the slots of the next session or connection in this context, apart from what its tasks have inherited.

    Tasks that are started from here use the same record: `asyncio.wait_for` and `gather` run the statements of a
    session in such tasks.
    """
    _held.set(_Held(_held.get()))


def priority_here() -> Priority:
    """The priority of a session that is opened in this context: one above that of the connections it holds."""
    held = _held.get()
    highest = None if held is None else max(held.priorities(), default=None)
    nested = Priority.SESSION if highest is None else Priority(min(highest + 1, Priority.BATCH))
    return max(_priority.get(), nested)


class Slots:
    """One slot for each connection that the pool may open, in a supply for all uses and three reserves.

    A use takes a slot from the reserves that its priority allows, then from the supply for all uses. If there is none,
    it waits. Waiters are served in order of arrival.
    """

    def __init__(self, *, pool_size: int, max_overflow: int) -> None:
        total = pool_size + max_overflow
        # A quarter of `pool_size`. One connection is for reads, which only take milliseconds.
        reserved = min(total - 1, max(3, pool_size // 4))
        reads = 1 if reserved > 1 else 0
        batches = (reserved - reads) // 2
        self._supplies = (total - reserved, reserved - reads - batches, batches, reads)
        self._free = [*self._supplies]
        self._waiting: deque[tuple[Priority, asyncio.Future[Slot]]] = deque()

    def limit(self, priority: Priority) -> int:
        """The number of slots that uses of this priority can have."""
        return sum(self._supplies[: priority + 1])

    async def take(self, priority: Priority, timeout: float) -> Slot:  # noqa: ASYNC109
        """Take a slot. Raises `TimeoutError` after `timeout` seconds."""
        for kind in reversed(Priority):
            if kind <= priority and self._free[kind] > 0:
                self._free[kind] -= 1
                return _recorded(Slot(kind, priority))
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Slot] = loop.create_future()
        entry = (priority, waiter)
        self._waiting.append(entry)
        expiry = loop.call_later(timeout, _expire, waiter)
        try:
            return _recorded(await waiter)
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.give_back(waiter.result())  # the waiter got a slot just before the task was cancelled
            elif entry in self._waiting:
                self._waiting.remove(entry)
            raise
        finally:
            expiry.cancel()

    def give_back(self, slot: Slot) -> None:
        """Release a slot. The first waiter that may use its supply gets a new one. A second release does nothing."""
        if slot.is_free:
            return
        slot.is_free = True
        for place, (priority, waiter) in enumerate(self._waiting):
            if priority >= slot.kind and not waiter.done():
                del self._waiting[place]
                waiter.set_result(Slot(slot.kind, priority))
                return
        self._free[slot.kind] += 1


def _expire(waiter: asyncio.Future[Slot]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())


def _recorded(slot: Slot) -> Slot:
    if slot.priority is Priority.READ:  # it is held while nothing else is waited for
        return slot
    held = _held.get()
    if held is None:
        held = _Held(None)
        _held.set(held)
    held.slots = [*(each for each in held.slots if not each.is_free), slot]
    return slot


@contextmanager
def using(slot: Slot) -> Iterator[None]:
    """The next checkout in this context uses the slot instead of taking one."""
    token = _taken.set(slot)
    try:
        yield
    finally:
        _taken.reset(token)


class BoundedPool(AsyncAdaptedQueuePool):
    """SQLAlchemy's pool, in which each connection in use has a slot. `slots` must be set before the first checkout."""

    slots: Slots
    is_transaction_pooled = False
    """Whether a pooler gives each transaction another connection to the server."""
    on_exhausted: Callable[[], None] | None = None
    """Called when every connection is checked out, to close a kept connection that is idle."""
    _disposed = False

    def connect(self) -> PoolProxiedConnection:
        if self.is_transaction_pooled and has_application_listener(self.dispatch.checkout):
            raise RuntimeError(
                "a listener of the pool's checkout can't prepare a connection behind a transaction pooler, because the "
                "transaction may get another one: listen to the engine's begin, and set only for the transaction "
                "(SET LOCAL, or set_config(name, value, true))"
            )
        try:
            return super().connect()
        except MissingGreenlet as error:
            explain_missing_await(error)
            raise
        except CONNECTION_ERRORS as error:
            raise ConnectionFailed(None, None, error) from error

    def is_exhausted(self) -> bool:
        """Whether all connections are checked out and no further one may be opened."""
        return self.checkedin() == 0 and self.overflow() >= self._max_overflow

    def recreate(self) -> BoundedPool:
        new = super().recreate()
        assert isinstance(new, BoundedPool)
        # Connections of the old pool that are still in use count, too.
        new.slots, new.on_exhausted = self.slots, self.on_exhausted
        new.is_transaction_pooled = self.is_transaction_pooled
        return new

    def _do_get(self) -> ConnectionPoolEntry:
        slot = _taken.get()
        if slot is None:
            slot = await_only(self.take_slot(priority_here()))
        else:
            _taken.set(None)
        try:
            if self.on_exhausted is not None and self.is_exhausted():
                self.on_exhausted()
            record = super()._do_get()
            assign(record, slot)
        except PoolTimeoutError as error:  # connections that are being closed still count as open
            self.slots.give_back(slot)
            raise PoolExhausted(f"no connection was given back for {self.timeout()} s") from error
        except BaseException:
            self.slots.give_back(slot)
            raise
        return record

    async def take_slot(self, priority: Priority) -> Slot:
        """A slot for one connection. Raises `PoolExhausted` if none becomes free within `pool_timeout`."""
        try:
            return await self.slots.take(priority, self.timeout())
        except TimeoutError as error:
            limit = self.slots.limit(priority)
            reserved = self.slots.limit(Priority.READ) - limit
            kept = f" ({reserved} more are reserved for reads and batches)" if reserved else ""
            raise PoolExhausted(
                f"all {limit} connections{kept} were in use for {self.timeout()} s: "
                "hold sessions for shorter, or raise pool_size"
            ) from error

    def dispose(self) -> None:
        self._disposed = True
        super().dispose()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        slot = unassign(record)
        try:
            if self._disposed:  # SQLAlchemy would leave it open until the garbage collector finds it
                try:
                    record.close()
                finally:
                    self._dec_overflow()  # for tasks that wait for a connection of this pool
            else:
                super()._do_return_conn(record)
        finally:
            if slot is not None:
                self.slots.give_back(slot)


def assign(connection: ManagesConnection, slot: Slot) -> None:
    """Let the connection be used with this slot until it is given back to its pool."""
    info = connection.record_info
    assert info is not None
    info[_SLOT] = slot


def unassign(connection: ManagesConnection) -> Slot | None:
    """Take the connection's slot from it, if it has one."""
    info = connection.record_info
    slot: Slot | None = None if info is None else info.pop(_SLOT, None)
    return slot


def has_application_listener(listeners: Collection[Callable[..., Any]]) -> bool:
    """Whether one of the listeners may set something for a caller."""
    return bool(listeners) and _has_other_than_observers(tuple(listeners))


@lru_cache(maxsize=256)  # asked at each read
def _has_other_than_observers(listeners: tuple[Callable[..., Any], ...]) -> bool:
    return not all(map(_is_observer, listeners))


def _is_observer(listener: Any) -> bool:
    function = inspect.unwrap(listener)
    module = str(getattr(function, "__module__", ""))
    package = module.partition(".")[0]
    if package == "sqlalchemy":  # its own, or its wrapper of another one, which the wrapper's closure holds
        cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
        return all(_is_observer(content) for content in cells if inspect.isroutine(content))
    return package in _OBSERVERS or module in _OWN_MODULES
