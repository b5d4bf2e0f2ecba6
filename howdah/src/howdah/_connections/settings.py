"""Settings of one transaction: `SET LOCAL`, in the same message as BEGIN.

The settings are an execution option of the engine. The listener for `begin` gives them to the driver's connection,
which appends them to its BEGIN. PostgreSQL undoes them at the end of the transaction, so that no connection keeps them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeVar

import asyncpg
from sqlalchemy import Connection, Engine, event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.orm import Session, SessionTransaction

from howdah._connections.driver import BoundedConnection
from howdah._connections.names import (
    SettingValue,
    check_identifier,
    check_role_name,
    check_setting_name,
    check_value,
    quote_identifier,
    quote_literal,
    quote_setting,
)
from howdah._driver_errors import DRIVER_ERRORS, mark_rejected_settings
from howdah._error_translation import raise_for_statement
from howdah._sqlalchemy import forget_transaction

_DRIVER_ERRORS: Final[tuple[type[Exception], ...]] = (*DRIVER_ERRORS, OSError)

ResultT = TypeVar("ResultT")

_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"
_EXPLANATION: Final = (
    "the transaction can't begin with its settings. A role must exist, and the login must be a member of it "
    "(GRANT role TO login)"
)

# The execution option of an engine whose transactions begin with settings.
SETTINGS_OPTION: Final = "howdah_settings"


@dataclass(frozen=True)
class TransactionSettings:
    """Settings by name, the role, and the schemas of one transaction. All values have been checked."""

    values: tuple[tuple[str, str], ...] = ()
    role: str | None = None
    search_path: tuple[str, ...] = ()
    schema_translate_map: tuple[tuple[str | None, str | None], ...] = ()

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.values, self.role, self.search_path, self.schema_translate_map))

    @cached_property
    def sql(self) -> str:
        """The statements that apply the settings in an open transaction."""
        # SET takes no snapshot, unlike SELECT set_config(...). So LOCK TABLE can still be the first statement of a
        # REPEATABLE READ transaction.
        parts = [f"SET LOCAL {quote_setting(name)} = {quote_literal(value)}" for name, value in self.values]
        if self.search_path:
            parts.append(f"SET LOCAL search_path = {', '.join(map(quote_literal, self.search_path))}")
        if self.role is not None:  # last, because the role may not be allowed to change the other settings
            parts.append(f"SET LOCAL role = {quote_literal(self.role)}")
        return "".join(f"; {part}" for part in parts)

    def has_any(self) -> bool:
        return bool(self.values or self.role is not None or self.search_path or self.schema_translate_map)

    def merge(
        self,
        values: Mapping[str, SettingValue],
        role: str | None,
        search_path: Sequence[str],
        schema_translate_map: Mapping[str | None, str | None],
    ) -> TransactionSettings:
        """A copy with these settings added or replaced. Raises `TypeError` and `ValueError`."""
        if isinstance(search_path, str):
            raise TypeError(f"search_path must be a list of schemas, not the text {search_path!r}")
        checked = {check_setting_name(name): check_value(name, each) for name, each in values.items()}
        for each in search_path:
            check_identifier("search_path", each)
        if role is not None:
            check_role_name(role)
        return TransactionSettings(
            values=tuple(sorted({**dict(self.values), **checked}.items())),
            role=self.role if role is None else role,
            search_path=tuple(search_path) or self.search_path,
            schema_translate_map=tuple(schema_translate_map.items()) or self.schema_translate_map,
        )

    def configs(self) -> Sequence[tuple[str, str]]:
        """The names and values for `set_config`, in the order in which they must be set."""
        found = list(self.values)
        if self.search_path:
            found.append(("search_path", ", ".join(map(quote_identifier, self.search_path))))
        if self.role is not None:
            found.append(("role", self.role))
        return found

    def bind(self, engine: AsyncEngine) -> AsyncEngine:
        """A copy of the engine whose transactions begin with the settings. It has the same pool and the same events.

        Nothing keeps a reference to the copy. Making it is much faster than `execution_options()`.
        """
        sync: Engine = object.__new__(type(engine.sync_engine))  # copy() is slower, and each request may do this
        sync.__dict__.update(engine.sync_engine.__dict__)
        options: dict[str, Any] = {SETTINGS_OPTION: self}
        if self.schema_translate_map:
            options["schema_translate_map"] = dict(self.schema_translate_map)
        sync.update_execution_options(**options)
        return AsyncEngine(sync)


NO_SETTINGS: Final = TransactionSettings()


class SettingsConnection(BoundedConnection):
    """A driver's connection whose transactions begin with settings, in the same round trip."""

    base_settings_sql = ""
    """The settings of every transaction: behind a pooler, the `server_settings` of the connection. Otherwise empty."""
    settings_sql = ""
    """The settings of SQLAlchemy's current transaction. During it, the driver may begin several transactions."""
    pipelined_statements: Any = None
    """The prepared statements of `howdah._connections.pipelined`."""

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:  # noqa: ASYNC109
        settings = self.base_settings_sql + self.settings_sql
        begins = not args and bool(settings) and query.startswith("BEGIN")
        try:
            status: str = await super().execute(
                query.rstrip("; ") + settings if begins else query, *args, timeout=timeout
            )
        except asyncpg.PostgresError as error:
            if begins:  # PostgreSQL rejected a setting; the driver doesn't know that the transaction has begun
                mark_rejected_settings(error, _EXPLANATION)
                await super().execute("ROLLBACK")
                forget_transaction(self)
            raise
        return status


