"""The connection pool. It is SQLAlchemy's pool, in which each connection in use also has a slot."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from weakref import WeakSet

from sqlalchemy import Engine, event
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.exc import MissingGreenlet
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry, ManagesConnection, PoolProxiedConnection
from sqlalchemy.util import await_only

from howdah._connections.driver import CloseLimit
from howdah._connections.listeners import ListenerCheck
from howdah._connections.slots import Priority, Slot, Slots, current_priority, pop_slot_to_use
from howdah._driver_errors import DRIVER_ERRORS, mark_rejected_settings
from howdah._lazy_loads import explain_missing_await
from howdah._sqlalchemy import PoolWithReturnHook
from howdah.errors import ConnectionFailed, PoolExhausted

# The errors if a connection can't be opened: SQLAlchemy 2.0 raises the driver's own errors, 2.1 its wrappers of them.
CONNECTION_ERRORS: Final[tuple[type[Exception], ...]] = (OSError, AsyncAdapt_asyncpg_dbapi.Error, *DRIVER_ERRORS)

_SLOT: Final = "howdah_slot"

_DISCARD_SECONDS: Final = 1.0

_ROLE_EXPLANATION: Final = (
    "Database(role={!r}) needs a role that exists, and that the login is a member of (GRANT role TO login)"
)


class IdleConnections(Protocol):
    """Connections that stay checked out of the pool while they are idle. An idle connection has no slot."""

    @property
    def idle_count(self) -> int: ...

    def release_idle(self) -> None:
        """Return one idle connection to the pool, if there is any. Called from a greenlet of SQLAlchemy."""

    def release_all_idle(self) -> None:
        """Return all idle connections to the pool. Called from a greenlet of SQLAlchemy."""

    def abandon_idle(self) -> None:
        """Drop all idle connections without closing them: another process may use them."""


@dataclass(slots=True)
class PoolState:
    """The state of an engine's pool. A pool that replaces this one after `engine.dispose()` gets the same state."""

    slots: Slots
    kept: IdleConnections
    is_transaction_pooled: bool
    """Whether a pooler gives each transaction another connection to the server."""
    pool: BoundedPool
    """The current pool of the engine."""
    max_overflow: int
    close_limit: CloseLimit
    role: str | None = None
    """The role that each connection takes when it is opened."""
    opened: WeakSet[Any] = field(default_factory=WeakSet)
    """The driver's connections, some of which may be closed already."""
    used: WeakSet[Any] = field(default_factory=WeakSet)
    """Those of them that have a slot."""
    discarded: float = -math.inf
    """The time of the last `discard_open`, on the clock `time.monotonic`."""
    listeners: ListenerCheck = field(default_factory=ListenerCheck)

    @property
    def claimed(self) -> int:
        """The number of connections in use, including those of replaced pools, plus the idle kept connections."""
        return self.slots.in_use + self.kept.idle_count

    @property
    def missing(self) -> int:
        """The number of tasks that wait for a slot, or that have one but no connection yet."""
        return self.slots.waiting + self.slots.in_use - len(self.used)

    def discard_open(self) -> None:
        """Replace all connections that are open now before their next use.

        Within a second of an earlier call it does nothing. So if a server stays read-only, each connection is replaced
        at most once per second.
        """
        now = time.monotonic()
        if now - self.discarded >= _DISCARD_SECONDS:
            self.discarded = now
            self.pool.discard_open()

    def status(self) -> PoolStatus:
        """The connections of this pool and of the pools that it has replaced. A lost connection isn't open."""
        in_use = sum(map(_is_open, self.used))
        return PoolStatus(
            size=self.pool.size(),
            max_overflow=self.max_overflow,
            in_use=in_use,
            idle=sum(map(_is_open, self.opened)) - in_use,
            waiting=self.slots.waiting,
        )


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """The current state of the pool. `size` and `max_overflow` are settings; `in_use + idle` connections are open.

    `waiting` tasks wait for a connection.
    """

    size: int
    max_overflow: int
    in_use: int
    idle: int
    waiting: int = 0


