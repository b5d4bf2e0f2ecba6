"""COPY of many rows, on the connection and in the transaction of the session.

COPY accepts most rows that an INSERT accepts. Triggers run, but rules (`CREATE RULE`) don't. If COPY isn't possible,
`copy_rows` writes nothing and its result says so. The caller then inserts the rows. COPY isn't possible for

- a default that is an SQL expression,
- a type that writes values by an SQL expression,
- a model with joined-table inheritance,
- a table for which PostgreSQL doesn't allow COPY (row-level security),
- a column whose type in the database isn't the one in the model,
- a pooler or an engine that doesn't support COPY.

Before each COPY the column types are queried in the same transaction. That query locks the table, so the types can't
change before the transaction ends.

SQLAlchemy handles a COPY as a statement. Its events and its log show it, without parameters.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
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
from howdah._writes.columns import (
    ColumnarUnsupported,
    UnevenRows,
    add_key_columns,
    build_insert_columns,
    extract_keys,
    generate_keys,
    transpose_rows,
)
from howdah._writes.copy_encoding import is_encoded_as_inserted
from howdah._writes.rows import InsertedRows, normalize_rows

# With COPY, a transaction that creates rows of seven columns takes 0.9 of the time of INSERT for 1 to 10 rows, 0.8 for
# 20 rows, and 0.5 for 200 rows (`make bench ONLY=few-rows`). Below 20 rows COPY saves less than a millisecond.
MIN_COPY_ROWS: Final = 20

# The driver sends a batch while Python converts the next one, and while PostgreSQL processes earlier ones.
_COPY_BATCH_ROWS: Final = 1000

# An execution option of the engine; False means that rows are always inserted.
COPY_OPTION: Final = "howdah_copy"

# The execution option of the COPY statement that has its rows.
_ROWS_OPTION: Final = "howdah_copied_rows"

# The time for which INSERT is used after PostgreSQL has rejected COPY for a table. Each attempt of COPY writes an error
# to the server's log, so the time is not short. It is not long either, because COPY may be possible again, and INSERT
# is slower.
_RETRY_SECONDS: Final = 60.0

_log: Final = logging.getLogger(__name__)

# The errors of PostgreSQL, or of a pooler in front of it, that mean that COPY isn't possible.
_NO_COPY: Final = (
    asyncpg.FeatureNotSupportedError,
    asyncpg.PostgresSyntaxError,
    asyncpg.ProtocolViolationError,
    asyncpg.WrongObjectTypeError,
)


@dataclass(frozen=True, slots=True)
class CopyResult:
    """Whether COPY has written the rows. If it hasn't, nothing was written, and `rows` is empty: use INSERT."""

    is_written: bool
    rows: InsertedRows


_NOT_WRITTEN: Final = CopyResult(is_written=False, rows=InsertedRows(0, ()))


async def copy_rows(session: AsyncSession, model: type[Any], rows: Sequence[object], *, keys: bool) -> CopyResult:
    """Write all rows, of any kind, or none of them. The result has keys only if `keys` is true.

    The rows aren't written if COPY isn't possible, or if a row is rejected. The caller's INSERT then locates the
    rejected row and raises its error. Any other error is raised here, as for every statement.
    """
    await session.flush()
    try:
        connection = await session.connection(bind_arguments={"mapper": inspect(model)})
        await connection.run_sync(_check_copy_allowed, inspect(model).local_table)
        try:
            return CopyResult(is_written=True, rows=await _copy_groups(session, model, [rows], keys))
        except UnevenRows:
            # Rows without a parent name fewer attributes. They are written first, because other rows may refer to them.
            groups = sorted(_group_by_names(normalize_rows(model, rows, first=0)), key=lambda group: len(group[1][0]))
            written = await _copy_groups(session, model, [rows for _, rows in groups], keys)
            positions = chain.from_iterable(positions for positions, _ in groups)
            # not strict, because there are no keys if `keys` is false
            in_input_order = sorted(zip(positions, written.keys, strict=False), key=itemgetter(0))
            in_order = InsertedRows(written.count, [key for _, key in in_input_order])
            return CopyResult(is_written=True, rows=in_order)
    except (_CopyRejected, UnevenRows, ColumnarUnsupported):
        return _NOT_WRITTEN


class _CopyRejected(Exception):
    """COPY can't write these rows."""


