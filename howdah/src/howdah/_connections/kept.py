"""Kept connections: autocommit connections that stay checked out of the pool between uses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from howdah._connections.listeners import ListenerCheck
from howdah._connections.pool import BoundedPool, PoolState, assign_slot, release_slot
from howdah._connections.prepared import ReadRows
from howdah._connections.settings import TransactionSettings, run_in_transaction
from howdah._connections.slots import Priority, Slot, start_slot_record, use_slot
from howdah.errors import ConnectionLost, TransactionConflict

ResultT = TypeVar("ResultT")

# A ping costs a round trip, as much as the read itself. So a connection is used without a ping if it was used within
# this time. One that was idle for longer is returned to the pool, which pings it at the next checkout.
_MAX_IDLE_SECONDS: Final = 1.0


@dataclass(slots=True)
class _KeptConnection:
    connection: AsyncConnection
    sync: Connection
    driver: Any
    """The driver's connection. If SQLAlchemy replaces it, it is closed."""
    pool: BoundedPool
    opened: float
    used: float

    @property
    def is_open(self) -> bool:
        """Whether the connection is open, as far as the driver knows."""
        return not (self.driver.is_closed() or self.sync.closed or self.sync.invalidated)


class KeptConnections:
    """The kept connections of an engine. Each statement on them is a transaction.

    At most `keep` idle connections stay checked out of the pool, each for at most `recycle` seconds (-1: no limit).
    While tasks wait for a connection, one more for each of them may stay.

    An idle connection has no slot. It is returned to the pool when another use finds the pool empty, and when the
    engine is disposed.

    No connection is kept if a listener prepares the pool's connections for each use. Each use then checks out a
    connection. If the application listens to the engine's `begin`, each read is a transaction, so that a `SET LOCAL` of
    the listener has an effect.
    """

    def __init__(
        self, engine: AsyncEngine, autocommit_options: Mapping[str, Any], *, keep: int, recycle: float
    ) -> None:
        self._sync_engine = engine.sync_engine
        self._engine = engine.execution_options(**autocommit_options)
        self._keep, self._recycle = keep, recycle
        self._idle: list[_KeptConnection] = []
        self._closed = False

    @property
    def idle_count(self) -> int:
        return len(self._idle)

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[AsyncConnection]:
        """A kept connection, or a new checkout from the pool."""
        start_slot_record()
        async with self._slot(Priority.BATCH) as slot:
            kept = await self._take_idle(slot) or await self._connect(slot)
            try:
                yield kept.connection
                await _end_transaction(kept)
            except BaseException:
                await _close(kept.connection)
                raise
            await self._release(kept)

    @asynccontextmanager
    async def connect_once(
        self, engine: AsyncEngine, priority: Priority = Priority.BATCH
    ) -> AsyncIterator[AsyncConnection]:
        """A connection of this engine, which has the same pool. It isn't kept."""
        start_slot_record()
        async with self._slot(priority) as slot:
            with use_slot(slot):
                connection = await engine.connect()
            try:
                yield connection
                if connection.in_transaction():
                    await connection.commit()
            finally:
                await _close(connection)

    async def read(
        self,
        work: Callable[[AsyncConnection], Awaitable[ResultT]],
        get_engine: Callable[[], AsyncEngine],
        settings: TransactionSettings | None,
    ) -> ResultT:
        """Call `work`, which must only read, and return its result.

        With settings it is called in a transaction. `get_engine` returns the engine with these settings.

        If a kept connection was lost, or after a `TransactionConflict` (for example, a table was altered after its
        statements were prepared), `work` is called again on another connection.
        """
        if self._has_begin_listener() or (settings is not None and not self._can_begin_by_driver(settings)):
            return await self._read_in_transaction(get_engine(), work)
        if settings is not None:
            work = _run_with_settings(work, settings)
        pool = self._pool
        slot = await pool.take_slot(Priority.READ)
        try:
            kept = await self._take_idle(slot)
            if kept is None:
                return await self._read_on(await self._connect(slot), work)
            try:
                return await self._read_on(kept, work)
            except (ConnectionLost, TransactionConflict):
                # The other idle connections have the same fault: they are older than the restart or the migration.
                await self._release_all()
        finally:
            pool.state.slots.release(slot)
        async with self._slot(Priority.READ) as slot:
            return await self._read_on(await self._connect(slot), work)

    async def _read_on(self, kept: _KeptConnection, work: Callable[[AsyncConnection], Awaitable[ResultT]]) -> ResultT:
        """Call `work` with the connection. After that the connection is idle, or is returned to the pool."""
        try:
            result = await work(kept.connection)
            await _end_transaction(kept)
        except BaseException:
            await _close(kept.connection)
            raise
        await self._release(kept)
        return result

    def is_shared(self) -> bool:
        """Whether all callers can use the same connection, because no listener prepares it for one of them."""
        return not self._has_begin_listener() and not self._is_prepared_for_each_use()

    def _has_begin_listener(self) -> bool:
        """Whether the application listens to the engine's `begin`."""
        return self._listeners.has_application_listener(self._sync_engine.dispatch.begin)

    def release_idle(self) -> None:
        if self._idle:
            self._idle.pop(0).sync.close()

    def release_all_idle(self) -> None:
        while self._idle:
            self._idle.pop().sync.close()

    def abandon_idle(self) -> None:
        while self._idle:
            self._idle.pop().sync.detach()

    async def close(self) -> None:
        """Return all connections to the pool. Connections in use are returned after their use."""
        self._closed = True
        await self._release_all()

    @property
    def _pool(self) -> BoundedPool:
        return self._sync_engine.pool  # type: ignore[return-value]  # the engine of a `Database`

    @asynccontextmanager
    async def _slot(self, priority: Priority) -> AsyncIterator[Slot]:
        slot = await self._pool.take_slot(priority)
        try:
            yield slot
        finally:
            self._pool.state.slots.release(slot)

    async def _take_idle(self, slot: Slot) -> _KeptConnection | None:
        """Take an idle connection and assign the slot to it. None if no idle connection can be used."""
        if not self._idle:
            return None
        kept, now = self._idle.pop(), time.monotonic()
        is_fresh = now - kept.used < _MAX_IDLE_SECONDS and not 0 <= self._recycle <= now - kept.opened
        is_fresh = is_fresh and not self._is_discarded(kept)
        if self._is_prepared_for_each_use():
            await self._release_all()
        elif is_fresh and kept.is_open:
            assign_slot(kept.sync.connection, kept.driver, slot, self._pool.state)
            return kept
        await _close(kept.connection)
        return None

    async def _connect(self, slot: Slot) -> _KeptConnection:
        pool, now = self._pool, time.monotonic()
        with use_slot(slot):
            connection = await self._engine.connect()
        sync = connection.sync_connection
        assert sync is not None
        return _KeptConnection(connection, sync, sync.connection.driver_connection, pool, now, now)

    async def _release(self, kept: _KeptConnection) -> None:
        """Keep the connection idle, or return it to the pool."""
        if self._may_keep(kept):
            release_slot(kept.sync.connection, kept.driver, self._pool.state)
            kept.used = time.monotonic()
            self._idle.append(kept)
        else:
            await _close(kept.connection)

    def _may_keep(self, kept: _KeptConnection) -> bool:
        pool = self._pool
        return (
            not self._closed
            and kept.is_open
            and not self._is_discarded(kept)
            and kept.pool is pool  # the engine wasn't disposed during the use
            and self._has_place(pool.state)
            and not self._is_prepared_for_each_use()
            # `execution_options()` changes a connection in place
            and kept.sync.get_execution_options() == self._engine.sync_engine.get_execution_options()
        )

    def _has_place(self, state: PoolState) -> bool:
        """Whether one more connection may stay checked out while it is idle.

        Tasks that wait for a connection, or have a slot but no connection yet, soon take the idle ones. Otherwise each
        of them would need a checkout from the pool, with a ping. A task that finds the pool empty gets an idle
        connection, too (`release_idle`).
        """
        return len(self._idle) < self._keep or len(self._idle) < self._keep + state.missing

    def _is_discarded(self, kept: _KeptConnection) -> bool:
        return kept.opened <= self._pool.state.discarded

    def _is_prepared_for_each_use(self) -> bool:
        """Whether the application has a listener that runs at each use of a connection, or at each statement."""
        engine, pool = self._sync_engine.dispatch, self._sync_engine.pool.dispatch
        return self._listeners.has_application_listener(
            *(pool.checkout, pool.checkin, pool.reset),
            *(engine.engine_connect, engine.before_execute, engine.before_cursor_execute),
        )

    @property
    def _listeners(self) -> ListenerCheck:
        return self._pool.state.listeners

    async def _read_in_transaction(
        self, engine: AsyncEngine, work: Callable[[AsyncConnection], Awaitable[ResultT]]
    ) -> ResultT:
        """Call `work` in a transaction of this engine, which has the same pool."""
        async with self._slot(Priority.READ) as slot:
            with use_slot(slot):
                connection = await engine.connect()
            try:
                return await work(connection)
            finally:
                await _close(connection)

    def _can_begin_by_driver(self, settings: TransactionSettings) -> bool:
        """Whether a kept connection can be used with these settings, in a transaction of the driver."""
        return not self._pool.state.is_transaction_pooled and not settings.schema_translate_map

    async def _release_all(self) -> None:
        while self._idle:
            await _close(self._idle.pop().connection)


def _run_with_settings(
    work: Callable[[AsyncConnection], Awaitable[ResultT]], settings: TransactionSettings
) -> Callable[[AsyncConnection], Awaitable[ResultT]]:
    """A function that calls `work` in a transaction with the settings."""
    if isinstance(work, ReadRows):
        return partial(work.with_settings, settings=settings)  # type: ignore[return-value]  # the rows are `ResultT`
    return partial(run_in_transaction, settings=settings, work=work)


async def _end_transaction(kept: _KeptConnection) -> None:
    """Commit, if the use of the connection has begun a transaction."""
    # SQLAlchemy has begun a transaction. PostgreSQL has one only behind a pooler.
    if kept.connection.in_transaction():
        await kept.connection.commit()


async def _close(connection: AsyncConnection) -> None:
    """Close the connection, even if this task is cancelled at the same time."""
    await asyncio.shield(asyncio.ensure_future(connection.close()))