def listen_for_transactions(engine: Engine) -> None:
    """Give the settings of each transaction to the driver's connection, and take them away at its end."""

    def begin(connection: Connection, *_xid: object) -> None:
        """Store the settings of the transaction on the driver's connection, or clear them."""
        settings: TransactionSettings | None = connection.get_execution_options().get(SETTINGS_OPTION)
        driver: Any = connection.connection.driver_connection
        if settings is None:
            _forget(driver)
            return
        if not _is_own(driver):
            raise RuntimeError(
                "with_settings() needs connections that the Database opens: remove async_creator and async_creator_fn"
            )
        if getattr(connection.connection.dbapi_connection, "isolation_level", None) == "autocommit":
            raise RuntimeError(
                "a session with settings can't be in AUTOCOMMIT, because the settings belong to a transaction: "
                "use Database.autocommit()"
            )
        driver.settings_sql = settings.sql

    def end(connection: Connection, *_two_phase: object) -> None:
        if not connection.invalidated and not connection.closed:
            _forget(connection.connection.driver_connection)

    for name in ("begin", "begin_twophase"):
        event.listen(engine, name, begin)
    for name in ("commit", "rollback", "commit_twophase", "rollback_twophase"):
        event.listen(engine, name, end)


def require_own_connections(engine: Engine) -> None:
    """Close a connection that another function has opened: it may have ignored the role."""

    @event.listens_for(engine, "connect")
    def check(connection: Any, _record: Any) -> None:
        if not _is_own(connection.driver_connection):
            connection.driver_connection.terminate()
            raise RuntimeError(
                "role=... needs connections that the Database opens: remove async_creator, or pass all arguments of "
                "async_creator_fn to asyncpg.connect"
            )


def _is_own(driver: Any) -> bool:
    # not isinstance(): asyncpg's metaclass makes every connection an instance of each subclass
    return issubclass(type(driver), SettingsConnection)


def _forget(driver: Any) -> None:
    if _is_own(driver) and driver.settings_sql:
        driver.settings_sql = ""


async def run_in_transaction(
    connection: AsyncConnection,
    *,
    settings: TransactionSettings,
    work: Callable[[AsyncConnection], Awaitable[ResultT]],
) -> ResultT:
    """Call `work` in a transaction with the settings, on a connection that SQLAlchemy has in AUTOCOMMIT.

    The driver begins the transaction, and SQLAlchemy doesn't know of it. So the connection can be a kept one, and
    `PreparedSelect` can bypass SQLAlchemy.
    """
    raw: Any = await connection.get_raw_connection()
    driver = raw.driver_connection
    if not isinstance(driver, asyncpg.Connection):
        raise TypeError(f"with_settings() needs a connection of asyncpg, not a {type(driver).__name__}")
    _forget(driver)  # those of another transaction would be appended, and would replace these
    try:
        await _send(connection, driver, _BEGIN + settings.sql)
        result = await work(connection)
        await _send(connection, driver, "COMMIT")
    except BaseException as error:
        await end_failed_transaction(connection, driver, error)
        raise
    return result


