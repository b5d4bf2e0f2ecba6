"""Open connections that must not be used again: they can't write, or have lost their prepared statements.

A connection stays where it was opened. If that server is now a standby, or if the connection's session was started
read-only, every write on it fails, although a new connection may reach a server that accepts writes.

`DEALLOCATE ALL` and `DISCARD ALL` remove the prepared statements that the driver keeps. After that, every statement
fails that the connection has executed before.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import asyncpg
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncConnection

from howdah._connections.pool import BoundedPool
from howdah._driver_errors import message_field
from howdah.errors import ReadOnly

_READ_ONLY_QUERY: Final = text(
    "SELECT pg_catalog.pg_is_in_recovery() OR pg_catalog.current_setting('transaction_read_only') = 'on'"
)

_READ_ONLY: Final = "25006"
_NO_PREPARED_STATEMENT: Final = "26000"

# PostgreSQL reports these settings to the client when they change.
_REPORTED: Final = ("in_hot_standby", "default_transaction_read_only")


def discard_unusable_connections(engine: Engine, *, is_replica: bool) -> None:
    """Replace connections before their next use if an error shows that they are unusable.

    After a write that was rejected by a read-only server or session, these are all connections that are open now. After
    the loss of a prepared statement, it is the connection of that statement. The transaction can go on after a
    savepoint.
    """

    @event.listens_for(engine, "handle_error")
    def discard(context: ExceptionContext) -> None:
        connection = context.connection
        if connection is None or context.is_disconnect or connection.invalidated or connection.closed:
            return
        sqlstate = message_field(context.original_exception, "sqlstate")
        if sqlstate == _NO_PREPARED_STATEMENT:
            connection.connection.invalidate(soft=True)
        elif sqlstate == _READ_ONLY and not is_replica and _is_unexpected(connection):
            _discard(connection)


async def check_server(
    connect: Callable[[], AbstractAsyncContextManager[AsyncConnection]], *, must_write: bool
) -> None:
    """Run one statement. With `must_write` raise `ReadOnly` if a new connection can't write either."""
    for _ in range(2):
        async with connect() as connection:
            is_read_only = await connection.scalar(_READ_ONLY_QUERY)
            if not must_write or not is_read_only:
                return
            assert connection.sync_connection is not None
            _discard(connection.sync_connection)
    reason = (
        "a new connection can't write either: the server is a standby, or default_transaction_read_only is on. For a "
        "replica use Database(url, read_only=True)"
    )
    raise ReadOnly(None, None, asyncpg.ReadOnlySQLTransactionError(reason))


def _is_unexpected(connection: Connection) -> bool:
    """Whether the transaction is read-only although nobody has asked for that with `read_only=True` or SET."""
    if connection.get_execution_options().get("postgresql_readonly"):
        return False
    pool = connection.engine.pool
    if isinstance(pool, BoundedPool) and pool.state.is_transaction_pooled:
        return True  # a pooler doesn't pass on the settings of each server that it uses
    driver: Any = connection.connection.driver_connection
    reported = driver.get_settings()
    return any(getattr(reported, name, "off") == "on" for name in _REPORTED)


def _discard(connection: Connection) -> None:
    pool = connection.engine.pool
    if isinstance(pool, BoundedPool):
        pool.state.discard_open()
