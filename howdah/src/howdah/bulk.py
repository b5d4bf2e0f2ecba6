"""Writing many rows: any number, from any iterable, in chunks of constant size, all or nothing.

Every function works inside the session's transaction and never commits. A row that the database or a type refuses
fails the whole; the error is the one that the row alone raises, with `row_index` (its place in the input, from 0).
Objects that the session holds are read anew when their rows are changed here, and expunged when they are deleted.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import (
    ARRAY,
    Boolean,
    Executable,
    column,
    delete,
    func,
    insert,
    inspect,
    literal,
    literal_column,
    or_,
    select,
)
from sqlalchemy import update as sql_update
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.exc import StatementError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapper

from howdah.errors import DatabaseError, IntegrityViolation, InvalidValue, StaleRow
from howdah.keys import distinct, has_key_in, key_attributes, key_in, key_names
from howdah.locking import lock_keys
from howdah.rows import CHUNK_ROWS, column_names, in_chunks, refuse_unknown, values_of

ModelT = TypeVar("ModelT", bound=DeclarativeBase)
Rows: TypeAlias = Iterable[object] | AsyncIterable[object]


@dataclass(frozen=True, slots=True)
class Created:
    """`keys` are those of the new rows, in the order of the input; empty if they weren't wanted."""

    count: int
    keys: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Matched:
    """How many rows had one of the keys, and the keys that no row had, in the order of the input."""

    count: int
    missing: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Upserted:
    """How many rows were new, how many changed an existing one, and how many left it as it was."""

    created: int
    updated: int
    unchanged: int


async def insert_many(
    session: AsyncSession, model: type[ModelT], rows: Rows, *, chunk_size: int = CHUNK_ROWS, keys: bool = True
) -> Created:
    """Insert the rows. Defaults, Python's and the database's, apply to what a row leaves out.

    `keys=False` doesn't collect the keys, for inputs whose keys alone would fill the memory.
    """
    known, names = column_names(model), key_names(model)
    count, made = 0, []
    async with session.begin_nested():
        async for chunk in in_chunks(rows, chunk_size):
            values = [_with_new_key(model, values_of(model, row, known)) for row in chunk]
            if all(name in row for row in values for name in names):
                await _execute(session, insert(model), values, first=count, returning=False)
                if keys:
                    made += [key_in([row[name] for name in names]) for row in values]
            else:  # the database makes them
                statement = insert(model).returning(*key_attributes(model), sort_by_parameter_order=True)
                returned = await _execute(session, statement, values, first=count)
                if keys:
                    made += [key_in(row) for row in returned]
            count += len(values)
    return Created(count, made)


async def upsert_many(
    session: AsyncSession,
    model: type[ModelT],
    rows: Rows,
    *,
    on: Sequence[str] | None = None,
    update: Sequence[str] | None = None,
    chunk_size: int = CHUNK_ROWS,
) -> Upserted:
    """Insert the rows, or where one with the same `on` attributes exists (by default the key), set `update` on it.

    `on` must have a unique constraint or index. `update` defaults to all that the rows name, without `on` and the
    key; with `update=[]` existing rows are left alone. A row that has those values already isn't written at all:
    `updated_at` and `version` move only with a change. All rows must name the same attributes. Of rows that meet in
    `on` the last one of a chunk wins and the others count as unchanged. A chunk is written in the order of `on`, so
    that two upserts of one chunk each can't deadlock.
    """
    known, names = column_names(model), key_names(model)
    target = tuple(on) if on is not None else names
    refuse_unknown(model, (*target, *(update or ())))
    created = updated = count = 0
    async with session.begin_nested():
        async for chunk in in_chunks(rows, chunk_size):
            values = [values_of(model, row, known) for row in chunk]
            for index, row in enumerate(values, start=count):
                if row.keys() != values[0].keys() or not row.keys() >= set(target):
                    raise ValueError(f"row {index} must name {', '.join(target)} and the same attributes as the others")
            changed = [name for name in values[0] if name not in (*target, *names)] if update is None else update
            winners = {tuple(row[name] for name in target): row for row in values}
            ordered = [_with_new_key(model, winners[key]) for key in sorted(winners)]
            written = await _execute(session, _upsert(model, target, changed), ordered, first=count)
            new = sum(1 for row in written if row.is_new)
            created, updated, count = created + new, updated + len(written) - new, count + len(values)
            await _refresh(session, model, [key_in(row[1:]) for row in written if not row.is_new])
    return Upserted(created, updated, count - created - updated)


