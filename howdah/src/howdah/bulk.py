"""Writing many rows: any number, from any iterable, in chunks of constant size, all or nothing.

Every function works inside the session's transaction and never commits. If the database or a type rejects a row, the
call writes nothing, even if the caller catches the error and goes on. The error is the one that the row raises when it
is written after the rows before it. Its `row_index` is the row's position in the input, from 0. COMMIT checks deferred
constraints; such an error has no `row_index`.

`chunk_size` is the number of rows that are held in memory and sent in one statement. The default is 20,000. For a list,
which is in memory anyway, it is 100,000.

None is written as NULL and not replaced by a default. (In a JSON column it is JSON's null unless the type has
`none_as_null`, as everywhere in SQLAlchemy.)

What is written to an existing row depends on the kind of the input row. A Pydantic model (or an SQLModel) and a new
mapped object write what was passed to them, a dataclass writes all fields, and a detached object writes what was
changed. An object that doesn't show this is rejected.

If the session holds objects of changed rows, they are refreshed; their relationships must be loaded again. Objects of
deleted rows are expunged.

Existing rows are locked in the order of their keys before they are written. So two updates or deletes of the same rows
wait for each other but can't deadlock. This isn't possible if not all keys are known in advance: in an update of more
than one chunk from anything but a list, and in an upsert of more than one chunk. Two of those can deadlock unless their
inputs are sorted. One of them then raises `DeadlockDetected`, after which `run_transaction` runs its work again.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import ColumnElement, Table, delete, inspect, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase

from howdah._arrays import fits_in_array
from howdah._keys import (
    build_key,
    collect_keys,
    deduplicate,
    get_key_attributes,
    get_key_names,
    has_exact_keys,
    has_key_in,
    normalize_keys,
)
from howdah._writes.columns import extract_keys, get_version_name, transpose_rows
from howdah._writes.copying import MIN_COPY_ROWS, copy_rows
from howdah._writes.inserting import find_present_keys, insert_rows
from howdah._writes.references import find_self_references
from howdah._writes.rejected_rows import write_or_locate_rejected_row
from howdah._writes.rows import (
    LIST_CHUNK_ROWS,
    find_names_to_update,
    normalize_changes,
    normalize_rows,
    reject_non_columns,
    split_into_chunks,
)
from howdah._writes.session_objects import find_objects, has_objects, refresh_objects
from howdah._writes.tables import map_table
from howdah._writes.updating import UNSYNCHRONIZED, build_update, execute_update, update_rows
from howdah._writes.upserting import Upsert, UpsertCounts
from howdah.locking import Match, find_missing_keys, lock_cte, lock_matches

ModelT = TypeVar("ModelT", bound=DeclarativeBase)

Rows: TypeAlias = Iterable[object] | AsyncIterable[object]


@dataclass(frozen=True, slots=True)
class InsertResult:
    """The result of `insert_many`: `keys` are the keys of the new rows, in the order of the input.

    `keys` is empty if it wasn't requested.
    """

    count: int
    keys: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class MatchResult:
    """How many rows of the input had a row in the database, and the keys that had none, in the order of the input.

    PostgreSQL decides which keys are equal. If a function counts each key once, two spellings of a key ('Abc' and 'ABC'
    in a citext column) count as one row. `missing` has the keys as the caller passed them.
    """

    count: int
    missing: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class UpsertResult:
    """How many rows of the input were inserted, how many changed an existing row, and how many left it unchanged.

    A `suppressed` row was not written and has no existing row: a BEFORE INSERT trigger returned NULL for it.
    """

    created: int
    updated: int
    unchanged: int
    suppressed: int = 0


async def insert_many(
    session: AsyncSession,
    model: type[ModelT] | Table,
    rows: Rows,
    *,
    chunk_size: int | None = None,
    keys: bool = True,
) -> InsertResult:
    """Insert the rows. Defaults of Python and of the database apply to attributes that a row doesn't name.

    Twenty rows or more are sent by COPY where that is possible (see `howdah._writes.copying`). A default of `utcnow` is then
    called once for many rows. `keys=False` doesn't collect the keys, for inputs whose keys alone would fill the memory.
    Mapped objects are read, not added to the session. Joined-table inheritance works. A row is written as a `model`,
    not as a subclass of it.

    `model` may be a `Table`, such as the `secondary` of a relationship. Rows then name columns by their `key`. The keys
    of a table without a primary key are not returned.

    Rows that a BEFORE INSERT trigger suppresses aren't counted, and the result has no key for them. There is one
    exception: if the rows name their keys and the trigger suppresses a row because its key exists, that row is counted.

    A row may refer to any other row of its chunk by a foreign key that the model declares, in any order. A reference to
    a row of a later chunk raises `ForeignKeyViolation`.
    """
    if isinstance(model, Table):
        mapped: type[Any] = map_table(model)
        keys = keys and bool(model.primary_key.columns)
    else:
        mapped = model
    references = find_self_references(mapped)
    # Two rows can refer to each other. PostgreSQL checks foreign keys at the end of a statement, and a COPY is one.
    min_rows = 2 if references else MIN_COPY_ROWS
    first = count = 0
    made: list[Any] = []
    # A single chunk needs none: its write opens a savepoint itself.
    is_one_chunk = isinstance(rows, Sequence) and len(rows) <= (chunk_size or LIST_CHUNK_ROWS)
    savepoint = nullcontext() if is_one_chunk else session.begin_nested()
    async with savepoint, aclosing(split_into_chunks(rows, chunk_size)) as chunks:
        async for chunk in chunks:
            new = await copy_rows(session, mapped, chunk, keys=keys) if len(chunk) >= min_rows else None
            if new is None:
                new = await insert_rows(session, mapped, chunk, references, first=first, keys=keys)
            if new.count < len(chunk) and new.keys:
                new = await find_present_keys(session, mapped, new.keys)
            made += new.keys
            first, count = first + len(chunk), count + new.count
    return InsertResult(count, made)


async def upsert_many(
    session: AsyncSession,
    model: type[ModelT],
    rows: Rows,
    *,
    on: Sequence[str] | None = None,
    update: Sequence[str] | None = None,
    chunk_size: int | None = None,
) -> UpsertResult:
    """Insert the rows. If a row with the same `on` attributes exists, set the `update` attributes on it instead.

    `on` defaults to the key. It must have a unique constraint or index. A row with a NULL in `on` is always inserted.
    `update` defaults to all attributes that the rows name except `on` and the key. The key never changes. With
    `update=[]` existing rows stay unchanged.

    If a row already stores the same values, byte for byte, it isn't written: `updated_at` and `version` only change
    with other values. All rows must name the same attributes. They can't name `version`. If several rows of the input
    have the same `on` values, the result and the counts are as if they had been written one by one.

    In a view, and before PostgreSQL 18 in a partitioned table, rows are locked first and written by a second statement.
    BEFORE INSERT triggers can then run twice.
    """
    _refuse_many_tables(model)
    if isinstance(on, str) or isinstance(update, str):
        raise TypeError("`on` and `update` are lists of attribute names, not one name")
    names, version = get_key_names(model), get_version_name(model)
    target = names if on is None else tuple(on)
    if not target:
        raise ValueError("`on` must name at least one attribute: leave it out to find rows by their key")
    if inspect(model).local_table.description == "excluded":
        raise TypeError(
            "upsert_many can't write to a table named `excluded`: PostgreSQL uses that name for the new row"
        )
    reject_non_columns(model, (*target, *(update or ())))
    if update is not None and not {*target, *names, version}.isdisjoint(update):
        raise ValueError(f"`update` can't name the key, the version or an attribute of `on`: {', '.join(update)}")
    count, total = 0, UpsertCounts()
    async with session.begin_nested(), aclosing(split_into_chunks(rows, chunk_size)) as chunks:
        async for chunk in chunks:
            values = normalize_rows(model, chunk, first=count)
            _refuse_uneven(values, {*target, *(update or ())}, first=count)
            if version in values[0]:
                raise ValueError(f"upsert_many can't check a version: leave {version} out of the rows")
            if update is None:
                set_names = find_names_to_update(model, chunk, values, first=count)
                changed = [name for name in set_names if name not in (*target, *names)]
            else:
                changed = list(update)
            upsert = Upsert(session, model, target, changed, keys=has_objects(session, model))
            written = await write_or_locate_rejected_row(session, values, upsert.write, first=count)
            await refresh_objects(session, model, written.changed)
            total, count = total + written, count + len(values)
    unchanged = count - total.created - total.updated - total.suppressed
    return UpsertResult(total.created, total.updated, unchanged, total.suppressed)


async def update_many(
    session: AsyncSession, model: type[ModelT], rows: Rows, *, chunk_size: int | None = None
) -> MatchResult:
    """Update each row to its own values. A row names its key and the values to set.

    All rows must name the same attributes. `onupdate` columns and `version` are updated, too. If the rows name their
    `version`, it must be the current one. Otherwise `StaleRow` is raised with the keys of the chunk's stale rows.
    Arrays, and columns whose type writes values by an SQL expression, can't be set. Rows with the same key are written
    one after the other.
    """
    _refuse_many_tables(model)
    count = 0
    missing: list[Any] = []
    async with session.begin_nested(), aclosing(split_into_chunks(rows, chunk_size)) as chunks:
        async for chunk in chunks:
            if count == 0 and isinstance(rows, Sequence) and len(rows) > len(chunk):
                await lock_matches(session, model, _all_keys(model, rows, len(chunk)))
            values = normalize_changes(model, chunk, first=count)
            columns = _refuse_uneven(values, get_key_names(model), first=count)
            _refuse_what_no_array_holds(model, columns)
            keys = extract_keys(model, columns, first=count)
            write = partial(update_rows, session, model)
            matches = await write_or_locate_rejected_row(session, values, write, first=count)
            await refresh_objects(session, model, _matched_keys(keys, matches))
            missing += _missing(keys, matches)
            count += len(values)
    return MatchResult(count - len(missing), missing)


async def update_by_key(
    session: AsyncSession, model: type[ModelT], ids: Iterable[Any], values: Mapping[str, Any]
) -> MatchResult:
    """Set the same `values` (or SQL expressions) on every row with one of these keys.

    There may be any number of keys; each counts once. The rows are locked in key order first. `onupdate` columns and
    `version` are updated, too.
    """
    _refuse_to_set(model, values)
    is_exact = has_exact_keys(model)

    async def write(keys: Sequence[Any]) -> list[Match] | None:
        statement = build_update(model, has_key_in(model, keys), values) if values else None
        if statement is not None and is_exact and await execute_update(session, statement) == len(keys):
            return None
        matches = await lock_matches(session, model, keys)
        if statement is not None and not is_exact:
            await execute_update(session, statement)
        return matches

    keys, places = _once_each(model, ids)
    if not keys:
        return MatchResult(0, [])
    async with session.begin_nested():
        matches = await write_or_locate_rejected_row(session, keys, write, places=places)
    await refresh_objects(session, model, _matched_keys(keys, matches))
    count = len(keys) if matches is None else sum(match.turn == 0 for match in matches)
    return MatchResult(count, deduplicate(_missing(keys, matches)))


async def update_where(
    session: AsyncSession, model: type[ModelT], criterion: ColumnElement[bool], values: Mapping[str, Any]
) -> int:
    """Set the same `values` (or SQL expressions) on every row that the criterion finds, and return their number.

    The rows are locked in key order first. `onupdate` columns and `version` are updated, too.
    """
    _refuse_to_set(model, values)
    async with session.begin_nested():
        if not values:
            keys, _ = lock_cte(model, criterion)
            return len((await session.execute(select(*keys.c))).all())
        statement = build_update(model, criterion, values)
        if not has_objects(session, model):
            return await execute_update(session, statement)
        statement = statement.returning(*get_key_attributes(model))
        changed = [build_key(row) for row in await session.execute(statement, execution_options=UNSYNCHRONIZED)]
    await refresh_objects(session, model, changed)
    return len(changed)


async def delete_many(session: AsyncSession, model: type[ModelT], ids: Iterable[Any]) -> MatchResult:
    """Delete every row with one of these keys.

    There may be any number of keys; each counts once. The rows are locked in key order first. The cascades of the
    database apply. Those of the ORM don't.
    """
    _refuse_many_tables(model)

    async def write(keys: Sequence[Any]) -> tuple[list[Match] | None, list[tuple[Any, Any]], list[Any]]:
        await session.flush()
        matches = None if has_exact_keys(model) else await lock_matches(session, model, keys)
        held = await find_objects(session, model, _matched_keys(keys, matches))
        _, same_row = lock_cte(model, has_key_in(model, keys))
        statement = delete(model).where(*same_row).returning(*get_key_attributes(model))
        gone = [build_key(row) for row in await session.execute(statement, execution_options=UNSYNCHRONIZED)]
        return matches, held, gone

    keys, places = _once_each(model, ids)
    if not keys:
        return MatchResult(0, [])
    async with session.begin_nested():
        matches, held, gone = await write_or_locate_rejected_row(session, keys, write, places=places)
    deleted = {*gone}
    for instance, key in held:
        if key in deleted and instance in session:  # a cascade of another expunge may have removed it
            session.expunge(instance)
    if matches is None:
        missing = [key for key in keys if key not in deleted] if len(deleted) < len(keys) else []
    else:
        missing = deduplicate(_missing(keys, [match for match in matches if match.key in deleted]))
    return MatchResult(len(gone), missing)


def _refuse_many_tables(model: type[Any]) -> None:
    tables = [str(table) for table in inspect(model).tables]
    if len(tables) > 1:
        raise TypeError(
            f"{model.__name__} is stored in several tables ({', '.join(tables)}): only insert_many can write it"
        )


def _refuse_to_set(model: type[Any], values: Mapping[str, Any]) -> None:
    _refuse_many_tables(model)
    reject_non_columns(model, values)
    if not {*get_key_names(model), get_version_name(model)}.isdisjoint(values):
        raise ValueError(f"the key and the version of {model.__name__} rows can't be set: {', '.join(values)}")


def _refuse_what_no_array_holds(model: type[Any], names: Iterable[str]) -> None:
    for name in names:
        if not fits_in_array(inspect(model).columns[name]):
            raise TypeError(
                f"update_many can't set {model.__name__}.{name}, because it is an array or its type writes values by "
                "an SQL expression: update such rows one by one"
            )


def _refuse_uneven(rows: Sequence[Mapping[str, Any]], needed: Iterable[str], *, first: int) -> dict[str, list[Any]]:
    """The rows by column. Raises `ValueError` if they name different attributes, or not all of the `needed` ones."""
    columns = transpose_rows(rows)
    if columns is not None and columns.keys() >= {*needed}:
        return columns
    for place, row in enumerate(rows, start=first):
        missing = [name for name in needed if name not in row]
        if missing:
            raise ValueError(f"row {place} of the input, counted from 0, must name {', '.join(missing)}")
        if row.keys() != rows[0].keys():
            raise ValueError(f"row {place} of the input, counted from 0, names other attributes than row {first}")
    raise AssertionError("they are even")


def _all_keys(model: type[Any], rows: Sequence[object], chunk_size: int) -> list[Any]:
    keys: list[Any] = []
    for first in range(0, len(rows), chunk_size):
        part = normalize_changes(model, rows[first : first + chunk_size], first=first)
        keys += extract_keys(model, _refuse_uneven(part, get_key_names(model), first=first), first=first)
    return keys


def _once_each(model: type[Any], ids: Iterable[Any]) -> tuple[Sequence[Any], Sequence[int] | None]:
    """The keys to write, and their first positions in the input; None if these are the same as in the result.

    Exact keys are in the result once. Others are all there: only PostgreSQL knows which of them are equal.
    """
    keys = normalize_keys(model, collect_keys(model, ids))
    if not has_exact_keys(model) or len({*keys}) == len(keys):
        return keys, None
    places: dict[Any, int] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, place)
    return list(places), list(places.values())


def _matched_keys(keys: Sequence[Any], matches: Sequence[Match] | None) -> Sequence[Any]:
    """The keys of the matched rows, as the rows have them; without matches, the requested keys."""
    return keys if matches is None else [match.key for match in matches]


def _missing(keys: Sequence[Any], matches: Sequence[Match] | None) -> list[Any]:
    return [] if matches is None else find_missing_keys(keys, {match.position for match in matches})
