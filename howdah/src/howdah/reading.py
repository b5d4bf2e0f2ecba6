"""Single statements in autocommit, each in one round trip.

Connections are kept between them, and a SELECT that is run repeatedly is executed through the driver.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Dialect, Select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from howdah._connections.pool import (
    BoundedPool,
    Priority,
    Slot,
    assign,
    has_application_listener,
    record_here,
    unassign,
    using,
)
from howdah.errors import DRIVER_ERRORS, ConnectionLost, TransactionConflict, raise_as_of_a_statement

ResultT = TypeVar("ResultT")

# A kept connection that was idle for longer is returned to the pool, which pings it before the next use.
_RESTED_SECONDS: Final = 1.0

_DRIVER_ERRORS: Final[tuple[type[Exception], ...]] = (*DRIVER_ERRORS, OSError)


@dataclass(slots=True)
class _Kept:
    connection: AsyncConnection
    opened: float
    used: float

    @property
    def sync(self) -> Connection:
        sync = self.connection.sync_connection
        assert sync is not None
        return sync

    @property
    def is_open(self) -> bool:
        """Whether the connection is open, as far as the driver knows."""
        sync = self.sync
        driver: Any = None if sync.closed or sync.invalidated else sync.connection.driver_connection
        return driver is not None and not driver.is_closed()


class KeptConnections:
    """The kept connections of an engine. Each statement on them is a transaction.

    At most `keep` idle connections stay checked out of the pool, each for at most `recycle` seconds (-1: no limit).

    An idle connection has no slot. It is closed when another use needs its place. No connection is kept if the pool's
    connections are prepared for each use by a listener. Each use then checks out a connection. If the application
    listens to the engine's `begin`, each read is a transaction, so that a `SET LOCAL` of the listener has an effect.
    """

    def __init__(self, engine: AsyncEngine, single: Mapping[str, Any], *, keep: int, recycle: float) -> None:
        self._transactional = engine
        self._sync_engine = engine.sync_engine
        self._engine = engine.execution_options(**single)
        self._keep, self._recycle = keep, recycle
        self._resting: list[_Kept] = []
        self._closed = False

    @property
    def idle_count(self) -> int:
        """The number of idle kept connections."""
        return len(self._resting)

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[AsyncConnection]:
        """A kept connection, or a new checkout from the pool."""
        record_here()
        async with self._slot(Priority.BATCH) as slot:
            kept = await self._take_idle(slot) or await self._fresh(slot)
            async with self._until_done(kept) as connection:
                yield connection

    async def read(self, work: Callable[[AsyncConnection], Awaitable[ResultT]]) -> ResultT:
        """Call `work`, which must only read, and return its result.

        If a kept connection turns out to be lost, or has plans from before a migration, `work` is called again on
        another connection.
        """
        if self._begins_are_heard():
            async with self._slot(Priority.READ) as slot:
                with using(slot):
                    connection = await self._transactional.connect()
                try:
                    return await work(connection)
                finally:
                    await _close(connection)
        async with self._slot(Priority.READ) as slot:
            kept = await self._take_idle(slot)
            if kept is None:
                async with self._until_done(await self._fresh(slot)) as connection:
                    return await work(connection)
            try:
                async with self._until_done(kept) as connection:
                    return await work(connection)
            except (ConnectionLost, TransactionConflict):
                await self._release_all()
        async with self._slot(Priority.READ) as slot, self._until_done(await self._fresh(slot)) as connection:
            return await work(connection)

    def is_shared(self) -> bool:
        """Whether all callers can use the same connection, because no listener prepares it for one of them."""
        return not self._begins_are_heard() and not self._is_prepared_for_each_use()

    def release_idle(self) -> None:
        """Close one idle connection for a use that found the pool exhausted. Called from a greenlet of SQLAlchemy."""
        if self._resting:
            self._resting.pop(0).sync.close()

    async def close(self) -> None:
        """Return all connections to the pool. Connections in use are returned after their use."""
        self._closed = True
        await self._release_all()

    @property
    def _pool(self) -> BoundedPool:
        pool = self._engine.pool
        assert isinstance(pool, BoundedPool)
        return pool

    @asynccontextmanager
    async def _slot(self, priority: Priority) -> AsyncIterator[Slot]:
        slot = await self._pool.take_slot(priority)
        try:
            yield slot
        finally:
            self._pool.slots.give_back(slot)

    async def _take_idle(self, slot: Slot) -> _Kept | None:
        """An idle connection, to which the slot is assigned; None if there is none that can be used."""
        if not self._resting:
            return None
        kept, now = self._resting.pop(), time.monotonic()
        rested = now - kept.used < _RESTED_SECONDS and not 0 <= self._recycle <= now - kept.opened
        if rested and kept.is_open and not self._is_prepared_for_each_use():
            assign(kept.sync.connection, slot)
            return kept
        await _close(kept.connection)
        return None

    async def _fresh(self, slot: Slot) -> _Kept:
        now = time.monotonic()
        with using(slot):
            return _Kept(await self._engine.connect(), now, now)

    @asynccontextmanager
    async def _until_done(self, kept: _Kept) -> AsyncIterator[AsyncConnection]:
        try:
            yield kept.connection
            if kept.connection.in_transaction():  # for SQLAlchemy; PostgreSQL is in a transaction only behind a pooler
                await kept.connection.commit()
        except BaseException:
            await _close(kept.connection)
            raise
        if self._may_keep(kept):
            slot = unassign(kept.sync.connection)
            if slot is not None:  # not that of this use, if the connection was lost and opened again
                self._pool.slots.give_back(slot)
            kept.used = time.monotonic()
            self._resting.append(kept)
        else:
            await _close(kept.connection)

    def _may_keep(self, kept: _Kept) -> bool:
        return (
            not self._closed
            and kept.is_open
            and len(self._resting) < self._keep
            and not self._pool.is_exhausted()
            and not self._is_prepared_for_each_use()
            # `execution_options()` changes a connection in place
            and kept.sync.get_execution_options() == self._engine.sync_engine.get_execution_options()
        )

    def _is_prepared_for_each_use(self) -> bool:
        """Whether the application listens to each use of a connection, or to each statement."""
        engine = self._sync_engine
        pool, seen = engine.pool.dispatch, engine.dispatch
        of_pool: tuple[Any, ...] = (pool.checkout, pool.checkin, pool.reset)
        of_engine: tuple[Any, ...] = (seen.engine_connect, seen.before_execute, seen.before_cursor_execute)
        return any(has_application_listener(listeners) for listeners in (*of_pool, *of_engine))

    def _begins_are_heard(self) -> bool:
        return has_application_listener(self._sync_engine.dispatch.begin)

    async def _release_all(self) -> None:
        while self._resting:
            await _close(self._resting.pop().connection)


async def _close(connection: AsyncConnection) -> None:
    await asyncio.shield(asyncio.ensure_future(connection.close()))


class PreparedSelect:
    """A `select()` that is compiled once and executed through the driver, which keeps it prepared.

    It is executed through SQLAlchemy, which takes 0.1 ms more, if listeners or the log need its statements, if
    SQLAlchemy converts the values or rewrites the text, and within a transaction.
    """

    def __init__(self, statement: Select[Any]) -> None:
        self._statement = statement
        self._compiled: _Compiled | None = None

    async def rows(self, connection: AsyncConnection, parameters: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """All rows. Raises the same errors as SQLAlchemy."""
        sync = connection.sync_connection
        assert sync is not None
        if self._compiled is None:
            self._compiled = _Compiled(self._statement, sync.dialect)
        sent = self._compiled.parameters(parameters) if _may_bypass(sync) else None
        if sent is None:
            result = await connection.execute(self._statement, parameters)
            return [*result]
        raw: Any = await connection.get_raw_connection()
        try:
            rows: Sequence[Sequence[Any]] = await raw.driver_connection.fetch(self._compiled.text, *sent)
        except _DRIVER_ERRORS as error:
            text, failed = self._compiled.text, error
            return await connection.run_sync(lambda sync: raise_as_of_a_statement(sync, text, failed))
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(connection.invalidate()))  # its state is unknown
            raise
        return rows


class _Compiled:
    """A statement's text, and the bind processors of its parameters."""

    def __init__(self, statement: Select[Any], dialect: Dialect) -> None:
        self._compiled: Any = statement.compile(dialect=dialect)
        self.text = str(self._compiled)
        self._processors = {
            name: bind.type.dialect_impl(dialect).bind_processor(dialect) for name, bind in self._compiled.binds.items()
        }
        written_later = self._compiled.post_compile_params or self._compiled.literal_execute_params
        self._is_plain = not written_later and all(
            _comes_as_it_is(column.type, dialect) for column in statement.selected_columns
        )

    def parameters(self, given: Mapping[str, Any]) -> list[Any] | None:
        """The parameters in the order of the text; None if SQLAlchemy must execute the statement or raise the error."""
        if not self._is_plain:
            return None
        values = self._compiled.construct_params(given)
        sent = []
        for name in self._compiled.positiontup or ():
            process = self._processors[name]
            try:
                sent.append(values[name] if process is None else process(values[name]))
            except Exception:
                return None
        return sent


def _comes_as_it_is(kind: Any, dialect: Dialect) -> bool:
    """Whether SQLAlchemy returns the driver's values of this type unchanged."""
    try:
        return kind.dialect_impl(dialect).result_processor(dialect, None) is None
    except Exception:  # some types need the column's description from the server
        return False


def _may_bypass(connection: Connection) -> bool:
    options = connection.get_execution_options()
    seen = connection.dispatch
    return (
        options.get("isolation_level") == "AUTOCOMMIT"
        and not options.get("schema_translate_map")
        and not (seen.before_execute or seen.after_execute or seen.before_cursor_execute or seen.after_cursor_execute)
        and not connection.engine.logger.isEnabledFor(logging.INFO)
    )