async def update_many(
    session: AsyncSession, model: type[ModelT], rows: Rows, *, chunk_size: int = CHUNK_ROWS
) -> Matched:
    """Update rows, each to values of its own: a row names its key and what to set, all rows the same attributes.

    A chunk's rows are locked in key order first, so two such updates of one chunk each can't deadlock. `onupdate`
    columns and `version` move. Rows that name their `version` must still have it, or `StaleRow` is raised.
    """
    known, names = column_names(model), key_names(model)
    count, matched, missing = 0, 0, []
    async with session.begin_nested():
        async for chunk in in_chunks(rows, chunk_size):
            values = [values_of(model, row, known) for row in chunk]
            for index, row in enumerate(values, start=count):
                if row.keys() != values[0].keys() or not row.keys() >= set(names):
                    raise ValueError(f"row {index} must name {', '.join(names)} and the same attributes as the others")
            by_key = {key_in([row[name] for name in names]): row for row in values}
            if len(by_key) < len(values):
                raise ValueError(f"rows {count} to {count + len(values) - 1} name a key twice")
            present = await lock_keys(session, model, list(by_key))
            missing += [key for key in by_key if key not in present]
            if present:
                await _update_each(session, model, [row for key, row in by_key.items() if key in present])
                await _refresh(session, model, present)
            matched, count = matched + len(present), count + len(values)
    return Matched(matched, missing)


async def update_by_key(
    session: AsyncSession, model: type[ModelT], ids: Iterable[Any], values: Mapping[str, Any]
) -> Matched:
    """Set the same `values` on every row with one of these keys, however many. The rows are locked in key order first;
    `onupdate` columns and `version` move."""
    refuse_unknown(model, values)
    keys = distinct(model, ids)
    present = await lock_keys(session, model, keys)
    if present and values:
        statement = sql_update(model).where(has_key_in(model, list(present))).values(_moving_version(model, values))
        await session.execute(statement, execution_options={"synchronize_session": False})
        await _refresh(session, model, present)
    return Matched(len(present), [key for key in keys if key not in present])


async def delete_many(session: AsyncSession, model: type[ModelT], ids: Iterable[Any]) -> Matched:
    """Delete every row with one of these keys, however many, locked in key order first. The database's cascades
    apply, the ORM's don't."""
    keys = distinct(model, ids)
    present = await lock_keys(session, model, keys)
    if present:
        statement = delete(model).where(has_key_in(model, list(present)))
        await session.execute(statement, execution_options={"synchronize_session": False})
        for instance in _held(session, model, present):
            session.expunge(instance)
    return Matched(len(present), [key for key in keys if key not in present])


def _with_new_key(model: type[Any], row: dict[str, Any]) -> dict[str, Any]:
    """The row with the key that the application makes, where it makes one and the row has none."""
    for attribute, key_column in zip(key_attributes(model), inspect(model).primary_key, strict=True):
        if attribute.key not in row and key_column.default is not None and key_column.default.is_callable:
            row[attribute.key] = key_column.default.arg(None)
    return row