async def _send(connection: AsyncConnection, driver: Any, statement: str) -> None:
    try:
        await driver.execute(statement)
    except _DRIVER_ERRORS as error:
        failed = error
        if statement.startswith(_BEGIN) and isinstance(error, asyncpg.PostgresError):
            mark_rejected_settings(error, _EXPLANATION)
        await connection.run_sync(lambda sync: raise_for_statement(sync, statement.partition(";")[0], failed))


async def end_failed_transaction(connection: AsyncConnection, driver: Any, error: BaseException) -> None:
    """Roll back, or close the connection if that may fail: no setting may stay on the connection."""
    is_ended = False
    try:
        if isinstance(error, Exception) and not driver.is_closed():
            await driver.execute("ROLLBACK")
            is_ended = True
    except _DRIVER_ERRORS:
        pass  # the first error is raised
    finally:
        if not is_ended:
            await asyncio.shield(asyncio.ensure_future(connection.invalidate()))


# --- A database that is bound to one open connection (`Database.bound_to`) -------------------------------------------


def apply_in_session(session: Session, settings: TransactionSettings) -> None:
    """Apply the settings in each transaction of a session that joins the transaction of an open connection.

    The session's transaction is a savepoint. PostgreSQL keeps the settings of a released savepoint, so the earlier
    values are restored at its end.
    """
    restores: list[Callable[[], None]] = []

    def after_begin(_session: Session, transaction: SessionTransaction, connection: Connection) -> None:
        if transaction.parent is None:
            restores.append(apply_in_savepoint(connection, settings))

    def after_end(_session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            while restores:
                restores.pop()()

    event.listen(session, "after_begin", after_begin)
    event.listen(session, "after_transaction_end", after_end)


def apply_in_savepoint(connection: Connection, settings: TransactionSettings) -> Callable[[], None]:
    """Apply the settings on an open connection, and return a function that restores the earlier ones."""
    configs = settings.configs()
    names = [name for name, _ in configs]
    before = _select(connection, ", ".join(f"current_setting(${n + 1}, true)" for n in range(len(names))), names)
    _set_configs(connection, configs)
    earlier_map = connection.get_execution_options().get("schema_translate_map")
    if settings.schema_translate_map:
        connection.execution_options(schema_translate_map=dict(settings.schema_translate_map))

    def restore() -> None:
        if connection.closed or connection.invalidated:
            return
        if settings.schema_translate_map:
            connection.execution_options(schema_translate_map=earlier_map)
        if not connection.in_transaction():  # the session has ended the transaction itself, and with it the settings
            return
        # in the reverse order: first the role, which may not be allowed to change the other settings
        _set_configs(connection, [(name, value or "") for name, value in zip(names, before, strict=True)][::-1])

    return restore


def _set_configs(connection: Connection, configs: Sequence[tuple[str, str]]) -> None:
    calls = ", ".join(f"set_config(${2 * n + 1}, ${2 * n + 2}, true)" for n in range(len(configs)))
    _select(connection, calls, [part for config in configs for part in config])


def _select(connection: Connection, expressions: str, parameters: Sequence[str]) -> Sequence[Any]:
    if not parameters:
        return ()
    # `howdah.testing.assert_statements` doesn't count a statement with this comment.
    return connection.exec_driver_sql(f"{SETTINGS_COMMENT}SELECT {expressions}", tuple(parameters)).one()


SETTINGS_COMMENT: Final = "/* howdah settings */ "


@asynccontextmanager
async def apply_in_block(connection: AsyncConnection, settings: TransactionSettings | None) -> AsyncIterator[None]:
    """Run the block in a savepoint of an open connection. Apply the settings to it, if there are any."""
    async with connection.begin_nested():
        if settings is None:
            yield
            return
        earlier_map = await connection.run_sync(lambda sync: sync.get_execution_options().get("schema_translate_map"))
        restore = await connection.run_sync(apply_in_savepoint, settings)
        try:
            yield
        except BaseException:  # the rollback to the savepoint restores everything else
            if settings.schema_translate_map:
                await connection.execution_options(schema_translate_map=earlier_map)
            raise
        await connection.run_sync(lambda _connection: restore())
