"""Writing many rows: any number, from any iterable, in chunks of constant size, all or nothing.

Every function works inside the session's transaction and never commits. A row that the database or a type refuses
fails the whole, also for a caller who catches the error and goes on; the error is the one that the row raises when it
is written behind the rows before it, with `row_index`, its place in the input from 0. Constraints that are deferred
are checked by COMMIT, which knows no rows.

`chunk_size` is how many rows are held at a time and go in one statement: by default 20,000, of a list, which is in
memory anyway, 100,000.

Values are those that the database shall have: None is NULL, not a default (in a JSON column it is JSON's null unless
the type says `none_as_null`, as everywhere in SQLAlchemy). To rows that exist, a Pydantic model (an SQLModel, too)
writes what was passed to it, a dataclass all fields, a new mapped object what was passed to it, a detached one what was
changed; one that doesn't show that is refused. Objects that the session holds are read anew when their rows are changed
here (their relationships must be loaded again), and expunged when they are deleted.

Rows that are there are locked in the order of their keys before they are written, so that two updates or deletes of
the same rows wait for each other but can't deadlock. Where not all rows can be known before (an update of more than a
chunk from something else than a list, an upsert of more than a chunk), they can, unless the inputs are sorted; the
loser raises `DeadlockDetected`, which `run_transaction` answers by running it again.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

from sqlalchemy import ColumnElement, CursorResult, Insert, Row, Update, delete, insert, inspect, select
from sqlalchemy import update as sql_update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapper

from howdah.arrays import fits_in_array, given
from howdah.columns import columns_of, keys_in, moving_version, new_keys, version_name, with_keys
from howdah.copying import WORTHWHILE_ROWS, copy_rows
from howdah.errors import StaleRow
from howdah.keys import has_key_in, key_attributes, key_in, key_names, keys_from, listed
from howdah.locking import lock_keys, locked
from howdah.refusals import or_name_the_row
from howdah.rows import in_chunks, in_rounds, names_to_update, read_changes, read_rows, refuse_non_columns
from howdah.upserting import Upsert, Written

ModelT = TypeVar("ModelT", bound=DeclarativeBase)

# what the session holds is read anew afterwards
_UNSYNCHRONIZED: Final = {"synchronize_session": False}
Rows: TypeAlias = Iterable[object] | AsyncIterable[object]


@dataclass(frozen=True, slots=True)
class Created:
    """`keys` are those of the new rows, in the order of the input; empty if they weren't wanted."""

    count: int
    keys: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Matched:
    """How many rows of the input had a row in the database, and the keys that had none, in the order of the input."""

    count: int
    missing: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Upserted:
    """How many rows of the input were new, how many changed an existing row, and how many left it as it was. Those that
    are `suppressed` were neither written nor met an existing row: a BEFORE INSERT trigger returned NULL."""

    created: int
    updated: int
    unchanged: int
    suppressed: int = 0


async def insert_many(
    session: AsyncSession, model: type[ModelT], rows: Rows, *, chunk_size: int | None = None, keys: bool = True
) -> Created:
    """Insert the rows. Defaults, Python's and the database's, apply to what a row leaves out.

    Twenty rows or more go by COPY where that can be had (see `howdah.copying`); `utcnow` then makes one time for many.
    `keys=False` doesn't collect the keys, for inputs whose keys alone would fill the memory. Mapped objects are read,
    not added to the session. Joined-table inheritance works; a row is written as a `model`, not as a subclass of it.
    """
    count = 0
    made: list[Any] = []
    async with session.begin_nested(), aclosing(in_chunks(rows, chunk_size)) as chunks:
        async for chunk in chunks:
            new = await copy_rows(session, model, chunk, keys=keys) if len(chunk) >= WORTHWHILE_ROWS else None
            made += await _insert_rows(session, model, chunk, first=count, keys=keys) if new is None else new
            count += len(chunk)
    return Created(count, made)


