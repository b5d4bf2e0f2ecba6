"""COPY: rows into a table at the speed of PostgreSQL's loader, through the session's own connection and transaction.

It accepts most rows that an INSERT accepts. Triggers run; rules (`CREATE RULE`) don't. If a COPY isn't possible,
`copy_rows` writes nothing and returns None, and the caller inserts the rows. This is so with

- a default that is an SQL expression, or a type that writes values by one,
- joined-table inheritance,
- a table that PostgreSQL doesn't allow COPY for (row-level security),
- a column whose type in the database isn't the one in the model,
- a pooler or an engine that doesn't support COPY.

The column types are queried before each COPY, in the same transaction. That query takes a lock on the table, so the
types can't change before the transaction ends.

SQLAlchemy handles a COPY as a statement: its events and its log show it, without parameters.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain, repeat
from operator import itemgetter
from time import monotonic
from typing import Any, Final
from weakref import WeakKeyDictionary

import asyncpg
from sqlalchemy import Column, Connection, Dialect, FromClause, Table, event, inspect
from sqlalchemy.ext.asyncio import AsyncSession

from howdah._arrays import writes_by_expression
from howdah._sqlalchemy import copy_in, raise_adapted
from howdah._types.integers import has_only_integers, is_exact_integer_type
from howdah._writes.columns import CopyUnsupported, columns_of, generate_keys, inserted_columns, keys_in, with_made_keys
from howdah._writes.copy_encoding import is_encoded_as_inserted
from howdah._writes.rows import Inserted, normalize_rows

# A transaction that creates rows of seven columns takes 0.9 of the time with COPY for 1 to 10 of them, 0.8 for 20, 0.5
# for 200 (`make bench ONLY=few-rows`). Below this the gain is under a millisecond.
MIN_COPY_ROWS: Final = 20

_COPY_BATCH_ROWS: Final = 1000

COPY_OPTION: Final = "howdah_copy"

_ROWS_OPTION: Final = "howdah_copied_rows"

# If COPY isn't possible, each attempt writes an error to the server's log. But without attempts, all rows are inserted,
# which takes longer.
_RETRY_SECONDS: Final = 60.0

_log: Final = logging.getLogger(__name__)

_NO_COPY: Final = (
    asyncpg.FeatureNotSupportedError,
    asyncpg.PostgresSyntaxError,
    asyncpg.ProtocolViolationError,
    asyncpg.WrongObjectTypeError,
)


async def copy_rows(session: AsyncSession, model: type[Any], rows: Sequence[object], *, keys: bool) -> Inserted | None:
    """Write all the rows, of any kind, or none of them. The result has keys only if `keys` is true.

    Returns None if a row was rejected or if COPY isn't possible. The caller's INSERT then finds the row and raises its
    error. Any other error is raised as for every statement.
    """
    await session.flush()
    try:
        connection = await session.connection(bind_arguments={"mapper": inspect(model)})
        await connection.run_sync(_check_copy_allowed, inspect(model).local_table)
        try:
            return await _copy_groups(session, model, [rows], keys)
        except _Mixed:
            # Rows without a parent name fewer attributes. They go first, because other rows may refer to them.
            groups = sorted(_grouped(normalize_rows(model, rows, first=0)), key=lambda group: len(group[1][0]))
            new = await _copy_groups(session, model, [rows for _, rows in groups], keys)
            places = chain.from_iterable(places for places, _ in groups)
            by_place = sorted(zip(places, new.keys, strict=False), key=itemgetter(0))
            return Inserted(new.count, [key for _, key in by_place])
    except (_Rejected, _Mixed, CopyUnsupported):
        return None


class _Rejected(Exception):
    """These rows can't be copied."""


class _TableRejected(_Rejected):
    """No rows can be copied into the table. The argument is the reason.

    Raise it `from None`: an engine's listener that finds the driver's error as the cause may take the connection for
    lost.
    """


class _Mixed(Exception):
    """The rows don't all name the same attributes."""


