"""The engine, its sessions and their life cycle."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import orjson
from sqlalchemy import URL, Engine, event, make_url, text
from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry

from howdah.errors import CannotConnect, PoolExhausted, StaleRow, translate

IsolationLevel = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]

# Past the server's own statement_timeout, so that the client gives up only on a server that no longer answers.
_GRACE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """The pool at one moment. `size` and `max_overflow` are settings; `in_use + idle` connections are open."""

    size: int
    max_overflow: int
    in_use: int
    idle: int


class Database:
    """The primary: an engine on asyncpg, its pool, and the sessions on it.

    Use it as an async context manager: leaving closes the pool. Nothing connects before the first statement.

    Every time is in seconds; None leaves that bound to the server's own setting. All sessions are in UTC and at READ
    COMMITTED unless asked otherwise. `pool_timeout` bounds the wait for a free connection (then `PoolExhausted`),
    `connect_timeout` the making of one (then `CannotConnect`), `lock_timeout` the wait for a row lock (then
    `LockTimeout`), `statement_timeout` a statement (then `StatementTimeout`; a server that doesn't answer at all is
    given up 5 s later with `ConnectionLost`), `idle_in_transaction_timeout` a transaction that does nothing (the
    server closes the connection, so a forgotten one can't hold locks for ever).

    A URL without a driver (`postgresql://`) means asyncpg; libpq's `sslmode`, `application_name` and `connect_timeout`
    in it are understood. Further keywords go to `sqlalchemy.ext.asyncio.create_async_engine`. Statement parameters
    stay out of error messages unless `hide_parameters=False`: they hold other people's data.
    """

    def __init__(
        self,
        url: str | URL,
        *,
        pool_size: int = 20,
        max_overflow: int = 10,
        pool_timeout: float = 5.0,
        pool_pre_ping: bool = True,
        pool_recycle: int = 3600,
        connect_timeout: float = 5.0,
        statement_timeout: float | None = 30.0,
        lock_timeout: float | None = 5.0,
        idle_in_transaction_timeout: float | None = 60.0,
        application_name: str = "howdah",
        hide_parameters: bool = True,
        connect_args: Mapping[str, Any] | None = None,
        **engine_options: Any,
    ) -> None:
        parsed, from_url = _asyncpg_url(url)
        given = dict(connect_args or {})
        settings = {
            "timezone": "UTC",
            "application_name": from_url.pop("application_name", application_name),
            **_milliseconds("statement_timeout", statement_timeout),
            **_milliseconds("lock_timeout", lock_timeout),
            **_milliseconds("idle_in_transaction_session_timeout", idle_in_transaction_timeout),
            **given.pop("server_settings", {}),
        }
        self._max_overflow = max_overflow
        self._closed = False
        self.engine: AsyncEngine = create_async_engine(
            parsed,
            poolclass=_Pool,
            pool_size=pool_size,
            max_overflow=max_overflow,
            pool_timeout=pool_timeout,
            pool_pre_ping=pool_pre_ping,
            pool_recycle=pool_recycle,
            isolation_level="READ COMMITTED",
            hide_parameters=hide_parameters,
            json_serializer=_dump_json,
            json_deserializer=orjson.loads,
            connect_args={
                "timeout": connect_timeout,
                "command_timeout": None if statement_timeout is None else statement_timeout + _GRACE_SECONDS,
                **from_url,
                **given,
                "server_settings": settings,
            },
            **engine_options,
        )
        _translate_errors(self.engine.sync_engine)
        self._bind: AsyncEngine | AsyncConnection = self.engine
        self._session_factory = _session_factory(self.engine)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the pool. Connections still in use are closed when they are given back. No session can be had after."""
        self._closed = True
        await self.engine.dispose()

    @property
    def session_factory(self) -> async_sessionmaker[AsyncSession]:
        """Makes sessions; `expire_on_commit=False`, and a closed session is refused rather than opened again."""
        if self._closed:
            raise RuntimeError("this Database is closed: make a new one")
        return self._session_factory

    def session(self, *, isolation_level: IsolationLevel | None = None, read_only: bool = False) -> AsyncSession:
        """A new session; `async with` closes it, rolling back what wasn't committed.

        With `read_only` PostgreSQL refuses writes (`ReadOnly`).
        """
        factory = self.session_factory
        options: dict[str, Any] = {}
        if isolation_level is not None:
            options["isolation_level"] = isolation_level
        if read_only:
            options["postgresql_readonly"] = True
        if options and isinstance(self._bind, AsyncEngine):
            return factory(bind=self._bind.execution_options(**options))
        return factory()

    @asynccontextmanager
    async def begin(
        self, *, isolation_level: IsolationLevel | None = None, read_only: bool = False
    ) -> AsyncIterator[AsyncSession]:
        """A session in a transaction: committed on leaving, rolled back if an exception leaves."""
        async with self.session(isolation_level=isolation_level, read_only=read_only) as session, session.begin():
            yield session

    async def ping(self) -> None:
        """One round trip on a pooled connection. Raises `Unavailable` when that can't be had, within `pool_timeout`
        or `connect_timeout`."""
        async with self.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))

    def pool_status(self) -> PoolStatus:
        """How the pool stands now, in this process."""
        pool = self.engine.pool
        assert isinstance(pool, _Pool)
        return PoolStatus(
            size=pool.size(), max_overflow=self._max_overflow, in_use=pool.checkedout(), idle=pool.checkedin()
        )

    def bound_to(self, connection: AsyncConnection) -> Database:
        """This database seen through one open connection, for tests: sessions join the connection's transaction, a
        commit releases a savepoint, and who began the transaction may roll all of it back. Sessions share the
        connection, so they can't run statements at the same time, nor choose an isolation level or read-only."""
        bound = copy(self)
        bound._bind = connection
        bound._session_factory = _session_factory(connection, join_transaction_mode="create_savepoint")
        return bound


