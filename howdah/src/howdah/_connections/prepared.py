"""SELECTs that bypass SQLAlchemy: the driver keeps them prepared, so that a read is one round trip."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import BindParameter, Connection, Dialect, Select
from sqlalchemy.ext.asyncio import AsyncConnection

from howdah._connections.pipelined import can_pipeline, fetch_with_settings
from howdah._connections.settings import TransactionSettings, run_in_transaction
from howdah._driver_errors import DRIVER_ERRORS
from howdah._error_translation import raise_for_statement
from howdah._tracing import spans_by_dialect

_DRIVER_ERRORS: Final[tuple[type[Exception], ...]] = (*DRIVER_ERRORS, OSError)


class PreparedSelect:
    """A `select()` that is compiled once and executed through the driver, which keeps it prepared.

    It falls back to SQLAlchemy (about 0.1 ms slower) if event listeners or engine logging are active, if a result or
    bind type needs conversion by SQLAlchemy, if the text of the statement depends on the parameters, or if a
    transaction is open.
    """

    def __init__(self, statement: Select[Any]) -> None:
        self._statement = statement
        self._compiled: _Compiled | None = None

    async def rows(self, connection: AsyncConnection, parameters: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """All rows. Raises the same errors as SQLAlchemy."""
        rows = await self.rows_from_driver(connection, parameters)
        if rows is None:
            result = await connection.execute(self._statement, parameters)
            return [*result]
        return rows

    async def rows_from_driver(
        self, connection: AsyncConnection, parameters: Mapping[str, Any]
    ) -> Sequence[Sequence[Any]] | None:
        """All rows, or None if SQLAlchemy must execute the statement. Raises the same errors as SQLAlchemy."""
        sync = connection.sync_connection
        assert sync is not None
        compiled = self._compile(sync)
        values = compiled.parameters(parameters) if _can_bypass(sync) else None
        if values is None:
            return None
        driver = await _get_driver(connection, sync)
        try:
            with self._span(sync):
                rows: Sequence[Sequence[Any]] = await driver.fetch(compiled.text, *values)
        except _DRIVER_ERRORS as error:
            text, failed = compiled.text, error
            return await connection.run_sync(lambda sync: raise_for_statement(sync, text, failed))
        except BaseException:
            # The task was cancelled. The driver may still wait for a result, so the connection can't be used any more.
            await asyncio.shield(asyncio.ensure_future(connection.invalidate()))
            raise
        return rows

    def binds(self, connection: AsyncConnection) -> Sequence[BindParameter[Any]]:
        """The parameters of the compiled statement."""
        assert connection.sync_connection is not None
        return self._compile(connection.sync_connection).binds

    async def rows_with_settings(
        self, connection: AsyncConnection, parameters: Mapping[str, Any], settings: TransactionSettings
    ) -> Sequence[Sequence[Any]]:
        """All rows, in a transaction with the settings. Raises the same errors as `run_in_transaction`."""
        sync = connection.sync_connection
        assert sync is not None
        compiled = self._compile(sync)
        values = compiled.parameters(parameters) if _can_bypass(sync) else None
        driver = await _get_driver(connection, sync)
        if values is None or not can_pipeline(driver):
            return await run_in_transaction(
                connection, settings=settings, work=lambda connection: self.rows(connection, parameters)
            )
        with self._span(sync):
            return await fetch_with_settings(connection, driver, settings, compiled.text, values)

    def _compile(self, sync: Connection) -> _Compiled:
        if self._compiled is None:
            self._compiled = _Compiled(self._statement, sync.dialect)
        return self._compiled

    def _span(self, sync: Connection) -> AbstractContextManager[Any]:
        """The span of the statement, if the application traces the engine."""
        spans = spans_by_dialect.get(sync.dialect) if spans_by_dialect else None
        return nullcontext() if spans is None else spans.span(self._compile(sync).text)


@dataclass(frozen=True, slots=True)
class ReadRows:
    """The rows of a prepared SELECT, for `Database.read`. With settings, this is usually one round trip."""

    statement: PreparedSelect
    parameters: Mapping[str, Any]

    async def __call__(self, connection: AsyncConnection) -> Sequence[Sequence[Any]]:
        return await self.statement.rows(connection, self.parameters)

    async def with_settings(
        self, connection: AsyncConnection, settings: TransactionSettings
    ) -> Sequence[Sequence[Any]]:
        return await self.statement.rows_with_settings(connection, self.parameters, settings)


async def _get_driver(connection: AsyncConnection, sync: Connection) -> Any:
    """The driver's connection."""
    if sync.closed or sync.invalidated:
        raw: Any = await connection.get_raw_connection()
        return raw.driver_connection
    return sync.connection.driver_connection  # the same, without a greenlet


