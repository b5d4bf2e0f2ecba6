"""Writing many rows: any number, from any iterable, in chunks of constant size, all or nothing.

Every function works inside the session's transaction and never commits. A row that the database or a type refuses
fails the whole, also for a caller who catches the error and goes on; the error is the one that the row raises when it
is written behind the rows before it, with `row_index`, its place in the input from 0. Constraints that are deferred
are checked by COMMIT, which knows no rows.

Values are those that the database shall have: None is NULL, not a default (in a JSON column it is JSON's null unless
the type says `none_as_null`, as everywhere in SQLAlchemy). Objects that the session holds are read anew when their
rows are changed here (what they had loaded of their relationships must be loaded again), and expunged when they are
deleted.

Updates and upserts lock the rows of a chunk in the order of the keys, so that two of one chunk each wait for each
other but can't deadlock. Longer ones can, unless their inputs are sorted; the loser raises `DeadlockDetected`, which
`run_transaction` answers by running it again. `update_by_key` and `delete_many` lock all their rows first.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Hashable, Iterable, Mapping, Sequence, Set
from contextlib import aclosing
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

from sqlalchemy import (
    ARRAY,
    JSON,
    Boolean,
    CursorResult,
    Insert,
    Integer,
    Row,
    Update,
    cast,
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
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapper
from sqlalchemy.sql.dml import ReturningInsert
from sqlalchemy.types import TypeDecorator

from howdah.copying import WORTHWHILE_ROWS, copy_rows
from howdah.errors import StaleRow
from howdah.keys import Array, has_key_in, key_attributes, key_in, key_names, keys_from, listed
from howdah.locking import lock_keys, locked
from howdah.refusals import or_name_the_row
from howdah.rows import (
    CHUNK_ROWS,
    column_names,
    in_chunks,
    in_rounds,
    read_rows,
    refuse_non_columns,
    with_new_keys,
)

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
    """How many rows of the input were new, how many changed an existing row, and how many left it as it was."""

    created: int
    updated: int
    unchanged: int


async def insert_many(
    session: AsyncSession, model: type[ModelT], rows: Rows, *, chunk_size: int = CHUNK_ROWS, keys: bool = True
) -> Created:
    """Insert the rows. Defaults, Python's and the database's, apply to what a row leaves out.

    Twenty rows or more go by COPY where that can be had (see `howdah.copying`).
    `keys=False` doesn't collect the keys, for inputs whose keys alone would fill the memory. Mapped objects are read,
    not added to the session. Joined-table inheritance works; a row is written as a `model`, not as a subclass of it.
    """
    names = key_names(model)
    count = 0
    made: list[Any] = []
    async with session.begin_nested(), aclosing(in_chunks(rows, chunk_size)) as chunks:
        async for chunk in chunks:
            values = with_new_keys(model, read_rows(model, chunk, first=count))
            known = not keys or all(name in row for row in values for name in names)
            returned: Sequence[Row[Any]] = ()
            if not (known and len(values) >= WORTHWHILE_ROWS and await copy_rows(session, model, values)):
                statement = insert(model)
                if not known:  # the database makes them
                    statement = statement.returning(*key_attributes(model), sort_by_parameter_order=True)
                write = partial(_insert, session, statement)
                returned = await or_name_the_row(session, list(enumerate(values, start=count)), write)
            if keys:
                made += _keys_of(model, values, first=count) if known else [key_in(row) for row in returned]
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

    `on` must have a unique constraint or index; NULL in it equals nothing. `update` defaults to all that the rows
    name, without `on` and the key, which never changes; with `update=[]` existing rows are left alone. A row that has
    those values already isn't written at all: `updated_at` and `version` move only with a change. All rows must name
    the same attributes, and can't name `version`. Rows that meet each other in `on` come out, and are counted, as if
    they had been written one by one.
    """
    _refuse_many_tables(model)
    if isinstance(on, str) or isinstance(update, str):
        raise TypeError("`on` and `update` are lists of attribute names, not one name")
    names, version = key_names(model), _version_name(model)
    target = names if on is None else tuple(on)
    refuse_non_columns(model, (*target, *(update or ())))
    if update is not None and not {*target, *names, version}.isdisjoint(update):
        raise ValueError(f"`update` can't name the key, the version or what the row is found by: {', '.join(update)}")
    count = created = updated = 0
    async with session.begin_nested(), aclosing(in_chunks(rows, chunk_size)) as chunks:
        async for chunk in chunks:
            values = read_rows(model, chunk, first=count)
            _refuse_uneven(values, {*target, *(update or ())}, first=count)
            if version in values[0]:
                raise ValueError(f"upsert_many can't check a version: leave {version} out of the rows")
            changed = [n for n in values[0] if n not in (*target, *names)] if update is None else list(update)
            write = partial(_upsert_rounds, session, model, target, changed)
            written = await or_name_the_row(session, list(enumerate(values, start=count)), write)
            old = [key_in(row[1:]) for row in written if not row.is_new]
            await _refresh(session, model, old)
            created, updated, count = created + len(written) - len(old), updated + len(old), count + len(values)
    return Upserted(created, updated, count - created - updated)