class _DisabledTables:
    """The tables of one engine for which COPY was rejected in the last minute.

    A table is known by its name only. With another `search_path`, for another role or after a DROP, COPY may be
    possible for a table of the same name. Its rows are inserted for that minute, too.
    """

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def __contains__(self, name: str) -> bool:
        return self._until.get(name, 0.0) > monotonic()

    def __len__(self) -> int:
        return len(self._until)

    def add(self, name: str) -> None:
        now = monotonic()
        self._until = {name: until for name, until in self._until.items() if until > now}
        self._until[name] = now + _RETRY_SECONDS


_disabled: WeakKeyDictionary[Dialect, _DisabledTables] = WeakKeyDictionary()


def _disabled_tables(dialect: Dialect) -> _DisabledTables:
    """The disabled tables of the engine that has this dialect.

    The first call for a dialect also registers the listener that runs COPY.
    """
    tables = _disabled.get(dialect)
    if tables is None:
        event.listen(dialect, "do_execute", _execute_copy)
        tables = _disabled.setdefault(dialect, _DisabledTables())
    return tables


async def _copy_groups(
    session: AsyncSession, model: type[Any], groups: Sequence[Sequence[object]], keys: bool
) -> Inserted:
    """COPY each group, whose rows name the same attributes, and return their keys in this order."""
    count = 0
    made: list[Any] = []
    async with session.begin_nested():
        for rows in groups:
            dialect = session.get_bind(inspect(model)).dialect
            parts = _read_first_part(model, rows, dialect, made if keys else None)
            # after reading the first part: this call opens the savepoint
            connection = await session.connection(bind_arguments={"mapper": inspect(model)})
            await connection.run_sync(_copy, inspect(model).local_table, parts)
            count += parts.written
    return Inserted(count, made)


def _check_copy_allowed(connection: Connection, table: FromClause) -> None:
    options = connection.get_execution_options()
    if (
        not options.get(COPY_OPTION, True)
        or options.get("schema_translate_map")
        or not isinstance(table, Table)
        or table.fullname in _disabled_tables(connection.dialect)
    ):
        raise _Rejected


def _copy(connection: Connection, table: Table, parts: _Parts) -> None:
    preparer = connection.dialect.identifier_preparer
    quoted, names = preparer.format_table(table), ", ".join(map(preparer.format_column, parts.columns))
    statement = f"COPY {quoted} ({names}) FROM STDIN (FORMAT binary)"
    parts.description = f"SELECT {names} FROM {quoted}"  # noqa: S608  # quoted
    try:
        connection.exec_driver_sql(statement, execution_options={_ROWS_OPTION: parts})
    except _TableRejected as error:
        _disabled_tables(connection.dialect).add(table.fullname)
        reason = error.args[0]
        _log.warning(
            "COPY into %s isn't possible, so rows are inserted for %d s: %s", table.fullname, _RETRY_SECONDS, reason
        )
        raise


def _execute_copy(_cursor: Any, statement: str, _parameters: Any, context: Any) -> bool:
    """Run a statement that has rows to copy; a listener for the dialect's `do_execute`.

    So SQLAlchemy handles it as every statement: it calls the engine's listeners, writes the log and translates errors.
    """
    parts: _Parts | None = context.execution_options.get(_ROWS_OPTION)
    if parts is None:
        return False
    adapted: Any = context.root_connection.connection.dbapi_connection
    try:
        adapted.run_async(lambda driver: _send(driver, statement, parts, context.dialect))
    except _NO_COPY as error:
        raise _TableRejected(error.args[0]) from None
    except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.PLPGSQLError):
        raise _Rejected from None
    except asyncpg.InternalClientError as error:
        if _is_alive(adapted):  # a type that the driver can't encode in binary format
            raise _Rejected from None
        raise ConnectionError(error.args[0]) from None  # the driver's own error isn't known as a lost connection
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        if isinstance(error, asyncpg.DatatypeMismatchError):  # the driver cached an old composite type
            adapted.run_async(lambda driver: driver.reload_schema_state())
        raise_adapted(adapted, error)
    except (_Rejected, _Mixed, CopyUnsupported, OSError):
        raise
    except Exception:  # a row that can't be read, or a value that the driver can't write
        raise _Rejected from None
    return True