async def upsert_many(
    session: AsyncSession,
    model: type[ModelT],
    rows: Rows,
    *,
    on: Sequence[str] | None = None,
    update: Sequence[str] | None = None,
    chunk_size: int | None = None,
) -> Upserted:
    """Insert the rows, or where one with the same `on` attributes exists (by default the key), set `update` on it.

    `on` must have a unique constraint or index; NULL in it equals nothing. `update` defaults to all that the rows
    set, without `on` and the key, which never changes; with `update=[]` existing rows are left alone. A row that stores
    those values already, byte for byte, isn't written at all: `updated_at` and `version` move only with a change. All
    rows must name the same attributes, and can't name `version`. Rows that meet each other in `on` come out, and are
    counted, as if they had been written one by one. A view is locked and then written, as is a partitioned table before
    PostgreSQL 18, with its BEFORE INSERT triggers running twice.
    """
    _refuse_many_tables(model)
    if isinstance(on, str) or isinstance(update, str):
        raise TypeError("`on` and `update` are lists of attribute names, not one name")
    names, version = key_names(model), version_name(model)
    target = names if on is None else tuple(on)
    if not target:
        raise ValueError("`on` must name what rows are found by: leave it out for the key")
    if inspect(model).local_table.description == "excluded":
        raise TypeError("upsert_many can't write to a table named `excluded`, as PostgreSQL names the new row")
    refuse_non_columns(model, (*target, *(update or ())))
    if update is not None and not {*target, *names, version}.isdisjoint(update):
        raise ValueError(f"`update` can't name the key, the version or what the row is found by: {', '.join(update)}")
    count, total = 0, Written()
    async with session.begin_nested(), aclosing(in_chunks(rows, chunk_size)) as chunks:
        async for chunk in chunks:
            values = read_rows(model, chunk, first=count)
            _refuse_uneven(values, {*target, *(update or ())}, first=count)
            if version in values[0]:
                raise ValueError(f"upsert_many can't check a version: leave {version} out of the rows")
            if update is None:
                set_names = names_to_update(model, chunk, values, first=count)
                changed = [name for name in set_names if name not in (*target, *names)]
            else:
                changed = list(update)
            upsert = Upsert(session, model, target, changed, keys=_holds_any(session, model))
            written = await or_name_the_row(session, values, upsert.write, first=count)
            await _refresh(session, model, written.changed)
            total, count = total + written, count + len(values)
    unchanged = count - total.created - total.updated - total.suppressed
    return Upserted(total.created, total.updated, unchanged, total.suppressed)


async def update_many(
    session: AsyncSession, model: type[ModelT], rows: Rows, *, chunk_size: int | None = None
) -> Matched:
    """Update rows, each to values of its own: a row names its key and what to set, all rows the same attributes.

    `onupdate` columns and `version` move. Rows that name their `version` must still have it, or `StaleRow` is raised,
    with the keys of a chunk's stale rows. Arrays, and what a type writes by an SQL expression, can't be set so.
    Rows with the same key are written one after the other.
    """
    _refuse_many_tables(model)
    count = 0
    missing: list[Any] = []
    async with session.begin_nested(), aclosing(in_chunks(rows, chunk_size)) as chunks:
        async for chunk in chunks:
            if count == 0 and isinstance(rows, Sequence) and len(rows) > len(chunk):
                await lock_keys(session, model, _all_keys(model, rows, len(chunk)))
            values = read_changes(model, chunk, first=count)
            columns = _refuse_uneven(values, key_names(model), first=count)
            _refuse_what_no_array_holds(model, columns)
            keys = keys_in(model, columns, first=count)
            write = partial(_update_rounds, session, model)
            gone = await or_name_the_row(session, values, write, first=count)
            await _refresh(session, model, keys)
            if gone:
                missing += [key for key in keys if key in gone]
            count += len(values)
    return Matched(count - len(missing), missing)


async def update_by_key(
    session: AsyncSession, model: type[ModelT], ids: Iterable[Any], values: Mapping[str, Any]
) -> Matched:
    """Set the same `values` (or SQL expressions) on every row with one of these keys, however many; each key counts
    once. The rows are locked in key order first; `onupdate` columns and `version` move."""
    _refuse_to_set(model, values)

    async def write(keys: Sequence[Any]) -> set[Any]:
        if not values:
            return {*keys} - await lock_keys(session, model, keys)
        if await _written(session, _update(model, has_key_in(model, keys), values)) == len(keys):
            return set()
        return {*keys} - await lock_keys(session, model, keys)

    keys, places = _once_each(model, ids)
    if not keys:
        return Matched(0, [])
    async with session.begin_nested():
        gone = await or_name_the_row(session, keys, write, places=places)
    await _refresh(session, model, keys)
    return Matched(len(keys) - len(gone), [key for key in keys if key in gone] if gone else [])


