"""The engine, its sessions and their life cycle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import copy
from functools import cached_property, partial
from typing import Any, Final, Literal, Self, TypeVar

import orjson
from sqlalchemy import URL, event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from howdah._connections.discarding import check_server
from howdah._connections.driver import CloseLimit
from howdah._connections.engine_setup import set_up_engine
from howdah._connections.hosts import is_replica
from howdah._connections.kept import KeptConnections
from howdah._connections.names import SettingValue
from howdah._connections.options import COMMIT_EACH, EngineOptions, Pooler, behind_transaction_pooler, driver_arguments
from howdah._connections.pool import BoundedPool, PoolState, PoolStatus, count_open_connections
from howdah._connections.sessions import new_session_factory, set_read_only
from howdah._connections.settings import NO_SETTINGS, TransactionSettings, apply_in_block, apply_in_session
from howdah._connections.slots import Priority, Slots
from howdah._connections.urls import asyncpg_url
from howdah._types.json_encoding import dump_json
from howdah._writes.copying import COPY_OPTION
from howdah.errors import ConnectionFailed

ResultT = TypeVar("ResultT")
IsolationLevel = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]

# At most half of `pool_size` is kept open between reads.
_KEPT_CONNECTIONS_DIVISOR: Final = 2


class Database:
    """A database on the primary server: the engine (asyncpg), the pool and the sessions.

    Use it as an async context manager. The end of the block closes the pool. No connection is opened before the first
    statement.

    All sessions are in UTC. The default isolation level is READ COMMITTED. Timeouts are in seconds. None leaves the
    setting of the server as it is.

    - `pool_timeout` limits the wait for a free connection (`PoolExhausted`).
    - `connect_timeout` limits the opening of a connection and the ping of an idle one (`ConnectionFailed`). It also
      limits the wait for a rollback: after that time the connection is closed.
    - `lock_timeout` limits the wait for a row lock (`LockTimeout`).
    - `statement_timeout` limits the run time of a statement (`StatementTimeout`). If the server doesn't answer,
      `ConnectionLost` is raised 5 s later.
    - `idle_in_transaction_timeout` limits the time between two statements of a transaction. Then the server closes the
      connection.

    A URL without a driver (`postgresql://`) means asyncpg. These parameters of libpq are supported: `host`, `port`,
    `application_name`, `connect_timeout`, `target_session_attrs`, and those of TLS (`sslmode`, `sslrootcert`, …). They
    take precedence over the keywords here. Other parameters raise `InvalidUrl`. Further keywords are passed to
    `sqlalchemy.ext.asyncio.create_async_engine`.

    If PostgreSQL has aborted a transaction because of an error, the transaction can't be committed, even if the error
    was caught. The commit raises the error again, or SQLAlchemy's `PendingRollbackError` if a flush raised it.
    (PostgreSQL itself would answer such a COMMIT with a ROLLBACK and no error.)

    JSON is written and read by orjson. In a value that is written as JSON, NaN, infinities and integers beyond 64 bits
    raise `InvalidValue`. In stored JSON, integers beyond 64 bits are read as floats.

    A fraction for a column of an integer type raises `InvalidValue`.

    A comparison or calculation uses the whole value, whatever the length or precision of the column: `9.991` isn't
    equal to a `NUMERIC(10, 2)` of 9.99. SQLAlchemy alone would round it first.

    The pool opens at most `pool_size + max_overflow` connections. Waiting tasks are served in order of arrival. Tasks
    that hold a connection already, and batches, come before the others. A quarter of `pool_size` is reserved (at least
    three connections, but never all): sessions never use these connections. They serve reads and views, batches,
    `autocommit`, and sessions that a task opens while it holds a connection. So tasks with open sessions can't use up
    the connections that they wait for. A pool of one connection has no reserve.

    With `role` the connections take this role when they are opened, so that the login's own rights are never used. This
    needs no round trip. RESET ROLE returns to this role. The login must be a member of it. `with_settings(role=...)`
    replaces it for a transaction.

    `pooler="transaction"` is for a pooler that can give each transaction another server connection, such as PgBouncer
    with `pool_mode = transaction`. The settings above are then sent with each BEGIN. Statements are prepared for each
    execution. A read or an `autocommit` statement is a transaction of three round trips instead of one.

    With `read_only=True` all transactions are read-only, as for a replica, and `ping` accepts a server that can't
    write. Several hosts in the URL mean `target_session_attrs=primary`, or `prefer-standby` with `read_only=True`,
    unless the URL has another value. A write on a server in recovery raises `ReadOnly`. Then all connections are
    replaced before their next use, so that a write after a failover reaches the new primary.

    With `copy=False` bulk writes use INSERT instead of COPY, for a pooler or an engine that doesn't support COPY.

    Error messages don't contain statement parameters, which may be personal data, unless `hide_parameters=False`.
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
        role: str | None = None,
        hide_parameters: bool = True,
        copy: bool = True,
        pooler: Pooler | None = None,
        read_only: bool = False,
        connect_args: Mapping[str, Any] | None = None,
        **engine_options: Any,
    ) -> None:
        if pool_size < 1 or max_overflow < 0:
            raise ValueError(
                f"pool_size must be at least 1, not {pool_size}, and max_overflow at least 0, not {max_overflow}"
            )
        for name, seconds in (("pool_timeout", pool_timeout), ("connect_timeout", connect_timeout)):
            if seconds <= 0:
                raise ValueError(f"{name} must be more than 0 seconds, not {seconds}")
        if pooler not in (None, "transaction"):
            raise ValueError(f"pooler must be 'transaction', or None for a direct connection, not {pooler!r}")
        parsed, from_url = asyncpg_url(url)
        options = {"timeout": connect_timeout, **from_url, **(connect_args or {})}
        self._is_read_only = is_replica(options, read_only=read_only)
        if isinstance(options.get("host"), list):
            options.setdefault("target_session_attrs", "prefer-standby" if read_only else "primary")
        close_limit = CloseLimit()
        arguments = driver_arguments(
            options,
            close_limit,
            application_name=application_name,
            role=role,
            read_only=read_only,
            statement_timeout=statement_timeout,
            lock_timeout=lock_timeout,
            idle_in_transaction_timeout=idle_in_transaction_timeout,
        )
        if pooler is not None:
            arguments = behind_transaction_pooler(arguments)
        self._ping_timeout = pool_timeout + connect_timeout
        self._closed = False
        self._root = self  # `with_settings` and `bound_to` make copies
        self._settings: TransactionSettings | None = None
        self.engine = create_async_engine(
            parsed,
            poolclass=BoundedPool,
            pool_size=pool_size,
            max_overflow=max_overflow,
            pool_timeout=pool_timeout,
            pool_pre_ping=pool_pre_ping,
            pool_recycle=pool_recycle,
            isolation_level="READ COMMITTED",
            hide_parameters=hide_parameters,
            execution_options={COPY_OPTION: copy, **engine_options.pop("execution_options", {})},
            json_serializer=dump_json,
            json_deserializer=orjson.loads,
            connect_args=arguments,
            **engine_options,
        )
        set_up_engine(
            self.engine.sync_engine,
            is_replica=self._is_read_only,
            has_role=role is not None,
            is_transaction_pooled=pooler is not None,
            ping_seconds=options["timeout"],
        )
        event.listen(self.engine.sync_engine, "do_connect", self._check_is_open)
        self._bind: AsyncConnection | None = None  # of `bound_to`
        self._engines = EngineOptions(self.engine, is_transaction_pooled=pooler is not None)
        self._session_factory = new_session_factory(self.engine)
        single = {"isolation_level": "AUTOCOMMIT"} if pooler is None else {COMMIT_EACH: True}
        self._kept = KeptConnections(
            self.engine, single, keep=pool_size // _KEPT_CONNECTIONS_DIVISOR, recycle=pool_recycle
        )
        assert isinstance(self.engine.pool, BoundedPool)
        self.engine.pool.state = PoolState(
            slots=Slots(pool_size=pool_size, max_overflow=max_overflow),
            kept=self._kept,
            is_transaction_pooled=pooler is not None,
            pool=self.engine.pool,
            max_overflow=max_overflow,
            close_limit=close_limit,
            role=role,
        )
        count_open_connections(self.engine.sync_engine, self.engine.pool.state)

    async def __aenter__(self) -> Self:
        self._check_is_not_scoped()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the pool within 2 s. Connections in use are closed when they are returned. None can be opened."""
        self._check_is_not_scoped()
        self._closed = True
        await self._kept.close()
        await self.engine.dispose()

    @cached_property
    def engine(self) -> AsyncEngine:
        """The engine. Its transactions begin with the settings of `with_settings`."""
        return self._engine_with({})

    @property
    def session_factory(self) -> async_sessionmaker[AsyncSession]:
        """The factory of sessions, with `expire_on_commit=False`. A closed session can't be used again."""
        self._check_is_open()
        if self._settings is None:
            return self._session_factory
        if self._bind is not None:
            raise RuntimeError("bound_to() and with_settings() together have no factory: use session()")
        return new_session_factory(self.engine)

    def session(self, *, isolation_level: IsolationLevel | None = None, read_only: bool = False) -> AsyncSession:
        """A new session. `async with` closes it, which rolls back changes that weren't committed.

        With `read_only` PostgreSQL rejects writes (`ReadOnly`). A session is for one task at a time.
        """
        self._check_is_open()
        factory = self._session_factory
        options: dict[str, Any] = {}
        if isolation_level is not None:
            options["isolation_level"] = isolation_level
        if read_only:
            options["postgresql_readonly"] = True
        if self._bind is None:
            has_options = bool(options) or self._settings is not None
            return factory(bind=self._engine_with(options)) if has_options else factory()
        session = factory()
        if self._settings is not None:
            apply_in_session(session.sync_session, self._settings)
        if read_only:
            event.listen(session.sync_session, "after_begin", set_read_only)
        return session

    def _engine_with(self, options: Mapping[str, Any]) -> AsyncEngine:
        """The engine with these options, and with the settings of this database."""
        engine = self._engines.with_options(options)
        return engine if self._settings is None else self._settings.bind(engine)

    @asynccontextmanager
    async def begin(
        self, *, isolation_level: IsolationLevel | None = None, read_only: bool = False
    ) -> AsyncIterator[AsyncSession]:
        """A session in a transaction. `async with` commits at its end, or rolls back if its block raises."""
        async with self.session(isolation_level=isolation_level, read_only=read_only) as session, session.begin():
            yield session
            if session.in_transaction():  # if a flush has failed, `session.begin()` ends without an error
                await session.commit()

    async def read(self, work: Callable[[AsyncConnection], Awaitable[ResultT]]) -> ResultT:
        """Call `work` with an autocommit connection, and return the result of `work`. `work` must only read.

        Up to half of `pool_size` is kept open between reads and released when the pool is empty, so that a read is
        one round trip. Session settings (`SET`) stay on a kept connection. If a kept connection is broken, it is
        replaced and `work` is called a second time.

        If the application listens to one of the events that are listed in `shares_reads`, no connection is kept. Each
        read then checks out a connection in the context of its caller. If the application listens to the engine's
        `begin`, each read is a transaction.

        With the settings of `with_settings`, each read is a transaction of three round trips. `get` and `get_many` of a
        view usually need one: see `howdah._connections.pipelined`.
        """
        self._check_is_open()
        if self._bind is None:
            return await self._kept.read(work, lambda: self.engine, self._settings)
        if self._settings is None:
            return await work(self._bind)
        async with apply_in_block(self._bind, self._settings):
            return await work(self._bind)

    def shares_reads(self) -> bool:
        """Whether one statement may read for several callers.

        It is False if the application listens to the pool's `checkout`, `checkin` or `reset`, or to the engine's
        `begin`, `engine_connect`, `before_execute` or `before_cursor_execute`: such a listener may set something on the
        connection for one caller only, for example a tenant. Listeners of known tracing packages don't count.

        Callers with different settings (`with_settings`) never share a statement.
        """
        return self._kept.is_shared()

    @asynccontextmanager
    async def autocommit(self) -> AsyncIterator[AsyncConnection]:
        """A connection on which each statement is a transaction: one round trip instead of three with BEGIN and COMMIT.

        A write is committed when its statement returns.

        The connection may be a kept connection. Session settings (`SET`) stay on it. It isn't pinged if it was used in
        the last second, so `ConnectionLost` is a little more likely. A write isn't retried.

        With a database from `bound_to`, this is its open connection, in a savepoint. With the settings of
        `with_settings`, each statement is three round trips.
        """
        self._check_is_open()
        if self._bind is not None:
            async with apply_in_block(self._bind, self._settings):
                yield self._bind
        elif self._settings is not None:
            async with self._kept.connect_once(self._engine_with({COMMIT_EACH: True})) as connection:
                yield connection
        else:
            async with self._kept.acquire() as connection:
                yield connection

    async def ping(self) -> None:
        """Run one statement on a pooled connection. Raises `Unavailable` if that fails or takes too long.

        Raises `ReadOnly` if a new connection can't write, unless the database is a replica: `read_only=True`, or
        `target_session_attrs` asks for a standby. The limit is the sum of `pool_timeout` and `connect_timeout`.
        """
        self._check_is_open()
        try:
            async with asyncio.timeout(self._ping_timeout):
                await check_server(
                    partial(self._kept.connect_once, self.engine, Priority.READ), must_write=not self._is_read_only
                )
        except TimeoutError as error:
            raise ConnectionFailed(None, None, error) from error

    def pool_status(self) -> PoolStatus:
        """The current state of the pool in this process."""
        pool = self.engine.pool
        assert isinstance(pool, BoundedPool)
        return pool.state.status()

    def bound_to(self, connection: AsyncConnection) -> Database:
        """This database on one open connection, for tests.

        Sessions join the connection's transaction. A commit releases a savepoint, so the caller can roll everything
        back. Sessions share the connection, so they can't run statements at the same time. `isolation_level` has no
        effect: the transaction keeps its isolation level.
        """
        bound = copy(self)
        bound._bind = connection
        bound._session_factory = new_session_factory(connection, join_transaction_mode="create_savepoint")
        return bound

    def with_settings(
        self,
        settings: Mapping[str, SettingValue] | None = None,
        *,
        role: str | None = None,
        search_path: Sequence[str] = (),
        schema_translate_map: Mapping[str | None, str | None] | None = None,
    ) -> Database:
        """This database with settings that apply to each of its transactions, for example a tenant.

            scoped = database.with_settings({"app.tenant_id": tenant_id})

        It has the same pool and is cheap, so that each request can have its own. Everything that it opens has the
        settings, and so have the readers of a view that are `scoped` to it. They are sent with BEGIN, in the same
        message (`SET LOCAL`), and PostgreSQL undoes them at the end of the transaction. The values may be any text.

        `role` is the role of the transaction (`SET LOCAL ROLE`), `search_path` has the names of schemas (a comma is a
        part of a name), and `schema_translate_map` is SQLAlchemy's execution option. Settings of an earlier
        `with_settings` stay, unless they are given again. Raises `TypeError` and `ValueError` for a value that is None
        or empty, and for a setting that this library relies on (`timezone`, …).
        """
        present = NO_SETTINGS if self._settings is None else self._settings
        merged = present.merge(settings or {}, role, search_path, schema_translate_map or {})
        if not merged.has_any():
            raise ValueError("with_settings() needs a setting, a role or schemas: use the Database itself without them")
        scoped: Database = object.__new__(type(self))  # copy() is slower, and each request may do this
        scoped.__dict__.update(self.__dict__)
        scoped._settings = merged
        # The property `engine` creates the copy's engine when it is needed. A read by key doesn't need it.
        scoped.__dict__.pop("engine", None)
        return scoped

    def scope_key(self) -> Hashable:
        """A value that is equal for equal settings of the same pool."""
        return self._root, self._settings

    def _check_is_open(self, *_event: object) -> None:
        if self._closed or self._root._closed:
            raise RuntimeError("this Database is closed: create a new one")

    def _check_is_not_scoped(self) -> None:
        if self._settings is not None:
            raise RuntimeError("a Database from with_settings() can't be opened or closed: open or close the original")
