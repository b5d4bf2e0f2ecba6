"""INSERT of a few rows, or of many rows if COPY isn't possible. An error has the position of the rejected row."""

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

from howdah._arrays import fits_in_array, unnest_arrays
from howdah._keys import build_key, get_key_attributes, get_key_names, has_key_in
from howdah._writes.columns import (
    ColumnarUnsupported,
    UnevenRows,
    add_keys_to_rows,
    build_insert_columns,
    extract_keys,
    generate_keys,
    transpose_rows,
)
from howdah._writes.copy_encoding import unwrap_type
from howdah._writes.references import SelfReference, order_parents_first
from howdah._writes.rejected_rows import (
    RejectedRows,
    is_row_error,
    write_and_skip_rejected_rows,
    write_or_locate_rejected_row,
)
from howdah._writes.rows import InsertedRows, normalize_rows
from howdah.errors import InvalidValue

# Only these types are sent as arrays: `unnest` would split an array of composites into columns, and the driver may not
# know the array of another type.
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
    rejected: RejectedRows,
) -> InsertedRows:
    """Insert the rows of a chunk. The result has keys only if `keys` is true.

    `references` are the model's foreign keys to itself. `first` is the position of the chunk's first row in the input.
    Rows that are skipped are added to `rejected`. If its limit isn't 0, call this in a savepoint.
    """
    rows = normalize_rows(model, chunk, first=first)
    new = generate_keys(model, {name: [row.get(name) for row in rows] for name in get_key_names(model)}, len(rows))
    statement = insert(model)
    has_all_keys = not keys or not any(None in column for column in new.values())
    if not has_all_keys:  # the database generates some
        statement = statement.returning(*get_key_attributes(model), sort_by_parameter_order=True)
    complete = add_keys_to_rows(rows, new)
    # With VALUES a statement has at most 1,000 rows, and the search for a rejected row writes them in parts. In both
    # cases a row must come after the rows that it refers to.
    order = order_parents_first(references, complete) if references else range(len(rows))
    items = [complete[position] for position in order]
    write = partial(_insert, session, model, statement)
    positions = [first + position for position in order]
    if rejected.limit:

        async def write_with_keys(part: Sequence[Mapping[str, Any]]) -> InsertedRows:
            count, returned = await write(part)
            return InsertedRows(count, _collect_keys(model, part, returned, has_all_keys) if keys else ())

        return _join(await write_and_skip_rejected_rows(session, items, write_with_keys, positions, rejected))
    count, returned = await _write_or_locate(session, items, write, positions)
    if has_all_keys:
        return InsertedRows(count, extract_keys(model, new, first=first) if keys else ())
    if count < len(rows):  # a trigger has suppressed some
        return InsertedRows(count, [build_key(row) for row in returned])
    in_input_order = sorted(zip(order, returned, strict=True), key=itemgetter(0))
    return InsertedRows(count, [build_key(row) for _, row in in_input_order])


def _collect_keys(
    model: type[Any], rows: Sequence[Mapping[str, Any]], returned: Sequence[Row[Any]], has_all_keys: bool
) -> Sequence[Any]:
    """The keys that the rows name, or those that the database has generated and returned."""
    if not has_all_keys:
        return [build_key(row) for row in returned]
    try:
        return extract_keys(model, {name: [row[name] for row in rows] for name in get_key_names(model)})
    except InvalidValue as error:
        error.__notes__.clear()  # the position among these rows isn't that in the input
        raise


def _join(parts: Sequence[tuple[Sequence[int], InsertedRows]]) -> InsertedRows:
    """Join the results of parts, which have the positions of their rows. The keys are in the order of the input."""
    count = sum(written.count for _, written in parts)
    keys = [key for _, written in parts for key in written.keys]
    positions = [position for each, _ in parts for position in each]
    if len(keys) == len(positions):  # otherwise no keys were requested, or a trigger has suppressed rows
        keys = [key for _, key in sorted(zip(positions, keys, strict=True), key=itemgetter(0))]
    return InsertedRows(count, keys)


async def find_present_keys(session: AsyncSession, model: type[Any], keys: Sequence[Any]) -> InsertedRows:
    """The keys that have a row now, after an INSERT in which a trigger may have suppressed or redirected rows.

    A row may have been inserted into a child table (`INHERITS`). The INSERT doesn't count it, but a SELECT finds it.
    """
    found = await session.execute(select(*get_key_attributes(model)).where(has_key_in(model, keys)))
    present = {build_key(row) for row in found}
    return InsertedRows(len(present), [key for key in keys if key in present])


async def _write_or_locate(
    session: AsyncSession,
    items: Sequence[ItemT],
    write: Callable[[Sequence[ItemT]], Awaitable[ResultT]],
    positions: Sequence[int],
) -> ResultT:
    """As `write_or_locate_rejected_row`. In the usual case, without a rejected row, it needs one savepoint less."""
    if len(items) > 1:
        try:
            async with session.begin_nested():
                return await write(items)
        except StatementError as error:
            if not is_row_error(error):
                raise
    async with session.begin_nested() if len(items) > 1 else nullcontext():
        return await write_or_locate_rejected_row(session, items, write, positions)


async def _insert(
    session: AsyncSession, model: type[Any], statement: Insert, rows: Sequence[Mapping[str, Any]]
) -> tuple[int, Sequence[Row[Any]]]:
    """Write the rows. Returns the number of inserted rows, and the rows of RETURNING if the statement has it."""
    has_returning = bool(statement.returning_column_descriptions)
    if not has_returning:
        try:
            dialect = session.get_bind(inspect(model)).dialect
            written = await session.execute(_build_array_insert(model, rows, dialect))
        except (ColumnarUnsupported, UnevenRows):
            pass
        else:
            return cast("CursorResult[Any]", written).rowcount, ()
    # With VALUES the driver doesn't return the number of inserted rows, so the returned rows are counted.
    # Without `render_nulls` a column with None would be left out, and its default would apply.
    counted = statement if has_returning else statement.returning(*get_key_attributes(model))
    returned = (await session.execute(counted, rows, execution_options={"render_nulls": True})).all()
    return len(returned), returned if has_returning else ()


def _build_array_insert(model: type[Any], rows: Sequence[Mapping[str, Any]], dialect: Dialect) -> Insert:
    """One statement for all rows, so that PostgreSQL checks foreign keys after the last row.

    Raises `ColumnarUnsupported` or `UnevenRows` if the rows can't be written like this.
    """
    table = inspect(model).local_table
    if not isinstance(table, Table):
        raise ColumnarUnsupported
    columns = build_insert_columns(model, transpose_rows(rows), len(rows))
    has_array = any(not isinstance(values, repeat) for values in columns.values())
    if not has_array or not all(fits_in_array(column) and _is_scalar(column, dialect) for column in columns):
        raise ColumnarUnsupported
    source, values = unnest_arrays({column.key: (column, each) for column, each in columns.items()})
    rows_of_arrays = select(*values.values()).select_from(source)
    return insert(table).from_select(list(values), rows_of_arrays, include_defaults=False)


def _is_scalar(column: Column[Any], dialect: Dialect) -> bool:
    return isinstance(unwrap_type(column.type, dialect), _SCALAR)