class _TableRejected(_CopyRejected):
    """COPY can't write any rows to the table. The argument is the reason.

    Raise it `from None`: if the cause is the driver's error, a `handle_error` listener of the engine may conclude that
    the connection is lost.
    """


class _DisabledTables:
    """The tables of one engine for which PostgreSQL has rejected COPY in the last minute.

    A table is identified by its name only. With another `search_path`, for another role or after a DROP, COPY may be
    possible for a table with the same name. During that minute INSERT is used for that table, too.
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
) -> InsertedRows:
    """Write each group by one COPY. The keys of the result are in the order of the groups.

    The rows of a group name the same attributes.
    """
    count = 0
    generated_keys: list[Any] = []
    async with session.begin_nested():
        for rows in groups:
            dialect = session.get_bind(inspect(model)).dialect
            source = _convert_first_batch(model, rows, dialect, generated_keys if keys else None)
            # This call opens the savepoint. It comes last, so that rows that can't be copied cost no round trip.
            connection = await session.connection(bind_arguments={"mapper": inspect(model)})
            await connection.run_sync(_copy, inspect(model).local_table, source)
            count += source.written_count
    return InsertedRows(count, generated_keys)


def _check_copy_allowed(connection: Connection, table: FromClause) -> None:
    """Raise `_CopyRejected` if COPY is certainly impossible, so that no attempt is made."""
    options = connection.get_execution_options()
    if (
        not options.get(COPY_OPTION, True)
        or not isinstance(table, Table)
        or _quote_table(connection, table) in _disabled_tables(connection.dialect)
    ):
        raise _CopyRejected


def _copy(connection: Connection, table: Table, source: _CopySource) -> None:
    """Write the rows of `source` by one COPY."""
    preparer = connection.dialect.identifier_preparer
    quoted, names = _quote_table(connection, table), ", ".join(map(preparer.format_column, source.columns))
    statement = f"COPY {quoted} ({names}) FROM STDIN (FORMAT binary)"
    source.type_query = f"SELECT {names} FROM {quoted}"  # noqa: S608  # quoted
    try:
        connection.exec_driver_sql(statement, execution_options={_ROWS_OPTION: source})
    except _TableRejected as error:
        _disabled_tables(connection.dialect).add(quoted)
        reason = error.args[0]
        _log.warning("COPY into %s isn't possible, so rows are inserted for %d s: %s", quoted, _RETRY_SECONDS, reason)
        raise


def _quote_table(connection: Connection, table: Table) -> str:
    """The table's name, in the schema that `schema_translate_map` gives it."""
    preparer = connection.dialect.identifier_preparer
    schema, name = connection.schema_for_object(table), preparer.format_table(table, use_schema=False)
    return name if schema is None else f"{preparer.quote_schema(schema)}.{name}"


def _execute_copy(_cursor: Any, statement: str, _parameters: Any, context: Any) -> bool:
    """Run a statement that has rows to copy: a listener for the dialect's `do_execute`. True means that it ran here.

    So SQLAlchemy handles COPY like any other statement: it calls the engine's listeners, writes the log and translates
    errors.
    """
    source: _CopySource | None = context.execution_options.get(_ROWS_OPTION)
    if source is None:
        return False
    adapted: Any = context.root_connection.connection.dbapi_connection
    try:
        adapted.run_async(lambda driver: _send(driver, statement, source, context.dialect))
    except _NO_COPY as error:
        raise _TableRejected(error.args[0]) from None
    except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.PLPGSQLError):
        raise _CopyRejected from None
    except asyncpg.InternalClientError as error:
        if _is_alive(adapted):  # a type that the driver can't encode in binary format
            raise _CopyRejected from None
        # SQLAlchemy doesn't recognize this error of the driver as a lost connection.
        raise ConnectionError(error.args[0]) from None
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        if isinstance(error, asyncpg.DatatypeMismatchError):  # the driver cached an old composite type
            adapted.run_async(lambda driver: driver.reload_schema_state())
        raise_adapted(adapted, error)
    except (_CopyRejected, UnevenRows, ColumnarUnsupported, OSError):
        raise
    except Exception:  # a row that can't be converted, or a value that the driver can't encode
        raise _CopyRejected from None
    return True


