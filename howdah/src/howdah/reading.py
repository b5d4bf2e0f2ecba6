"""Statements each by themselves: connections are kept between them, and reads that are run again and again go straight
to the driver, so that one is one trip and nothing else."""

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

from howdah.errors import DRIVER_ERRORS, Conflict, ConnectionLost, raise_as_of_a_statement
from howdah.pooling import BoundedPool, Priority, Slot, assign, unassign, using

ResultT = TypeVar("ResultT")

# One that has rested for longer goes through the pool, which asks whether it is still there.
_RESTED_SECONDS: Final = 1.0

# That of `howdah.database`, which only forgets what went before.
_OWN_BEGIN_LISTENERS: Final = 1

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
        """As far as the driver has heard."""
        sync = self.sync
        driver: Any = None if sync.closed or sync.invalidated else sync.connection.driver_connection
        return driver is not None and not driver.is_closed()


class Lasting:
    """Connections of an engine on which each statement is a transaction of its own. At most `keep` of them stay out of
    its pool between uses, each for at most `recycle` seconds (-1: any time).

    A connection that nobody uses has no slot: it is closed as soon as somebody needs its place. None is kept while the
    pool's connections are prepared for each use (see `BoundedPool`): each use is then a checkout of its own. While the
    application listens to the engine's `begin`, a read is a transaction, so that `SET LOCAL` in the listener holds.
    """

    def __init__(self, engine: AsyncEngine, single: Mapping[str, Any], *, keep: int, recycle: float) -> None:
        self._transactional = engine
        self._engine = engine.execution_options(**single)
        self._keep, self._recycle = keep, recycle
        self._resting: list[_Kept] = []
        self._closed = False

    @property
    def resting(self) -> int:
        """How many are kept that nobody uses now."""
        return len(self._resting)

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[AsyncConnection]:
        """A kept connection, or one of the pool."""
        async with self._slot(Priority.BATCH) as slot:
            kept = await self._rested(slot) or await self._fresh(slot)
            async with self._until_done(kept) as connection:
                yield connection

    async def read(self, work: Callable[[AsyncConnection], Awaitable[ResultT]]) -> ResultT:
        """What `work` returns, which only reads: on a kept connection that turns out to be lost, or to have plans from
        before a migration, it is begun again on another one."""
        if self._begins_are_heard():
            async with self._slot(Priority.READ) as slot:
                with using(slot):
                    connection = await self._transactional.connect()
                try:
                    return await work(connection)
                finally:
                    await _close(connection)
        async with self._slot(Priority.READ) as slot:
            kept = await self._rested(slot)
            if kept is None:
                async with self._until_done(await self._fresh(slot)) as connection:
                    return await work(connection)
            try:
                async with self._until_done(kept) as connection:
                    return await work(connection)
            except (ConnectionLost, Conflict):
                await self._give_back()
        async with self._slot(Priority.READ) as slot, self._until_done(await self._fresh(slot)) as connection:
            return await work(connection)

    def is_shared(self) -> bool:
        """Whether a connection is the same for every caller: nobody prepares it for one."""
        return not self._begins_are_heard() and not self._pool.is_prepared_for_each_use()

    def give_one_back(self) -> None:
        """For somebody who finds the pool empty; called where SQLAlchemy's own code runs."""
        if self._resting:
            self._resting.pop(0).sync.close()

    async def close(self) -> None:
        """Give all connections back, those in use when they are done."""
        self._closed = True
        await self._give_back()

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

    async def _rested(self, slot: Slot) -> _Kept | None:
        """A kept connection, which then has the slot."""
        if not self._resting:
            return None
        kept, now = self._resting.pop(), time.monotonic()
        rested = now - kept.used < _RESTED_SECONDS and not 0 <= self._recycle <= now - kept.opened
        if rested and kept.is_open and not self._pool.is_prepared_for_each_use():
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
            if kept.connection.in_transaction():  # SQLAlchemy's own notion; PostgreSQL has one only behind a pooler
                await kept.connection.commit()
        except BaseException:
            await _close(kept.connection)
            raise
        if self._may_keep(kept):
            unassign(kept.sync.connection)
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
            and not self._pool.is_prepared_for_each_use()
        )

    def _begins_are_heard(self) -> bool:
        return len(self._engine.sync_engine.dispatch.begin) > _OWN_BEGIN_LISTENERS

    async def _give_back(self) -> None:
        while self._resting:
            await _close(self._resting.pop().connection)


async def _close(connection: AsyncConnection) -> None:
    await asyncio.shield(asyncio.ensure_future(connection.close()))


class Prepared:
    """A `select()` that is compiled once and then goes straight to the driver, which keeps it prepared.

    By SQLAlchemy's own way, which takes a tenth of a millisecond more, it goes where somebody watches statements
    (events, the log), where SQLAlchemy makes something of the rows or rewrites the text, and within a transaction.
    """

    def __init__(self, statement: Select[Any]) -> None:
        self._statement = statement
        self._compiled: _Compiled | None = None

    async def rows(self, connection: AsyncConnection, parameters: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """All rows. Raises what SQLAlchemy would."""
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
            await asyncio.shield(asyncio.ensure_future(connection.invalidate()))  # what it is about nobody knows
            raise
        return rows


class _Compiled:
    """A statement's text, and what makes its parameters."""

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
        """In the order of the text; None for what SQLAlchemy has to do, be it to say what is wrong."""
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
    """Whether a value of this type is what the driver makes of it."""
    try:
        return kind.dialect_impl(dialect).result_processor(dialect, None) is None
    except Exception:  # some ask for what the server has told of the column
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
