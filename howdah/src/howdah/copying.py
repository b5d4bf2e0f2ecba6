"""COPY: rows into a table at the speed of PostgreSQL's loader, through the session's own connection and transaction.

It takes what an INSERT takes in all ordinary cases. Where it doesn't, `copy_rows` says so and has written nothing, and
the caller inserts: a default that is an SQL expression, a type that is written by one, joined-table inheritance, a
table that PostgreSQL lets nobody copy into (row-level security), a pooler or engine that doesn't know COPY.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat, starmap
from operator import itemgetter
from typing import Any, Final
from weakref import WeakKeyDictionary

import asyncpg
from sqlalchemy import Column, Connection, Dialect, FromClause, Table, inspect
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapper

# COPY took 0.9 of the INSERT's time for 1 to 10 rows of seven columns, 0.8 for 20, 0.6 for 1,000 (medians of 30). Below
# this the gain is under a millisecond, and an INSERT is what SQLAlchemy's events and logs show.
WORTHWHILE_ROWS: Final = 20

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


async def copy_rows(session: AsyncSession, model: type[Any], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Write all the rows, attribute names and values, or none of them.

    False if a value was refused, or if it can't be done at all; an INSERT then says what is wrong, and with which row.
    Any other error is raised as that of a statement is.
    """
    await session.flush()
    try:
        async with session.begin_nested():
            connection = await session.connection()  # here, for this is what makes the savepoint
            table = inspect(model).local_table
            await connection.run_sync(_refuse_where_it_was_refused, table)
            for alike in _grouped(rows):
                columns = _columns(inspect(model), alike, connection.dialect)
                await connection.run_sync(_copy, table, list(columns), zip(*columns.values(), strict=False))
    except _Refused:
        return False
    return True


class _Refused(Exception):
    """Not by COPY."""


def _refuse_where_it_was_refused(connection: Connection, table: FromClause) -> None:
    if (
        not connection.get_execution_options().get(COPY_OPTION, True)
        or not isinstance(table, Table)
        or table.fullname in _refusing.get(connection.dialect, ())
    ):
        raise _Refused


def _copy(connection: Connection, table: Table, names: Sequence[str], records: Iterator[tuple[Any, ...]]) -> None:
    adapted: Any = connection.connection.dbapi_connection
    try:
        adapted.run_async(
            lambda driver: driver.copy_records_to_table(
                table.name, schema_name=table.schema, columns=names, records=records
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


def _grouped(rows: Sequence[Mapping[str, Any]]) -> Iterable[Sequence[Mapping[str, Any]]]:
    """The rows that name the same attributes, together."""
    names = rows[0].keys()
    if all(row.keys() == names for row in rows):
        return [rows]
    groups: dict[frozenset[str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(frozenset(row), []).append(row)
    return groups.values()


def _columns(mapper: Mapper[Any], rows: Sequence[Mapping[str, Any]], dialect: Dialect) -> dict[str, Iterable[Any]]:
    """By the column's name its values for the rows, as the driver takes them."""
    if len(mapper.tables) > 1:
        raise _Refused
    columns: dict[str, Iterable[Any]] = {}
    for prop in mapper.column_attrs:
        column = prop.columns[0]
        if not isinstance(column, Column) or column.computed is not None:
            continue
        values: Iterable[Any]
        if column is mapper.version_id_col and callable(mapper.version_id_generator):
            values = map(mapper.version_id_generator, repeat(None, len(rows)))
        elif prop.key in rows[0]:
            values = map(itemgetter(prop.key), rows)
        elif column is mapper.polymorphic_on:
            values = repeat(mapper.polymorphic_identity, len(rows))
        elif column.default is not None:
            values = _defaults(column, len(rows))
        else:
            continue
        write = _processor(column, dialect)
        columns[column.name] = values if write is None else map(write, values)
    if not columns:
        raise _Refused  # a row of defaults only
    return columns


def _defaults(column: Column[Any], count: int) -> Iterable[Any]:
    default: Any = column.default
    if default.is_callable:
        # SQLAlchemy wraps a function that takes no context, and leaves one that does as it is
        if not hasattr(default.arg, "__wrapped__"):
            raise _Refused
        return starmap(default.arg.__wrapped__, repeat((), count))
    if default.is_scalar:
        return repeat(default.arg, count)
    raise _Refused


def _processor(column: Column[Any], dialect: Dialect) -> Callable[[Any], Any] | None:
    if column.type._has_bind_expression:
        raise _Refused
    return column.type.dialect_impl(dialect).bind_processor(dialect)
