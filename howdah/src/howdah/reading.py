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

ResultT = TypeVar("ResultT")

# One that has rested for longer goes through the pool, which asks whether it is still there.
_RESTED_SECONDS: Final = 1.0

_DRIVER_ERRORS: Final[tuple[type[Exception], ...]] = (*DRIVER_ERRORS, OSError)


@dataclass(slots=True)
class _Kept:
    connection: AsyncConnection
    opened: float
    used: float


class Lasting:
    """At most `keep` connections of the engine, on which each statement is a transaction of its own, that stay out of
    its pool between uses, each for at most `recycle` seconds (-1: any time)."""

    def __init__(self, engine: AsyncEngine, *, keep: int, recycle: float) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
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
        async with self._until_done(await self._rested() or await self._fresh()) as connection:
            yield connection

    async def read(self, work: Callable[[AsyncConnection], Awaitable[ResultT]]) -> ResultT:
        """What `work` returns, which only reads: on a kept connection that turns out to be lost, or to have plans from
        before a migration, it is begun again on another one."""
        kept = await self._rested()
        if kept is not None:
            try:
                async with self._until_done(kept) as connection:
                    return await work(connection)
            except (ConnectionLost, Conflict):
                await self._give_back()
        async with self._until_done(await self._fresh()) as connection:
            return await work(connection)

    def give_one_back(self) -> None:
        """For somebody who finds the pool empty; called where SQLAlchemy's own code runs."""
        if self._resting:
            sync = self._resting.pop(0).connection.sync_connection
            assert sync is not None
            sync.close()

    async def close(self) -> None:
        """Give all connections back, those in use when they are done."""
        self._closed = True
        await self._give_back()

    async def _rested(self) -> _Kept | None:
        if not self._resting:
            return None
        kept, now = self._resting.pop(), time.monotonic()
        rested = now - kept.used < _RESTED_SECONDS and not 0 <= self._recycle <= now - kept.opened
        if rested and _is_open(kept.connection):
            return kept
        await _close(kept)
        return None

    async def _fresh(self) -> _Kept:
        now = time.monotonic()
        return _Kept(await self._engine.connect(), now, now)

    @asynccontextmanager
    async def _until_done(self, kept: _Kept) -> AsyncIterator[AsyncConnection]:
        try:
            yield kept.connection
            if kept.connection.in_transaction():  # SQLAlchemy's own notion, in which there is nothing of PostgreSQL's
                await kept.connection.rollback()
        except BaseException:
            await _close(kept)
            raise
        if self._closed or len(self._resting) >= self._keep:
            await _close(kept)
        else:
            kept.used = time.monotonic()
            self._resting.append(kept)

    async def _give_back(self) -> None:
        while self._resting:
            await _close(self._resting.pop())


def _is_open(connection: AsyncConnection) -> bool:
    """As far as the driver has heard."""
    sync = connection.sync_connection
    assert sync is not None
    driver: Any = None if sync.closed or sync.invalidated else sync.connection.driver_connection
    return driver is not None and not driver.is_closed()


async def _close(kept: _Kept) -> None:
    await asyncio.shield(asyncio.ensure_future(kept.connection.close()))


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