class _Compiled:
    """A statement's text, and its parameters in the order of the text."""

    def __init__(self, statement: Select[Any], dialect: Dialect) -> None:
        compiled: Any = statement.compile(dialect=dialect)
        self.text = str(compiled)
        self.binds: Sequence[BindParameter[Any]] = [*compiled.binds.values()]
        # SQLAlchemy writes these parameters into the text at each execution, for example the items of IN.
        has_late_parameters = compiled.post_compile_params or compiled.literal_execute_params
        self._can_bypass = not has_late_parameters and all(
            _is_returned_unchanged(column.type, dialect) for column in statement.selected_columns
        )
        self._parameters = [
            _Parameter(name, compiled.binds[name], dialect) for name in compiled.positiontup or () if self._can_bypass
        ]

    def parameters(self, arguments: Mapping[str, Any]) -> list[Any] | None:
        """The parameters in the order of the text; None if SQLAlchemy must execute the statement or raise the error."""
        if not self._can_bypass:
            return None
        try:
            return [each.get(arguments) for each in self._parameters]
        except Exception:
            return None


class _Parameter:
    """A parameter of a statement. Most of them are constants, such as the names of the fields of a JSON object."""

    __slots__ = ("_bind", "_key", "_name", "_process", "_processed")

    def __init__(self, name: str, bind: BindParameter[Any], dialect: Dialect) -> None:
        self._name, self._key, self._bind = name, bind.key, bind
        self._process = bind.type.dialect_impl(dialect).bind_processor(dialect)
        self._processed: tuple[Any] | None = None
        """The constant, as the driver gets it."""

    def get(self, arguments: Mapping[str, Any]) -> Any:
        """The value for the driver. Raises an error for a value that is missing or invalid."""
        if self._key in arguments:
            return self._convert(arguments[self._key])
        if self._name in arguments:
            return self._convert(arguments[self._name])
        if self._bind.required:
            raise LookupError(self._key)
        if self._bind.callable is not None:
            return self._convert(self._bind.effective_value)
        if self._processed is None:
            self._processed = (self._convert(self._bind.value),)
        return self._processed[0]

    def _convert(self, value: Any) -> Any:
        return value if self._process is None else self._process(value)


def _is_returned_unchanged(kind: Any, dialect: Dialect) -> bool:
    """Whether SQLAlchemy returns the driver's values of this type unchanged."""
    try:
        return kind.dialect_impl(dialect).result_processor(dialect, None) is None
    except Exception:  # some types need the column's description from the server
        return False


def _can_bypass(connection: Connection) -> bool:
    """Whether the statement can be sent without SQLAlchemy's listeners, log and transaction."""
    options = connection.get_execution_options()
    listeners = connection.dispatch
    before, after = listeners.before_cursor_execute, listeners.after_cursor_execute
    # `howdah.tracing` has one listener for each of these two events. A statement that bypasses SQLAlchemy doesn't call
    # this listener.
    return (
        options.get("isolation_level") == "AUTOCOMMIT"
        and not options.get("schema_translate_map")
        and not (listeners.before_execute or listeners.after_execute)
        and (not (before or after) or len(before) == len(after) == int(connection.dialect in spans_by_dialect))
        and not connection.engine.logger.isEnabledFor(logging.INFO)
    )