async def _send(driver: Any, statement: str, source: _CopySource, dialect: Dialect) -> None:
    """Check the column types in the database, and send the rows on the driver's connection."""
    # An unnamed statement needs no cleanup, because the next one replaces it. It also works behind a pooler.
    prepared = await driver.prepare(source.type_query, name="")
    for column, found in zip(source.columns, prepared.get_attributes(), strict=True):
        if not is_encoded_as_inserted(column.type, found.type.name, dialect):
            raise _TableRejected(f"{column.name} is {found.type.name} in the database, and {column.type} in the model")
    source.written_count = await copy_in(driver, statement, prepared, source.records())


def _is_alive(adapted: Any) -> bool:
    """Whether the connection still works. On a connection that is closing, the driver raises an error."""
    try:
        adapted.run_async(lambda driver: driver.execute("SELECT 1"))
    except asyncpg.PostgresError:
        return True  # the transaction is aborted
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError):
        return False
    return True


def _convert_first_batch(
    model: type[Any], rows: Sequence[object], dialect: Dialect, keys: list[Any] | None
) -> _CopySource:
    """The rows, with the first batch converted.

    Raises `_CopyRejected` for an invalid row. The caller's INSERT then raises the error of that row.
    """
    try:
        return _CopySource(model, rows, dialect, keys)
    except (UnevenRows, ColumnarUnsupported):
        raise
    except Exception as error:
        raise _CopyRejected from error


class _CopySource:
    """The rows of one COPY, which name the same attributes. They are converted in batches.

    PostgreSQL processes one batch while the next one is converted and sent. The keys of converted rows are added to
    `keys`, unless it is None. Raises `UnevenRows` at a row that names other attributes.
    """

    def __init__(self, model: type[Any], rows: Sequence[object], dialect: Dialect, keys: list[Any] | None):
        self._model, self._rows, self._dialect, self._keys = model, rows, dialect, keys
        first = self._convert_batch(0)
        self.columns = [*first]
        self._names = [column.name for column in first]
        self.type_query = ""
        self.written_count = 0
        self._first_batch = zip(*first.values(), strict=True)

    def records(self) -> Iterator[tuple[Any, ...]]:
        """The rows as the driver expects them, with values in the order of `columns`. Call this once."""
        starts = range(_COPY_BATCH_ROWS, len(self._rows), _COPY_BATCH_ROWS)
        return chain(self._first_batch, chain.from_iterable(map(self._iterate_batch, starts)))

    def _iterate_batch(self, start: int) -> Iterator[tuple[Any, ...]]:
        columns = self._convert_batch(start)
        if [column.name for column in columns] != self._names:
            raise UnevenRows
        return zip(*columns.values(), strict=True)

    def _convert_batch(self, start: int) -> dict[Column[Any], Sequence[Any]]:
        """The values of the batch that begins with row `start`, by column, as the driver expects them."""
        rows = normalize_rows(self._model, self._rows[start : start + _COPY_BATCH_ROWS], first=start)
        named = transpose_rows(rows)
        keys = generate_keys(self._model, named, len(rows))
        values_by_name = add_key_columns(named, keys)
        if self._keys is not None:
            if not keys.keys() <= values_by_name.keys():
                raise ColumnarUnsupported  # the caller needs keys that the database generates, and COPY returns no rows
            self._keys += extract_keys(self._model, keys)
        columns = build_insert_columns(self._model, values_by_name, len(rows))
        return {column: _bind_values(column, values, len(rows), self._dialect) for column, values in columns.items()}


def _group_by_names(rows: Sequence[dict[str, Any]]) -> Collection[tuple[Sequence[int], Sequence[dict[str, Any]]]]:
    """The rows in groups that name the same attributes, each with the positions of its rows."""
    groups: dict[frozenset[str], tuple[list[int], list[dict[str, Any]]]] = {}
    for position, row in enumerate(rows):
        positions, group = groups.setdefault(frozenset(row), ([], []))
        positions.append(position)
        group.append(row)
    return groups.values()


def _bind_values(column: Column[Any], values: Iterable[Any], count: int, dialect: Dialect) -> Sequence[Any]:
    """The values as the driver expects them."""
    if writes_by_expression(column.type):
        raise ColumnarUnsupported
    kind = column.type.dialect_impl(dialect)
    bind = kind.bind_processor(dialect)
    if isinstance(values, repeat):
        value = next(values)
        return [value if bind is None else bind(value)] * count
    if is_exact_integer_type(kind) and isinstance(values, list) and has_only_integers(values):
        bind = None
    bound = [*values] if bind is None else [*map(bind, values)]
    if len(bound) < count:  # a type raised StopIteration, which ends `map` without an error
        raise _CopyRejected
    return bound