async def _send(driver: Any, statement: str, parts: _Parts, dialect: Dialect) -> None:
    # An unnamed statement: the next one replaces it, and it works behind a pooler.
    described = await driver.prepare(parts.description, name="")
    for column, found in zip(parts.columns, described.get_attributes(), strict=True):
        if not is_encoded_as_inserted(column.type, found.type.name, dialect):
            raise _TableRejected(f"{column.name} is {found.type.name} in the database, and {column.type} in the model")
    parts.written = await copy_in(driver, statement, described, parts.records())


def _is_alive(adapted: Any) -> bool:
    """Whether the connection answers. When the backend is being terminated, the driver refuses to send anything."""
    try:
        adapted.run_async(lambda driver: driver.execute("SELECT 1"))
    except asyncpg.PostgresError:
        return True  # the transaction is aborted
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError):
        return False
    return True


def _read_first_part(model: type[Any], rows: Sequence[object], dialect: Dialect, keys: list[Any] | None) -> _Parts:
    try:
        return _Parts(model, rows, dialect, keys)
    except (_Mixed, CopyUnsupported):
        raise
    except Exception as error:
        raise _Rejected from error


class _Parts:
    """Rows that name the same attributes, converted in parts.

    PostgreSQL processes one part while the next one is converted and sent. Raises `_Mixed` at a row that names other
    attributes.
    """

    def __init__(self, model: type[Any], rows: Sequence[object], dialect: Dialect, keys: list[Any] | None):
        self._model, self._rows, self._dialect, self._keys = model, rows, dialect, keys
        first = self._columns(0)
        self.columns = [*first]
        self._names = [column.name for column in first]
        self.description = ""
        self.written = 0
        self._first = zip(*first.values(), strict=True)

    def records(self) -> Iterator[tuple[Any, ...]]:
        """The rows as the driver expects them, with values in the order of `columns`."""
        return chain(
            self._first,
            chain.from_iterable(map(self._part, range(_COPY_BATCH_ROWS, len(self._rows), _COPY_BATCH_ROWS))),
        )

    def _part(self, start: int) -> Iterator[tuple[Any, ...]]:
        columns = self._columns(start)
        if [column.name for column in columns] != self._names:
            raise _Mixed
        return zip(*columns.values(), strict=True)

    def _columns(self, start: int) -> dict[Column[Any], Sequence[Any]]:
        rows = normalize_rows(self._model, self._rows[start : start + _COPY_BATCH_ROWS], first=start)
        named = columns_of(rows)
        if named is None:
            raise _Mixed
        new = generate_keys(self._model, named, len(rows))
        given = with_made_keys(named, new)
        if self._keys is not None:
            if not new.keys() <= given.keys():
                raise CopyUnsupported  # the caller needs keys that the database makes
            self._keys += keys_in(self._model, new)
        columns = inserted_columns(self._model, given, len(rows))
        return {column: _bound(column, values, len(rows), self._dialect) for column, values in columns.items()}


def _grouped(rows: Sequence[dict[str, Any]]) -> Collection[tuple[Sequence[int], Sequence[dict[str, Any]]]]:
    """The rows in groups that name the same attributes, with the positions of the rows."""
    groups: dict[frozenset[str], tuple[list[int], list[dict[str, Any]]]] = {}
    for place, row in enumerate(rows):
        places, group = groups.setdefault(frozenset(row), ([], []))
        places.append(place)
        group.append(row)
    return groups.values()


def _bound(column: Column[Any], values: Iterable[Any], count: int, dialect: Dialect) -> Sequence[Any]:
    """The values as the driver expects them."""
    if writes_by_expression(column.type):
        raise CopyUnsupported
    kind = column.type.dialect_impl(dialect)
    bind = kind.bind_processor(dialect)
    if isinstance(values, repeat):
        value = next(values)
        return [value if bind is None else bind(value)] * count
    if is_exact_integer_type(kind) and isinstance(values, list) and has_only_integers(values):
        bind = None
    bound = [*values] if bind is None else [*map(bind, values)]
    if len(bound) < count:  # a type raised StopIteration, which ends `map` early
        raise _Rejected
    return bound
