"""COPY: rows into a table at the speed of PostgreSQL's loader, through the session's own connection and transaction.

It takes what an INSERT takes in all ordinary cases; only rules (`CREATE RULE`), unlike triggers, it passes by. Where it
doesn't, `copy_rows` says so and has written nothing, and the caller inserts: a default that is an SQL expression, a
type that is written by one, joined-table inheritance, a table that PostgreSQL lets nobody copy into (row-level
security), a pooler or engine that doesn't know COPY.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain, repeat
from operator import itemgetter
from typing import Any, Final
from weakref import WeakKeyDictionary

import asyncpg
from sqlalchemy import Column, Connection, Dialect, FromClause, Table, inspect
from sqlalchemy.ext.asyncio import AsyncSession

from howdah.columns import OnlyByInsert, columns_of, inserted_columns, keys_in, new_keys, with_made_keys
from howdah.errors import raise_as_of_a_statement
from howdah.rows import read_rows

# A transaction that creates rows of seven columns takes 0.9 of the time with COPY for 1 to 10 of them, 0.8 for 20, 0.5
# for 200 (`make bench ONLY=few-rows`). Below this the gain is under a millisecond, and an INSERT is what SQLAlchemy's
# events and logs show.
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
    session: AsyncSession, model: type[Any], rows: Sequence[object], *, keys: bool
) -> Sequence[Any] | None:
    """Write all the rows, of whatever kind, or none of them; their keys in the order of the rows, none if `keys` aren't
    wanted.

    None if a row was refused, or if it can't be done at all; an INSERT then says what is wrong, and with which row.
    Any other error is raised as that of a statement is.
    """
    await session.flush()
    try:
        try:
            return await _copy_groups(session, model, [rows], keys)
        except _Mixed:
            groups = _grouped(read_rows(model, rows, first=0))
            made = await _copy_groups(session, model, [rows for _, rows in groups], keys)
            places = chain.from_iterable(places for places, _ in groups)
            return [key for _, key in sorted(zip(places, made, strict=False), key=itemgetter(0))]
    except (_Refused, _Mixed, OnlyByInsert):
        return None


class _Refused(Exception):
    """Not by COPY."""


class _Mixed(Exception):
    """The rows don't all name the same attributes."""


async def _copy_groups(
    session: AsyncSession, model: type[Any], groups: Sequence[Sequence[object]], keys: bool
) -> list[Any]:
    """COPY each group, whose rows name the same attributes, and return their keys in this order."""
    made: list[Any] = []
    async with session.begin_nested():
        # here, for this is what makes the savepoint
        connection = await session.connection(bind_arguments={"mapper": inspect(model)})
        await connection.run_sync(_refuse_where_it_was_refused, inspect(model).local_table)
        for rows in groups:
            await connection.run_sync(_copy, model, rows, made if keys else None)
    return made


def _refuse_where_it_was_refused(connection: Connection, table: FromClause) -> None:
    options = connection.get_execution_options()
    if (
        not options.get(COPY_OPTION, True)
        or options.get("schema_translate_map")
        or not isinstance(table, Table)
        or table.fullname in _refusing.get(connection.dialect, ())
    ):
        raise _Refused


def _copy(connection: Connection, model: type[Any], rows: Sequence[object], keys: list[Any] | None) -> None:
    adapted: Any = connection.connection.dbapi_connection
    table = inspect(model).local_table
    try:
        parts = _Parts(model, rows, connection.dialect, keys)
        adapted.run_async(
            lambda driver: driver.copy_records_to_table(
                table.name, schema_name=table.schema, columns=parts.names, records=parts.records()
            )
        )
    except _NO_COPY as error:
        _refusing.setdefault(connection.dialect, set()).add(table.fullname)
        _log.warning("COPY into %s isn't possible, so rows are inserted: %s", table.fullname, error.args[0])
        raise _Refused from error
    except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.PLPGSQLError) as error:
        raise _Refused from error
    except asyncpg.InternalClientError as error:
        if _is_alive(adapted):  # a type that the driver writes as text only
            raise _Refused from error
        raise_as_of_a_statement(connection, f"COPY {table.fullname}", ConnectionError(error.args[0]))
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise_as_of_a_statement(connection, f"COPY {table.fullname}", error)
    except (_Mixed, OnlyByInsert):
        raise
    except Exception as error:  # a row that can't be read, or a value that the driver can't write
        raise _Refused from error


def _is_alive(adapted: Any) -> bool:
    """Whether the connection answers; told that its backend is ending, the driver lets nothing more be sent."""
    try:
        adapted.run_async(lambda driver: driver.execute("SELECT 1"))
    except asyncpg.PostgresError:
        return True  # the transaction is aborted
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError):
        return False
    return True


class _Parts:
    """Rows that name the same attributes, made ready a few at a time: while the driver sends some, PostgreSQL is busy
    with those before. Raises `_Mixed` when it comes upon others."""

    def __init__(self, model: type[Any], rows: Sequence[object], dialect: Dialect, keys: list[Any] | None):
        self._model, self._rows, self._dialect, self._keys = model, rows, dialect, keys
        first = self._columns(0)
        self.names = [*first]
        self._first = zip(*first.values(), strict=True)

    def records(self) -> Iterator[tuple[Any, ...]]:
        """As the driver takes them, in the order of `names`."""
        return chain(self._first, chain.from_iterable(map(self._part, range(_PART_ROWS, len(self._rows), _PART_ROWS))))

    def _part(self, start: int) -> Iterator[tuple[Any, ...]]:
        columns = self._columns(start)
        if [*columns] != self.names:
            raise _Mixed
        return zip(*columns.values(), strict=True)

    def _columns(self, start: int) -> dict[str, Sequence[Any]]:
        rows = read_rows(self._model, self._rows[start : start + _PART_ROWS], first=start)
        named = columns_of(rows)
        if named is None:
            raise _Mixed
        new = new_keys(self._model, named, len(rows))
        given = with_made_keys(named, new)
        if self._keys is not None:
            if not new.keys() <= given.keys():
                raise OnlyByInsert  # the database makes keys that are wanted
            self._keys += keys_in(self._model, new)
        columns = inserted_columns(self._model, given, len(rows))
        return {column.name: _bound(column, values, len(rows), self._dialect) for column, values in columns.items()}


def _grouped(rows: Sequence[dict[str, Any]]) -> Collection[tuple[Sequence[int], Sequence[dict[str, Any]]]]:
    """The rows that name the same attributes, together, with their places."""
    groups: dict[frozenset[str], tuple[list[int], list[dict[str, Any]]]] = {}
    for place, row in enumerate(rows):
        places, group = groups.setdefault(frozenset(row), ([], []))
        places.append(place)
        group.append(row)
    return groups.values()


def _bound(column: Column[Any], values: Iterable[Any], count: int, dialect: Dialect) -> Sequence[Any]:
    """The values as the driver takes them."""
    if column.type._has_bind_expression:
        raise OnlyByInsert
    bind = column.type.dialect_impl(dialect).bind_processor(dialect)
    if isinstance(values, repeat):
        value = next(values)
        return [value if bind is None else bind(value)] * count
    bound = [*values] if bind is None else [*map(bind, values)]
    if len(bound) < count:  # a type raised StopIteration, which would end the rows instead of failing them
        raise _Refused
    return bound
