"""INSERT of many rows, for few rows and if COPY isn't possible. An error has the position of the rejected row."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import repeat
from operator import itemgetter
from typing import Any, Final, TypeVar, cast

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    CursorResult,
    Date,
    DateTime,
    Dialect,
    Float,
    Insert,
    Integer,
    LargeBinary,
    Numeric,
    Row,
    String,
    Table,
    Time,
    Uuid,
    insert,
    inspect,
    select,
)
from sqlalchemy.dialects.postgresql import INTERVAL
from sqlalchemy.exc import StatementError
from sqlalchemy.ext.asyncio import AsyncSession

from howdah._arrays import fits_in_array, given
from howdah._keys import has_key_in, key_attributes, key_in, key_names
from howdah._writes.columns import CopyUnsupported, columns_of, generate_keys, inserted_columns, keys_in, with_keys
from howdah._writes.copy_encoding import without_decorators
from howdah._writes.references import SelfReference, parents_first
from howdah._writes.rejected_rows import is_of_a_row, locate_rejected_row
from howdah._writes.rows import Inserted, normalize_rows

# `unnest` would split an array of composites into columns, and the driver may not know the arrays of other types.
_SCALAR: Final = (Boolean, Date, DateTime, Float, Integer, INTERVAL, JSON, LargeBinary, Numeric, String, Time, Uuid)

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


async def insert_rows(
    session: AsyncSession,
    model: type[Any],
    chunk: Sequence[object],
    references: Sequence[SelfReference],
    *,
    first: int,
    keys: bool,
) -> Inserted:
    """Insert the rows. The result has keys only if `keys` is true.

    `references` are the model's foreign keys to itself. `first` is the position of the first row in the input.
    """
    rows = normalize_rows(model, chunk, first=first)
    new = generate_keys(model, {name: [row.get(name) for row in rows] for name in key_names(model)}, len(rows))
    statement = insert(model)
    known = not keys or not any(None in column for column in new.values())
    if not known:  # the database makes them
        statement = statement.returning(*key_attributes(model), sort_by_parameter_order=True)
    complete = with_keys(rows, new)
    # With VALUES a statement has at most 1,000 rows, and the search for a rejected row writes them in parts. In both
    # cases a row must come after the rows that it refers to.
    order = parents_first(references, complete) if references else range(len(rows))
    items = [complete[place] for place in order]
    places = [first + place for place in order]
    count, returned = await _insert_or_name_the_row(session, items, partial(_insert, session, model, statement), places)
    if known:
        return Inserted(count, keys_in(model, new, first=first) if keys else ())
    if count < len(rows):  # a trigger has suppressed some
        return Inserted(count, [key_in(row) for row in returned])
    by_place = sorted(zip(order, returned, strict=True), key=itemgetter(0))
    return Inserted(count, [key_in(row) for _, row in by_place])


async def written_of(session: AsyncSession, model: type[Any], keys: Sequence[Any]) -> Inserted:
    """The keys that have a row now, if a trigger has suppressed rows or has moved them.

    It may have moved them to another table of the same inheritance tree of PostgreSQL.
    """
    found = await session.execute(select(*key_attributes(model)).where(has_key_in(model, keys)))
    present = {key_in(row) for row in found}
    return Inserted(len(present), [key for key in keys if key in present])


async def _insert_or_name_the_row(
    session: AsyncSession,
    items: Sequence[ItemT],
    write: Callable[[Sequence[ItemT]], Awaitable[ResultT]],
    places: list[int],
) -> ResultT:
    """Write the rows; an error has the position of the rejected row.

    Rows are seldom rejected, so the first attempt takes one savepoint only. The search for the row takes one more.
    """
    if len(items) > 1:
        try:
            async with session.begin_nested():
                return await write(items)
        except StatementError as error:
            if not is_of_a_row(error):
                raise
    async with session.begin_nested() if len(items) > 1 else nullcontext():
        return await locate_rejected_row(session, items, write, places=places)


async def _insert(
    session: AsyncSession, model: type[Any], statement: Insert, rows: Sequence[Mapping[str, Any]]
) -> tuple[int, Sequence[Row[Any]]]:
    """Write the rows, and return how many were inserted and the returned columns."""
    has_returning = bool(statement.returning_column_descriptions)
    if not has_returning:
        try:
            dialect = session.get_bind(inspect(model)).dialect
            written = await session.execute(_from_arrays(model, rows, dialect))
        except CopyUnsupported:
            pass
        else:
            return cast("CursorResult[Any]", written).rowcount, ()
    # The returned rows are counted: with VALUES the driver doesn't say how many rows a trigger has suppressed.
    counted = statement if has_returning else statement.returning(*key_attributes(model))
    returned = (await session.execute(counted, rows, execution_options={"render_nulls": True})).all()
    return len(returned), returned if has_returning else ()


def _from_arrays(model: type[Any], rows: Sequence[Mapping[str, Any]], dialect: Dialect) -> Insert:
    """One statement for all rows, so that PostgreSQL checks foreign keys after the last one. Raises `CopyUnsupported`."""
    table, named = inspect(model).local_table, columns_of(rows)
    if named is None or not isinstance(table, Table):
        raise CopyUnsupported
    columns = inserted_columns(model, named, len(rows))
    is_any_array = any(not isinstance(values, repeat) for values in columns.values())
    if not is_any_array or not all(fits_in_array(column) and _is_scalar(column, dialect) for column in columns):
        raise CopyUnsupported
    source, values = given({column.key: (column, each) for column, each in columns.items()})
    chosen = select(*values.values()).select_from(source)
    return insert(table).from_select(list(values), chosen, include_defaults=False)


def _is_scalar(column: Column[Any], dialect: Dialect) -> bool:
    return isinstance(without_decorators(column.type, dialect), _SCALAR)
