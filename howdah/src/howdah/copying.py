"""COPY: rows into a table at the speed of PostgreSQL's loader, through the session's own connection and transaction.

It takes what an INSERT takes in all ordinary cases. Where it doesn't, `copy_rows` says so and has written nothing, and
the caller inserts: a default that is an SQL expression, a type that is written by one, joined-table inheritance, a
table that PostgreSQL lets nobody copy into (row-level security), a pooler or engine that doesn't know COPY.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from operator import itemgetter
from typing import Any, Final
from weakref import WeakKeyDictionary

import asyncpg
from sqlalchemy import Column, Connection, Dialect, FromClause, Table, inspect
from sqlalchemy.ext.asyncio import AsyncSession

from howdah.columns import OnlyByInsert, columns_of, inserted_columns, keys_in, new_keys

# COPY took 0.9 of the INSERT's time for 1 to 10 rows of seven columns, 0.8 for 20, 0.6 for 1,000 (medians of 30). Below
# this the gain is under a millisecond, and an INSERT is what SQLAlchemy's events and logs show.
WORTHWHILE_ROWS: Final = 20

_PART_ROWS: Final = 1000

COPY_OPTION: Final = "howdah_copy"

_log: Final = logging.getLogger(__name__)

# Where the server or what stands before it has refused to copy: not tried again.
_refusing: WeakKeyDictionary[Dialect, set[str]] = WeakKeyDictionary()

_NO_COPY: Final = (
    asyncpg.FeatureNotSupportedError,
    asyncpg.PostgresSyntaxError,
    asyncpg.ProtocolViolationError,
    asyncpg.WrongObjectTypeError,
)


async def copy_rows(
    session: AsyncSession, model: type[Any], rows: Sequence[dict[str, Any]], *, keys: bool
) -> list[Any] | None:
    """Write all the rows, attribute names and values, or none of them; their keys in the order of the rows, an empty
    list if `keys` aren't wanted.

    None if a value was refused, or if it can't be done at all; an INSERT then says what is wrong, and with which row.
    Any other error is raised as that of a statement is.
    """
    await session.flush()
    placed: list[tuple[int, Any]] = []
    made: list[Any] = []
    try:
        async with session.begin_nested():
            connection = await session.connection()  # here, for this is what makes the savepoint
            await connection.run_sync(_refuse_where_it_was_refused, inspect(model).local_table)
            for places, alike in _grouped(rows):
                made = []
                parts = _Parts(model, alike, connection.dialect, made if keys else None)
                await connection.run_sync(_copy, parts)
                placed += zip(places, made, strict=False) if places else ()
    except (_Refused, OnlyByInsert):
        return None
    return [key for _, key in sorted(placed, key=itemgetter(0))] if placed else made


class _Refused(Exception):
    """Not by COPY."""


def _refuse_where_it_was_refused(connection: Connection, table: FromClause) -> None:
    if (
        not connection.get_execution_options().get(COPY_OPTION, True)
        or not isinstance(table, Table)
        or table.fullname in _refusing.get(connection.dialect, ())
    ):
        raise _Refused


def _copy(connection: Connection, parts: _Parts) -> None:
    adapted: Any = connection.connection.dbapi_connection
    table = parts.table
    try:
        adapted.run_async(
            lambda driver: driver.copy_records_to_table(
                table.name, schema_name=table.schema, columns=parts.names, records=parts.records()
            )
        )
    except _NO_COPY as error:
        _refusing.setdefault(connection.dialect, set()).add(table.fullname)
        _log.warning("COPY into %s isn't possible, so rows are inserted: %s", table.fullname, error.args[0])
        raise _Refused from error
    except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.InternalClientError) as error:
        raise _Refused from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        _raise_as_of_a_statement(connection, f"COPY {table.fullname}", error)
    except Exception as error:  # a value that the driver can't write
        raise _Refused from error


def _raise_as_of_a_statement(connection: Connection, statement: str, error: Exception) -> None:
    adapted: Any = connection.connection.dbapi_connection
    try:
        adapted._handle_exception(error)
    except Exception as translated:
        connection._handle_dbapi_exception(translated, statement, None, None, None)


class _Parts:
    """Rows that name the same attributes, made ready a few at a time: while the driver sends some, PostgreSQL is busy
    with those before."""

    def __init__(self, model: type[Any], rows: Sequence[dict[str, Any]], dialect: Dialect, keys: list[Any] | None):
        self._model, self._rows, self._dialect, self._keys = model, rows, dialect, keys
        table = inspect(model).local_table
        assert isinstance(table, Table)
        self.table = table
        first = self._columns(rows[:_PART_ROWS], keys)
        self.names = [*first]
        self._first = zip(*first.values(), strict=False)

    def records(self) -> Iterator[tuple[Any, ...]]:
        """As the driver takes them, in the order of `names`."""
        return chain(self._first, chain.from_iterable(map(self._part, range(_PART_ROWS, len(self._rows), _PART_ROWS))))

    def _part(self, start: int) -> Iterator[tuple[Any, ...]]:
        rows = self._rows[start : start + _PART_ROWS]
        columns = self._columns(rows, self._keys)
        if [*columns] != self.names:
            raise OnlyByInsert  # the database makes the keys of some
        return zip(*columns.values(), strict=False)

    def _columns(self, rows: Sequence[dict[str, Any]], made: list[Any] | None) -> dict[str, Iterable[Any]]:
        given: dict[str, Sequence[Any]] = {**(columns_of(rows) or {})}
        new = new_keys(self._model, given, len(rows))
        for name, values in new.items():
            if None not in values:
                given[name] = values
            elif made is not None or not all(value is None for value in values):
                raise OnlyByInsert
            else:
                given.pop(name, None)
        if made is not None:
            made += keys_in(self._model, new)
        columns = inserted_columns(self._model, given, len(rows))
        return {column.name: _bound(column, values, self._dialect) for column, values in columns.items()}


def _grouped(rows: Sequence[dict[str, Any]]) -> Iterable[tuple[Sequence[int], Sequence[dict[str, Any]]]]:
    """The rows that name the same attributes, together, with their places; with none where that is all of them."""
    names = rows[0].keys()
    if all(map(names.__eq__, map(dict.keys, rows))):
        return [((), rows)]
    groups: dict[frozenset[str], tuple[list[int], list[dict[str, Any]]]] = {}
    for place, row in enumerate(rows):
        places, group = groups.setdefault(frozenset(row), ([], []))
        places.append(place)
        group.append(row)
    return groups.values()


def _bound(column: Column[Any], values: Iterable[Any], dialect: Dialect) -> Iterable[Any]:
    """The values as the driver takes them."""
    if column.type._has_bind_expression:
        raise OnlyByInsert
    bind = column.type.dialect_impl(dialect).bind_processor(dialect)
    if bind is None:
        return values
    if isinstance(values, repeat):
        return repeat(bind(next(values)))
    return map(bind, values)
