"""A SELECT in a transaction with settings, in one round trip.

The settings and the SELECT are sent together. PostgreSQL executes the messages in order, as one transaction that ends
at the Sync message after the SELECT
(<https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-PIPELINING>). Until then it has the settings,
which are local to the transaction. If PostgreSQL rejects a setting, it skips all messages before the Sync. So the
SELECT is never executed without its settings.

The first read of a statement on a connection is a transaction of three round trips, because the statement must be
prepared with the settings: they may choose the schema.
"""

from __future__ import annotations

import asyncio
import struct
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection

from howdah._connections.settings import (
    SettingsConnection,
    TransactionSettings,
    end_failed_transaction,
    run_in_transaction,
)
from howdah._driver_errors import CLASSES_OF_REJECTED_SETTINGS, DRIVER_ERRORS, message_field
from howdah._error_translation import raise_for_statement
from howdah._sqlalchemy import write_before_next_message

_DRIVER_ERRORS: Final[tuple[type[Exception], ...]] = (*DRIVER_ERRORS, OSError)

# The prepared statements of a connection. The driver keeps as many for other statements.
_MAX_STATEMENTS: Final = 100

# Another error that may have been caused by a setting.
_CANNOT_CHANGE_NOW: Final = "55P02"

_LENGTH: Final = struct.Struct("!i").pack
# Execute the unnamed portal, and return all rows.
_EXECUTE: Final = b"E\x00\x00\x00\x09\x00\x00\x00\x00\x00"


class _Statements:
    """The prepared statements of one connection."""

    def __init__(self) -> None:
        self.selects: OrderedDict[str, Any] = OrderedDict()
        self.setters: dict[int, Any] = {}
        """By the number of settings. A reference keeps the statement prepared."""
        self.is_disabled = False

    def find(self, text: str, count: int) -> Any:
        """The prepared SELECT, or None if it isn't prepared yet, or if it must not be executed in this way."""
        if self.is_disabled or count not in self.setters:
            return None
        select = self.selects.get(text)
        if select is not None:
            self.selects.move_to_end(text)
        return select

    def add(self, text: str, select: Any) -> None:
        self.selects[text] = select
        if len(self.selects) > _MAX_STATEMENTS:
            self.selects.popitem(last=False)


async def fetch_with_settings(
    connection: AsyncConnection, driver: Any, settings: TransactionSettings, text: str, values: Sequence[Any]
) -> Sequence[Sequence[Any]]:
    """The rows of the SELECT `text` in a transaction with the settings.

    SQLAlchemy must have the connection in AUTOCOMMIT. Raises the same errors as `run_in_transaction`.
    """
    statements: _Statements = driver.pipelined_statements
    if statements is None:
        statements = driver.pipelined_statements = _Statements()
    configs = settings.configs()
    select = statements.find(text, len(configs))
    # In an open transaction the settings would stay until its end.
    if select is None or driver.is_in_transaction():
        return await _fetch_in_transaction(connection, driver, settings, text, values)
    try:
        write_before_next_message(driver, _bind_message(configs))
        # not `driver.fetch`, which may execute the statement a second time, without the settings
        rows: Sequence[Sequence[Any]] = await select.fetch(*values)
    except BaseException as error:
        statements.selects.pop(text, None)
        # After an error message of PostgreSQL the driver has read the answer to Sync. Other errors may be raised before
        # the driver has sent Sync: for example, a value of a wrong type.
        is_ended = not (message_field(error, "severity") is None or driver.is_closed() or driver.is_in_transaction())
        if is_ended and isinstance(error, asyncpg.InvalidCachedStatementError):
            # A table was altered. The other connections may have the old statement, too, so the read is repeated here.
            return await _fetch_in_transaction(connection, driver, settings, text, values)
        if is_ended and _may_be_caused_by_a_setting(error):
            rows = await _fetch_in_transaction(connection, driver, settings, text, values)  # raises the error again
            statements.is_disabled = True  # for example, if the role may not call `set_config`
            return rows
        try:
            if isinstance(error, _DRIVER_ERRORS):
                failed = error
                # first, because SQLAlchemy would open another connection for this after `invalidate`
                await connection.run_sync(lambda sync: raise_for_statement(sync, text, failed))
            raise
        finally:
            if not is_ended:
                await end_failed_transaction(connection, driver, error)
    return rows


async def _fetch_in_transaction(
    connection: AsyncConnection, driver: Any, settings: TransactionSettings, text: str, values: Sequence[Any]
) -> Sequence[Sequence[Any]]:
    """The same in three round trips. This also prepares the statements for the next read."""

    async def fetch(connection: AsyncConnection) -> Sequence[Sequence[Any]]:
        statements: _Statements = driver.pipelined_statements
        count = len(settings.configs())
        try:
            if statements.is_disabled:
                rows: Sequence[Sequence[Any]] = await driver.fetch(text, *values)
                return rows
            if count not in statements.setters:
                statements.setters[count] = await driver.prepare(_set_statement(count), name=_statement_name(count))
            select = statements.selects.pop(text, None) or await driver.prepare(text)
            rows = await select.fetch(*values)
        except _DRIVER_ERRORS as error:
            failed = error
            return await connection.run_sync(lambda sync: raise_for_statement(sync, text, failed))
        except BaseException:
            # The task was cancelled. The driver may still wait for a result, so the connection can't be used any more.
            await asyncio.shield(asyncio.ensure_future(connection.invalidate()))
            raise
        statements.add(text, select)
        return rows

    return await run_in_transaction(connection, settings=settings, work=fetch)


def can_pipeline(driver: Any) -> bool:
    """Whether the driver's connection was opened by the `Database`."""
    return issubclass(type(driver), SettingsConnection)


def _may_be_caused_by_a_setting(error: BaseException) -> bool:
    sqlstate = message_field(error, "sqlstate") or ""
    return sqlstate[:2] in CLASSES_OF_REJECTED_SETTINGS or sqlstate == _CANNOT_CHANGE_NOW


@lru_cache
def _set_statement(count: int) -> str:
    """A SELECT that sets `count` settings for the transaction, and returns no row.

    CASE guarantees the order. The role is the last one: it may not be allowed to change the other settings.
    """
    condition = "false"
    for number in range(count, 0, -1):
        is_null = f"pg_catalog.set_config(${2 * number - 1}, ${2 * number}, true) IS NULL"
        condition = f"CASE WHEN {is_null} THEN true ELSE {condition} END"
    return f"SELECT WHERE {condition}"  # only numbers are inserted


def _statement_name(count: int) -> str:
    return f"howdah_settings_{count}"


def _bind_message(configs: Sequence[tuple[str, str]]) -> bytes:
    """The messages Bind and Execute of the `_set_statement`. All parameters are texts.

    <https://www.postgresql.org/docs/current/protocol-message-formats.html>
    """
    parts = [_head_of_bind(len(configs))]
    for name, value in configs:
        parts += (_constant(name), _constant(value) if name == "role" else _parameter(value))
    parts.append(b"\x00\x00")  # no formats of results: there are none
    body = b"".join(parts)
    return b"B" + _LENGTH(len(body) + 4) + body + _EXECUTE


@lru_cache
def _head_of_bind(count: int) -> bytes:
    """The unnamed portal, the statement's name, no formats (all parameters are texts), and the number of parameters."""
    return b"\x00" + _statement_name(count).encode() + b"\x00\x00\x00" + struct.pack("!h", 2 * count)


def _parameter(text: str) -> bytes:
    value = text.encode()
    return _LENGTH(len(value)) + value


_constant: Final = lru_cache(maxsize=256)(_parameter)