async def update_where(
    session: AsyncSession, model: type[ModelT], criterion: ColumnElement[bool], values: Mapping[str, Any]
) -> int:
    """Set the same `values` (or SQL expressions) on every row that the criterion finds; how many those were. The rows
    are locked in key order first; `onupdate` columns and `version` move."""
    _refuse_to_set(model, values)
    async with session.begin_nested():
        if not values:
            keys, _ = locked(model, criterion)
            return len((await session.execute(select(*keys.c))).all())
        statement = _update(model, criterion, values)
        if not _holds_any(session, model):
            return await _written(session, statement)
        statement = statement.returning(*key_attributes(model))
        changed = [key_in(row) for row in await session.execute(statement, execution_options=_UNSYNCHRONIZED)]
    await _refresh(session, model, changed)
    return len(changed)


async def delete_many(session: AsyncSession, model: type[ModelT], ids: Iterable[Any]) -> Matched:
    """Delete every row with one of these keys, however many, locked in key order first; each key counts once. The
    database's cascades apply, the ORM's don't."""
    _refuse_many_tables(model)

    async def write(keys: Sequence[Any]) -> set[Any]:
        _, same_row = locked(model, has_key_in(model, keys))
        statement = delete(model).where(*same_row).returning(*key_attributes(model))
        return {key_in(row) for row in await session.execute(statement, execution_options=_UNSYNCHRONIZED)}

    keys, places = _once_each(model, ids)
    if not keys:
        return Matched(0, [])
    async with session.begin_nested():
        deleted = await or_name_the_row(session, keys, write, places=places)
    for instance in _held(session, model, deleted):
        if instance in session:  # not gone with another one, by a cascade
            session.expunge(instance)
    missing = [key for key in keys if key not in deleted] if len(deleted) < len(keys) else []
    return Matched(len(deleted), missing)


async def _insert_rows(
    session: AsyncSession, model: type[Any], chunk: Sequence[object], *, first: int, keys: bool
) -> Sequence[Any]:
    rows = read_rows(model, chunk, first=first)
    given = {name: [row.get(name) for row in rows] for name in key_names(model)}
    new = new_keys(model, given, len(rows))
    statement = insert(model)
    known = not keys or not any(None in column for column in new.values())
    if not known:  # the database makes them
        statement = statement.returning(*key_attributes(model), sort_by_parameter_order=True)
    write = partial(_insert, session, statement)
    returned = await or_name_the_row(session, with_keys(rows, new), write, first=first)
    if known:
        return keys_in(model, new, first=first) if keys else ()
    return [key_in(row) for row in returned]


async def _insert(session: AsyncSession, statement: Insert, rows: Sequence[Mapping[str, Any]]) -> Sequence[Row[Any]]:
    result = await session.execute(statement, rows, execution_options={"render_nulls": True})
    return result.all() if statement._returning else ()


async def _update_rounds(session: AsyncSession, model: type[Any], rows: Sequence[dict[str, Any]]) -> set[Any]:
    """The keys that have no row."""
    keys = _keys_of(model, rows)
    once = {*keys}
    if len(once) == len(keys) and await _update_each(session, model, keys, rows):
        return set()
    present = await lock_keys(session, model, list(once))
    if len(once) < len(keys):
        there = [row for key, row in zip(keys, rows, strict=True) if key in present]
        for part in in_rounds([*zip(_keys_of(model, there), there, strict=True)], lambda each: each[0]):
            await _update_each(session, model, [key for key, _ in part], [row for _, row in part])
    return once - present


async def _update_each(
    session: AsyncSession, model: type[Any], keys: Sequence[Any], rows: Sequence[dict[str, Any]]
) -> bool:
    """Write the rows, whose keys differ; False if some have no row in the database."""
    mapper: Mapper[Any] = inspect(model)
    columns = columns_of(rows) or {}
    _, values = given({name: (mapper.columns[name], each) for name, each in columns.items()})
    same_row = locked(model, has_key_in(model, keys))[1]
    same_row += [attribute == values.pop(attribute.key) for attribute in key_attributes(model)]
    version = version_name(model)
    checked = version is not None and version in values
    if version is not None and checked:
        same_row.append(mapper.columns[version] == values.pop(version))
    elif not values:
        return False
    statement = sql_update(model).where(*same_row).values(moving_version(model, values))
    if not checked:
        return await _written(session, statement) == len(rows)
    statement = statement.returning(*key_attributes(model))
    current = {key_in(row) for row in await session.execute(statement, execution_options=_UNSYNCHRONIZED)}
    if len(current) == len(rows):
        return True
    present = await lock_keys(session, model, keys)
    stale = [key for key in keys if key in present and key not in current]
    if stale:
        shown = ", ".join(map(str, stale[:5])) + (", …" if len(stale) > 5 else "")
        raise StaleRow(f"{len(stale)} {model.__name__} rows have another version by now: {shown}", stale)
    return False