class BoundedPool(PoolWithReturnHook):
    """The pool of one `Database`. `state` must be set before the first checkout."""

    state: PoolState
    _is_disposed = False

    def connect(self) -> PoolProxiedConnection:
        """A connection with a slot. Waits for the slot. Raises `PoolExhausted` and `ConnectionFailed`."""
        if self.state.is_transaction_pooled and self.state.listeners.has_application_listener(self.dispatch.checkout):
            raise RuntimeError(
                "a listener of the pool's checkout can't prepare a connection behind a transaction pooler, because the "
                "transaction may get another one: listen to the engine's begin, and set only for the transaction "
                "(SET LOCAL, or set_config(name, value, true))"
            )
        try:
            slot = pop_slot_to_use() or await_only(self.take_slot(current_priority()))
            # `dispose()` may have replaced this pool while the task waited for the slot.
            return self.state.pool._check_out(slot)
        except MissingGreenlet as error:
            explain_missing_await(error)
            raise
        except CONNECTION_ERRORS as error:
            if self.state.role is not None:
                mark_rejected_settings(error, _ROLE_EXPLANATION.format(self.state.role))
            raise ConnectionFailed(None, None, error) from error

    async def take_slot(self, priority: Priority) -> Slot:
        """A slot for one connection. Raises `PoolExhausted` if none is released within `pool_timeout`."""
        slots = self.state.slots
        try:
            return await slots.take(priority, self.timeout())
        except TimeoutError as error:
            limit = slots.limit(priority)
            reserved = slots.total - limit
            others = f" ({reserved} more are reserved for reads and batches)" if reserved else ""
            raise PoolExhausted(
                f"all {limit} connections{others} were in use for {self.timeout()} s (pool_timeout): "
                "hold sessions for a shorter time, or raise pool_size"
            ) from error

    def dispose(self) -> None:
        self._is_disposed = True
        with self.state.close_limit.for_all():
            self.state.kept.release_all_idle()
            super().dispose()

    def recreate(self) -> BoundedPool:
        """The pool that replaces this one. Connections of this one that are in use keep their slots."""
        new = super().recreate()
        assert isinstance(new, BoundedPool)
        if not self._is_disposed:  # `engine.dispose(close=False)`
            self.state.kept.abandon_idle()
            self.state.opened.clear()  # the connections belong to another process
            self.state.used.clear()
        new.state = self.state
        new.state.pool = new
        return new

    def return_record(self, record: ConnectionPoolEntry) -> None:
        slot = _pop_slot(record, record.driver_connection, self.state)
        try:
            if record.driver_connection is not None and not _is_open(record.driver_connection):
                record.invalidate()  # otherwise the ping before its next use would fail, and discard all connections
            if self._is_disposed:  # SQLAlchemy would leave it open until the garbage collector finds it
                self.close_record(record)
            else:
                super().return_record(record)
        finally:
            # The slot is released after the connection was returned. Otherwise the next use could find no connection in
            # the pool and wait for `pool_timeout`.
            if slot is not None:
                self.state.slots.release(slot)

    def _check_out(self, slot: Slot) -> PoolProxiedConnection:
        """A connection with this slot. The slot is released if that fails."""
        try:
            # `claimed` includes this slot. If it exceeds the total, an idle kept connection must be returned first.
            if self.checkedin() == 0 and self.state.claimed > self.state.slots.total:
                self.state.kept.release_idle()
            connection = super().connect()
            assign_slot(connection, connection.driver_connection, slot, self.state)
        except BaseException as error:
            self.state.slots.release(slot)
            if type(error) is PoolTimeoutError:  # connections that are being closed still count as open
                raise PoolExhausted(f"no connection was returned to the pool for {self.timeout()} s") from error
            raise
        return connection


def count_open_connections(engine: Engine, state: PoolState) -> None:
    """Register each connection that the pools of the engine open."""

    @event.listens_for(engine, "connect")
    def register(connection: Any, _record: ConnectionPoolEntry) -> None:
        state.opened.add(connection.driver_connection)


def assign_slot(connection: ManagesConnection, driver: Any, slot: Slot, state: PoolState) -> None:
    """Assign the slot to the connection. The slot is released when the connection is returned to its pool."""
    info = connection.record_info
    assert info is not None
    info[_SLOT] = slot
    state.used.add(driver)


def release_slot(connection: ManagesConnection, driver: Any, state: PoolState) -> None:
    """Release the slot of a connection that stays checked out."""
    # A lost connection has no slot here. If it was opened again since, it has the slot of that later checkout.
    slot = _pop_slot(connection, driver, state)
    if slot is not None:
        state.slots.release(slot)


def _is_open(driver: Any) -> bool:
    return not driver.is_closed()


def _pop_slot(connection: ManagesConnection, driver: Any, state: PoolState) -> Slot | None:
    info = connection.record_info
    slot: Slot | None = None if info is None else info.pop(_SLOT, None)
    if driver is not None:  # a connection that was lost or invalidated has no driver's connection any more
        state.used.discard(driver)
    return slot