def _upsert(model: type[Any], target: Sequence[str], changed: Sequence[str]) -> Executable:
    mapper: Mapper[Any] = inspect(model)
    columns = {name: mapper.columns[name] for name in sorted(column_names(model))}
    statement = pg_insert(model)
    elements = [columns[name] for name in target]
    if changed:
        values: dict[Any, Any] = {columns[name].key: statement.excluded[columns[name].key] for name in changed}
        differs = or_(*(columns[name].is_distinct_from(values[columns[name].key]) for name in changed))
        for each in columns.values():
            if each.onupdate is not None and each.onupdate.is_callable:
                values.setdefault(each.key, each.onupdate.arg(None))  # type: ignore[attr-defined]
        if mapper.version_id_col is not None:
            values.setdefault(mapper.version_id_col.key, mapper.version_id_col + 1)
        statement = statement.on_conflict_do_update(index_elements=elements, set_=values, where=differs)
    else:
        statement = statement.on_conflict_do_nothing(index_elements=elements)
    # xmax is 0 only in a row version that nobody has locked or replaced: one that this statement made new
    return statement.returning(literal_column("(xmax = 0)", Boolean).label("is_new"), *key_attributes(model))


async def _update_each(session: AsyncSession, model: type[Any], rows: Sequence[Mapping[str, Any]]) -> None:
    mapper: Mapper[Any] = inspect(model)
    columns = {name: mapper.columns[name] for name in rows[0]}
    for name, each in columns.items():
        if isinstance(each.type, ARRAY):
            raise TypeError(f"update_many can't set {model.__name__}.{name}, an array: update such rows one by one")
    arrays = [literal([row[name] for row in rows], ARRAY(each.type)) for name, each in columns.items()]
    named = (column(name, each.type) for name, each in columns.items())
    given = func.unnest(*arrays).table_valued(*named).render_derived(name="given")
    same_row = [attribute == given.c[attribute.key] for attribute in key_attributes(model)]
    version = mapper.version_id_col
    values: dict[str, Any] = {name: given.c[name] for name in columns if name not in key_names(model)}
    if version is not None and version.key in values:
        same_row.append(version == values.pop(version.key))
    statement = sql_update(model).where(*same_row).values(_moving_version(model, values))
    statement = statement.returning(*key_attributes(model))
    written = (await session.execute(statement, execution_options={"synchronize_session": False})).all()
    if len(written) < len(rows):
        raise StaleRow(f"{len(rows) - len(written)} of {len(rows)} {model.__name__} rows have another version by now")


def _moving_version(model: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    version = inspect(model).version_id_col
    return dict(values) if version is None else {**values, version.key: version + 1}


async def _execute(
    session: AsyncSession,
    statement: Executable,
    rows: Sequence[Mapping[str, Any]],
    *,
    first: int,
    returning: bool = True,
) -> Sequence[Any]:
    """Run the statement with all rows; if one is refused, find out which."""

    async def attempt(some: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
        async with session.begin_nested():
            result = await session.execute(statement, some)
            return result.all() if returning else []

    try:
        return await attempt(rows)
    except StatementError as error:
        if isinstance(error, DatabaseError) and not isinstance(error, IntegrityViolation | InvalidValue):
            raise
    # The caller's savepoint undoes what is written here. Rows before the first bad one stay while it is looked for: it
    # may be bad only beside them.
    while len(rows) > 1:
        half = len(rows) // 2
        try:
            await attempt(rows[:half])
        except StatementError:
            rows = rows[:half]
        else:
            rows, first = rows[half:], first + half
    try:
        return await attempt(rows)
    except StatementError as error:
        if isinstance(error, DatabaseError):
            error.row_index = first
        error.add_note(f"row {first} of the input (counted from 0) was refused, so none was written")
        raise


def _held(session: AsyncSession, model: type[Any], keys: Iterable[Any]) -> list[Any]:
    wanted = set(keys)
    return [
        instance
        for instance in session.identity_map.values()
        if isinstance(instance, model) and key_in(inspect(instance).identity) in wanted
    ]


async def _refresh(session: AsyncSession, model: type[Any], keys: Iterable[Any]) -> None:
    held = _held(session, model, keys)
    if held:
        ids = [key_in(inspect(instance).identity) for instance in held]
        await session.execute(
            select(model).where(has_key_in(model, ids)), execution_options={"populate_existing": True}
        )