def _update(model: type[Any], criterion: ColumnElement[bool], values: Mapping[str, Any]) -> Update:
    _, same_row = locked(model, criterion)
    return sql_update(model).where(*same_row).values(moving_version(model, values))


async def _written(session: AsyncSession, statement: Update) -> int:
    result = await session.execute(statement, execution_options=_UNSYNCHRONIZED)
    assert isinstance(result, CursorResult)
    return result.rowcount


def _refuse_many_tables(model: type[Any]) -> None:
    tables = [str(table) for table in inspect(model).tables]
    if len(tables) > 1:
        raise TypeError(f"a {model.__name__} lies in {', '.join(tables)}: only new ones can be written in bulk")


def _refuse_to_set(model: type[Any], values: Mapping[str, Any]) -> None:
    _refuse_many_tables(model)
    refuse_non_columns(model, values)
    if not {*key_names(model), version_name(model)}.isdisjoint(values):
        raise ValueError(f"the key and the version of {model.__name__} rows can't be set: {', '.join(values)}")


def _refuse_what_no_array_holds(model: type[Any], names: Iterable[str]) -> None:
    for name in names:
        if not fits_in_array(inspect(model).columns[name]):
            raise TypeError(
                f"update_many can't set {model.__name__}.{name}, an array or what an SQL expression writes: "
                "update such rows one by one"
            )


def _refuse_uneven(rows: Sequence[Mapping[str, Any]], needed: Iterable[str], *, first: int) -> dict[str, list[Any]]:
    """The rows by column."""
    columns = columns_of(rows)
    if columns is not None and columns.keys() >= {*needed}:
        return columns
    for place, row in enumerate(rows, start=first):
        missing = [name for name in needed if name not in row]
        if missing:
            raise ValueError(f"row {place} of the input, counted from 0, must name {', '.join(missing)}")
        if row.keys() != rows[0].keys():
            raise ValueError(f"row {place} of the input, counted from 0, names other attributes than row {first}")
    raise AssertionError("they are even")


def _keys_of(model: type[Any], rows: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
    return keys_in(model, columns_of(rows) or {}) if rows else ()


def _all_keys(model: type[Any], rows: Sequence[object], chunk_size: int) -> list[Any]:
    keys: list[Any] = []
    for first in range(0, len(rows), chunk_size):
        part = read_changes(model, rows[first : first + chunk_size], first=first)
        keys += keys_in(model, _refuse_uneven(part, key_names(model), first=first), first=first)
    return keys


def _once_each(model: type[Any], ids: Iterable[Any]) -> tuple[Sequence[Any], Sequence[int] | None]:
    """Each key once, and its first place in the input where that isn't its place here."""
    keys = keys_from(model, listed(model, ids))
    if len({*keys}) == len(keys):
        return keys, None
    places: dict[Any, int] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, place)
    return list(places), list(places.values())


def _holds_any(session: AsyncSession, model: type[Any]) -> bool:
    return any(isinstance(instance, model) for instance in session.identity_map.values())


def _held(session: AsyncSession, model: type[Any], keys: Iterable[Any]) -> list[Any]:
    if not _holds_any(session, model):
        return []
    wanted = {*keys}
    return [
        instance
        for instance in session.identity_map.values()
        if isinstance(instance, model) and key_in(inspect(instance).identity) in wanted
    ]


async def _refresh(session: AsyncSession, model: type[Any], keys: Iterable[Any]) -> None:
    by_class: dict[type[Any], list[Any]] = {}
    for instance in _held(session, model, keys):
        by_class.setdefault(type(instance), []).append(key_in(inspect(instance).identity))
    for kind, held in by_class.items():
        statement = select(kind).where(has_key_in(kind, held))
        await session.execute(statement, execution_options={"populate_existing": True})
