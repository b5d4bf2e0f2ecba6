"""The options of a connection: the session settings, the timeouts, and those for a transaction pooler."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

import asyncpg
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import AdaptedConnection, ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine

from howdah._connections.driver import CloseLimit
from howdah._connections.hosts import Hosts
from howdah._connections.names import check_role_name, quote_literal
from howdah._connections.pool import CONNECTION_ERRORS
from howdah._connections.settings import SettingsConnection

Pooler = Literal["transaction"]

# Behind a transaction pooler: the execution option of a connection on which each statement is a transaction.
COMMIT_EACH: Final = "howdah_commit_each"

# The client waits this much longer than statement_timeout, so that it times out only if the server doesn't answer.
_GRACE_SECONDS: Final = 5.0

# A keyset cursor holds values as PostgreSQL's text. These settings make that text exact, whatever the role has set.
_TEXT_SETTINGS: Final = {
    "timezone": "UTC",
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
}

_READ_ONLY: Final = "default_transaction_read_only"
_FOR_TRANSACTION: Final = {_READ_ONLY: "transaction_read_only"}

# PgBouncer accepts these settings when a client connects, and sets them on each server connection that the client gets.
# It rejects a client that sends any other setting.
_POOLED_SETTINGS: Final = frozenset({"timezone", "application_name"})


def driver_arguments(
    options: Mapping[str, Any],
    close_limit: CloseLimit,
    *,
    application_name: str,
    role: str | None,
    read_only: bool,
    statement_timeout: float | None,
    lock_timeout: float | None,
    idle_in_transaction_timeout: float | None,
) -> dict[str, Any]:
    """The arguments of `asyncpg.connect`. `options` has those of the caller, which take precedence."""
    remaining = dict(options)
    own_settings = remaining.pop("server_settings", {})
    if role is not None:
        check_role_name(role)
        if any(name.lower() == "role" for name in own_settings):
            raise ValueError("the role is given twice: remove it from the server_settings of connect_args")
    settings = {
        **_TEXT_SETTINGS,
        "application_name": remaining.pop("application_name", application_name),
        **milliseconds("statement_timeout", statement_timeout),
        **milliseconds("lock_timeout", lock_timeout),
        **milliseconds("idle_in_transaction_session_timeout", idle_in_transaction_timeout),
        **({_READ_ONLY: "on"} if read_only else {}),
        **own_settings,
        # Last, because the role might lack the right to change the other settings. RESET ROLE returns to it, because it
        # is a setting of the connection.
        **({} if role is None else {"role": role}),
    }
    arguments = {
        "command_timeout": None if statement_timeout is None else statement_timeout + _GRACE_SECONDS,
        **remaining,
        "server_settings": settings,
    }
    if isinstance(arguments.get("host"), list):
        arguments.setdefault("async_creator_fn", Hosts().connect)
    return with_connection_class(arguments, close_limit)


def milliseconds(setting: str, seconds: float | None) -> dict[str, str]:
    """The server's setting for a timeout in seconds; nothing for None. Raises `ValueError`."""
    if seconds is None:
        return {}
    if seconds <= 0:
        raise ValueError(f"{setting} must be more than 0 seconds, or None for the server's own setting, not {seconds}")
    return {setting: str(math.ceil(seconds * 1000))}


def bound_pre_ping(engine: Engine, seconds: float | None) -> None:
    """Replace SQLAlchemy's pre-ping: it takes three round trips, and only the timeout of a statement limits it."""

    def ping(connection: AdaptedConnection) -> bool:
        try:
            connection.run_async(lambda driver: driver.execute("SELECT 1", timeout=seconds))
        except CONNECTION_ERRORS:
            connection.driver_connection.terminate()  # a graceful close would wait for the server
            return False  # the pool replaces this connection and every other one that it holds
        return True

    engine.dialect.do_ping = ping  # type: ignore[assignment, method-assign]


def with_connection_class(arguments: Mapping[str, Any], close_limit: CloseLimit) -> dict[str, Any]:
    """These arguments of `asyncpg.connect`, for connections with limits, whose transactions can begin with settings."""
    own = arguments.get("connection_class", asyncpg.Connection)
    limits = {"close_limit": close_limit, "rollback_seconds": arguments["timeout"]}
    bases = (SettingsConnection,) if own is asyncpg.Connection else (SettingsConnection, own)
    return {**arguments, "connection_class": type(own.__name__, bases, limits)}


def behind_transaction_pooler(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """These arguments of `asyncpg.connect`, changed for a pooler in transaction mode.

    Such a pooler assigns a server connection to a client for one transaction. Nothing may stay on the server connection
    after that. So the settings are sent with each BEGIN, and statements are prepared without a name, for one execution.
    """
    settings = arguments["server_settings"]
    # `set_config` parses a list such as `a, b` as the startup message does, in which the driver sends the settings if
    # there is no pooler. SET would take the quoted list 'a, b' for a single name.
    # `default_transaction_read_only` would only apply to the next transaction, so `transaction_read_only` is set.
    local = "".join(
        f"; SELECT pg_catalog.set_config({quote_literal(_FOR_TRANSACTION.get(name, name))}, "
        f"{quote_literal(value)}, true)"
        for name, value in settings.items()
        if name.lower() not in _POOLED_SETTINGS
    )
    return {
        **arguments,
        "server_settings": {name: value for name, value in settings.items() if name.lower() in _POOLED_SETTINGS},
        "connection_class": type("TransactionPooled", (arguments["connection_class"],), {"base_settings_sql": local}),
        "statement_cache_size": 0,
        "prepared_statement_cache_size": 0,
    }


def listen_for_single_statements(engine: Engine) -> None:
    """Commit after each statement on connections with the option `COMMIT_EACH`, and roll back one that failed.

    In autocommit the driver prepares and executes a statement in two messages outside of a transaction. A transaction
    pooler may send the two messages to different server connections.
    """

    @event.listens_for(engine, "after_cursor_execute")
    def commit(
        connection: Connection, _cursor: Any, _statement: str, _parameters: Any, context: Any, _many: bool
    ) -> None:
        options = context.execution_options
        if options.get(COMMIT_EACH) and not options.get("stream_results"):
            connection.connection.commit()

    @event.listens_for(engine, "handle_error")
    def roll_back(context: ExceptionContext) -> None:
        connection = context.connection
        if connection is None or context.is_disconnect or connection.invalidated or connection.closed:
            return
        if connection.get_execution_options().get(COMMIT_EACH):
            connection.connection.rollback()


class EngineOptions:
    """Copies of an engine with execution options. They are cached, because SQLAlchemy takes 0.25 ms for a copy."""

    def __init__(self, engine: AsyncEngine, *, is_transaction_pooled: bool) -> None:
        self._engine, self._is_transaction_pooled = engine, is_transaction_pooled
        self._engines: dict[frozenset[tuple[str, Any]], AsyncEngine] = {}

    def __len__(self) -> int:
        return len(self._engines)

    def with_options(self, options: Mapping[str, Any]) -> AsyncEngine:
        key = frozenset(options.items())
        if key not in self._engines:
            self._engines[key] = self._engine.execution_options(**options)
            if COMMIT_EACH in options and not self._is_transaction_pooled:  # a pooler's engine has these listeners
                listen_for_single_statements(self._engines[key].sync_engine)
        return self._engines[key]