class _Session(Session):
    """Translates what the flush itself raises; the engine's listener sees only what the database raises."""

    def flush(self, objects: Any = None) -> None:
        with _stale_rows():
            super().flush(objects)


class _Pool(AsyncAdaptedQueuePool):
    def _do_get(self) -> ConnectionPoolEntry:
        try:
            return super()._do_get()
        except PoolTimeoutError as error:
            raise PoolExhausted(
                f"all {self.checkedout()} connections were in use for {self.timeout()} s: "
                "hold sessions for shorter, or raise pool_size"
            ) from error


@contextmanager
def _stale_rows() -> Iterator[None]:
    try:
        yield
    except StaleRow:
        raise
    except StaleDataError as error:
        raise StaleRow(str(error)) from error


def _session_factory(bind: AsyncEngine | AsyncConnection, **options: Any) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(
        bind, expire_on_commit=False, close_resets_only=False, sync_session_class=_Session, **options
    )


def _translate_errors(engine: Engine) -> None:
    event.listen(engine, "handle_error", translate, retval=True)

    @event.listens_for(engine, "do_connect")
    def connect(
        dialect: Dialect, _entry: ConnectionPoolEntry, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> DBAPIConnection:
        try:
            return dialect.connect(*args, **kwargs)
        except OSError as error:  # the driver lets a refused or timed out connect through as it is
            raise CannotConnect(None, None, error) from error


def _dump_json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _milliseconds(setting: str, seconds: float | None) -> dict[str, str]:
    return {} if seconds is None else {setting: str(round(seconds * 1000))}


def _asyncpg_url(url: str | URL) -> tuple[URL, dict[str, Any]]:
    """The URL as SQLAlchemy's asyncpg dialect takes it, and the connect arguments that libpq's spelling of it means."""
    parsed = make_url(url)
    if parsed.drivername in {"postgresql", "postgres"}:
        parsed = parsed.set(drivername="postgresql+asyncpg")
    if parsed.drivername != "postgresql+asyncpg":
        raise ValueError(f"{parsed.drivername!r} isn't supported: use postgresql:// or postgresql+asyncpg://")
    arguments: dict[str, Any] = {}
    query = dict(parsed.query)
    if "sslmode" in query:
        arguments["ssl"] = query.pop("sslmode")
    if "connect_timeout" in query:
        arguments["timeout"] = float(str(query.pop("connect_timeout")))
    if "application_name" in query:
        arguments["application_name"] = str(query.pop("application_name"))
    return parsed.set(query=query), arguments