async def update_many(
    session: AsyncSession, model: type[ModelT], rows: Rows, *, chunk_size: int = CHUNK_ROWS
) -> Matched:
    """Update rows, each to values of its own: a row names its key and what to set, all rows the same attributes.

    `onupdate` columns and `version` move. Rows that name their `version` must still have it, or `StaleRow` is raised.
    Rows with the same key are written one after the other.
    """
    _refuse_many_tables(model)
    count = 0
    missing: list[Any] = []
    async with session.begin_nested(), aclosing(in_chunks(rows, chunk_size)) as chunks:
        async for chunk in chunks:
            values = read_rows(model, chunk, first=count)
            _refuse_uneven(values, key_names(model), first=count)
            _refuse_arrays(model, values[0])
            keys = _keys_of(model, values, first=count)
            write = partial(_update_rounds, session, model)
            present = await or_name_the_row(session, list(enumerate(zip(keys, values, strict=True), count)), write)
            await _refresh(session, model, present)
            if len(present) < len(keys):
                missing += [key for key in keys if key not in present]
            count += len(values)
    return Matched(count - len(missing), missing)


async def update_by_key(
    session: AsyncSession, model: type[ModelT], ids: Iterable[Any], values: Mapping[str, Any]
) -> Matched:
    """Set the same `values` (or SQL expressions) on every row with one of these keys, however many; each key counts
    once. The rows are locked in key order first; `onupdate` columns and `version` move."""
    _refuse_many_tables(model)
    refuse_non_columns(model, values)
    if not {*key_names(model), _version_name(model)}.isdisjoint(values):
        raise ValueError(f"the key and the version of {model.__name__} rows can't be set: {', '.join(values)}")

    async def write(keys: Sequence[Any]) -> set[Any]:
        if not values or not keys:
            return await lock_keys(session, model, keys)
        given = locked(model, keys)
        same_row = [attribute == given.c[attribute.key] for attribute in key_attributes(model)]
        statement = sql_update(model).where(*same_row).values(_moving_version(model, values))
        if await _written(session, statement) == len(keys):
            return set(keys)
        return await lock_keys(session, model, keys)

    places = _places(model, ids)
    async with session.begin_nested():
        present = await or_name_the_row(session, list(zip(places.values(), places, strict=True)), write)
    await _refresh(session, model, present)
    return Matched(len(present), [key for key in places if key not in present])


async def delete_many(session: AsyncSession, model: type[ModelT], ids: Iterable[Any]) -> Matched:
    """Delete every row with one of these keys, however many, locked in key order first; each key counts once. The
    database's cascades apply, the ORM's don't."""
    _refuse_many_tables(model)

    async def write(keys: Sequence[Any]) -> set[Any]:
        present = await lock_keys(session, model, keys)
        if present:
            statement = delete(model).where(has_key_in(model, list(present)))
            await session.execute(statement, execution_options=_UNSYNCHRONIZED)
        return present

    places = _places(model, ids)
    async with session.begin_nested():
        present = await or_name_the_row(session, list(zip(places.values(), places, strict=True)), write)
    for instance in _held(session, model, present):
        if instance in session:  # not gone with another one, by a cascade
            session.expunge(instance)
    return Matched(len(present), [key for key in places if key not in present])


async def _insert(session: AsyncSession, statement: Insert, rows: Sequence[Mapping[str, Any]]) -> Sequence[Row[Any]]:
    result = await session.execute(statement, rows, execution_options={"render_nulls": True})
    return result.all() if statement._returning else ()


async def _upsert_rounds(
    session: AsyncSession,
    model: type[Any],
    target: Sequence[str],
    changed: Sequence[str],
    rows: Sequence[dict[str, Any]],
) -> list[Row[Any]]:
    def meeting(row: dict[str, Any]) -> Hashable:
        values = tuple(row[name] for name in target)
        return id(row) if None in values else values

    statement = _upsert(model, target, changed)
    written: list[Row[Any]] = []
    for once in in_rounds(rows, meeting):
        once.sort(key=lambda row: [_rank(row[name]) for name in target])
        written += await _insert(session, statement, with_new_keys(model, once))
    return written


async def _update_rounds(
    session: AsyncSession, model: type[Any], rows: Sequence[tuple[Any, dict[str, Any]]]
) -> Set[Any]:
    by_key = dict(rows)
    if len(by_key) == len(rows) and await _update_each(session, model, list(by_key), list(by_key.values())):
        return by_key.keys()
    present = await lock_keys(session, model, list(by_key))
    if len(by_key) < len(rows):
        for once in in_rounds([(key, row) for key, row in rows if key in present], lambda each: each[0]):
            await _update_each(session, model, [key for key, _ in once], [row for _, row in once])
    return present


def _upsert(model: type[Any], target: Sequence[str], changed: Sequence[str]) -> ReturningInsert[Any]:
    mapper: Mapper[Any] = inspect(model)
    statement = pg_insert(model)
    elements = [mapper.columns[name] for name in target]
    if changed:
        columns = [mapper.columns[name] for name in changed]
        set_to: dict[Any, Any] = {each: statement.excluded[each.key] for each in columns}
        differs = or_(*(_comparable(old).is_distinct_from(_comparable(new)) for old, new in set_to.items()))
        for name in column_names(model):
            onupdate: Any = mapper.columns[name].onupdate
            if onupdate is not None and name not in changed:
                set_to[mapper.columns[name]] = onupdate.arg(None) if onupdate.is_callable else onupdate.arg
        for name, value in _moving_version(model, {}).items():
            set_to[mapper.columns[name]] = value
        statement = statement.on_conflict_do_update(index_elements=elements, set_=set_to, where=differs)
    else:
        statement = statement.on_conflict_do_nothing(index_elements=elements)
    # xmax is 0 only in a row version that nobody has locked or replaced: one that this statement made new
    return statement.returning(literal_column("(xmax = 0)", Boolean).label("is_new"), *key_attributes(model))


def _comparable(value: Any) -> Any:
    return cast(value, JSONB) if isinstance(value.type, JSON) and not isinstance(value.type, JSONB) else value


async def _update_each(
    session: AsyncSession, model: type[Any], keys: Sequence[Any], rows: Sequence[Mapping[str, Any]]
) -> bool:
    """Write the rows, whose keys differ; False if some have no row in the database."""
    mapper: Mapper[Any] = inspect(model)
    columns = {name: mapper.columns[name] for name in rows[0]}
    arrays = [literal([row[name] for row in rows], Array(each.type)) for name, each in columns.items()]
    named = (column(name, each.type) for name, each in columns.items())
    given = func.unnest(*arrays).table_valued(*named).render_derived(name="given")
    there = locked(model, keys)
    same_row = [
        condition
        for attribute in key_attributes(model)
        for condition in (attribute == given.c[attribute.key], attribute == there.c[attribute.key])
    ]
    values = {name: given.c[name] for name in columns if name not in key_names(model)}
    version = _version_name(model)
    checked = version is not None and version in values
    if version is not None and checked:
        same_row.append(mapper.columns[version] == values.pop(version))
    elif not values:
        return False
    statement = sql_update(model).where(*same_row).values(_moving_version(model, values))
    if not checked:
        return await _written(session, statement) == len(rows)
    statement = statement.returning(*key_attributes(model))
    current = {key_in(row) for row in await session.execute(statement, execution_options=_UNSYNCHRONIZED)}
    if len(current) == len(rows):
        return True
    present = await lock_keys(session, model, keys)
    stale = [str(key) for key in keys if key in present and key not in current]
    if stale:
        raise StaleRow(f"{len(stale)} {model.__name__} rows have another version by now: {', '.join(stale[:5])}")
    return False


async def _written(session: AsyncSession, statement: Update) -> int:
    result = await session.execute(statement, execution_options=_UNSYNCHRONIZED)
    assert isinstance(result, CursorResult)
    return result.rowcount


def _version_name(model: type[Any]) -> str | None:
    mapper: Mapper[Any] = inspect(model)
    return None if mapper.version_id_col is None else mapper.get_property_by_column(mapper.version_id_col).key


def _moving_version(model: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    mapper: Mapper[Any] = inspect(model)
    name = _version_name(model)
    if name is None or mapper.version_id_generator is False:  # the database moves it
        return dict(values)
    assert mapper.version_id_col is not None
    if not isinstance(mapper.version_id_col.type, Integer):
        raise TypeError(f"{model.__name__}.{name} isn't an integer: bulk writes can't move such a version")
    return {**values, name: mapper.version_id_col + 1}


def _refuse_many_tables(model: type[Any]) -> None:
    tables = [str(table) for table in inspect(model).tables]
    if len(tables) > 1:
        raise TypeError(f"a {model.__name__} lies in {', '.join(tables)}: only new ones can be written in bulk")


def _refuse_arrays(model: type[Any], names: Iterable[str]) -> None:
    for name in names:
        kind = inspect(model).columns[name].type
        if isinstance(kind.impl_instance if isinstance(kind, TypeDecorator) else kind, ARRAY):
            raise TypeError(f"update_many can't set {model.__name__}.{name}, an array: update such rows one by one")


def _refuse_uneven(rows: Sequence[Mapping[str, Any]], needed: Iterable[str], *, first: int) -> None:
    for place, row in enumerate(rows, start=first):
        missing = [name for name in needed if name not in row]
        if missing:
            raise ValueError(f"row {place} of the input, counted from 0, must name {', '.join(missing)}")
        if row.keys() != rows[0].keys():
            raise ValueError(f"row {place} of the input, counted from 0, names other attributes than row {first}")


def _keys_of(model: type[Any], rows: Sequence[Mapping[str, Any]], *, first: int) -> Sequence[Any]:
    names = key_names(model)
    given = [row[names[0]] for row in rows] if len(names) == 1 else [[row[name] for name in names] for row in rows]
    return keys_from(model, given, first=first)


def _places(model: type[Any], ids: Iterable[Any]) -> dict[Any, int]:
    """Each key once, with its first place in the input."""
    keys = keys_from(model, listed(model, ids))
    places = dict(zip(keys, range(len(keys)), strict=True))
    if len(places) < len(keys):
        for place in reversed(range(len(keys))):
            places[keys[place]] = place
    return places


def _rank(value: object) -> tuple[int, Any]:
    """Where a value stands in an order that every process agrees on, whatever the types."""
    if value is None:
        return 2, 0
    if isinstance(value, int | float | Decimal):
        return 0, value
    return 1, str(value)


def _held(session: AsyncSession, model: type[Any], keys: Iterable[Any]) -> list[Any]:
    if not session.identity_map:
        return []
    wanted = set(keys)
    return [
        instance
        for instance in session.identity_map.values()
        if isinstance(instance, model) and key_in(inspect(instance).identity) in wanted
    ]


async def _refresh(session: AsyncSession, model: type[Any], keys: Iterable[Any]) -> None:
    held = [key_in(inspect(instance).identity) for instance in _held(session, model, keys)]
    if held:
        statement = select(model).where(has_key_in(model, held))
        await session.execute(statement, execution_options={"populate_existing": True})
