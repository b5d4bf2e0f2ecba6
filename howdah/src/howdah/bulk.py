"""Write any number of rows from any iterable, in chunks of constant size, all or nothing.

Every function runs in the session's transaction and never commits. If one row is rejected, nothing is written, even if
the caller catches the error and continues. The error is that of the first rejected row; `row_index` is its position in
the input, from 0. Deferred constraints are checked by COMMIT, and such an error has no `row_index`.

With `max_rejected`, `insert_many` and `upsert_many` skip up to that many rejected rows, and write all others in the
same transaction. `rejected` in the result has the position and the error of each skipped row. A row is rejected if
PostgreSQL rejects it after the earlier accepted rows have been written. So of two rows with the same unique value the
first is written. If more rows are rejected, the error of the next one is raised, and nothing is written. Memory use
grows with the number of skipped rows, because an error has the statement and the values of its row. The search takes
about 2 log2(n) statements for each rejected row, where n is the number of rows in its chunk.

Only an `IntegrityViolation` or an `InvalidValue` is skipped, in a session of a `Database`. Any other error, such as a
lock timeout, a conflict with another transaction, a lost connection, or an error that a trigger raises, is raised, and
nothing is written. So is the error of a deferred constraint, by COMMIT. If a chunk has a rejected row, its rows are
written in parts. A row that is valid only together with a later row can then be rejected. For an upsert, put parents
before children. `insert_many` does so itself, but rows that refer to each other in a cycle can be rejected. The parts
of an upsert lock existing rows in the order of the input, so two such upserts can deadlock.

The first chunk is read before the session is used. While later chunks are read, the session holds its connection.

`chunk_size` is the number of rows that are held in memory and written together. The default is 20,000. For a list it is
100,000, because its rows are in memory anyway.

None is written as NULL; it isn't replaced by a default. (In a JSON column it is JSON's null unless the type has
`none_as_null`, as everywhere in SQLAlchemy.)

The attributes that are written to an existing row depend on the type of the input row: all names of a mapping, all
fields of a dataclass, the attributes that were set in a Pydantic model (or an SQLModel) or in a new mapped object, and
the changed attributes of a detached object. An object is rejected if it doesn't show which attributes were set.

If the session has objects of changed rows, they are refreshed; their relationships must be loaded again. Objects of
deleted rows are expunged.

Existing rows are locked in key order before they are written. So two updates or deletes of the same rows wait for each
other but can't deadlock. A deadlock is possible if the keys aren't known in advance (an update of more than one chunk
from anything but a list, an upsert of more than one chunk) and the inputs aren't sorted. Then `DeadlockDetected` is
raised, after which `run_transaction` retries.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import ColumnElement, Table, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, QueryableAttribute

from howdah._keys import (
    build_key,
    deduplicate,
    get_key_attributes,
    get_key_names,
    has_exact_keys,
    has_key_in,
)
from howdah._writes.columns import extract_keys, get_version_name, transpose_input_rows
from howdah._writes.conflict_targets import ConflictOn, explain_missing_index
from howdah._writes.copying import MIN_COPY_ROWS, copy_rows
from howdah._writes.deleting import count_deleted_rows, delete_rows, expunge_deleted
from howdah._writes.inputs import (
    check_criterion,
    check_update_values,
    check_upsert,
    collect_keys_of_rows,
    prepare_keys,
    reject_array_keys,
    reject_joined_tables,
)
from howdah._writes.inserting import find_present_keys, insert_rows
from howdah._writes.links import Pairs, find_link_table, get_association_table
from howdah._writes.references import SelfReference, find_self_references
from howdah._writes.rejected_rows import (
    RejectedRows,
    write_and_skip_rejected_rows,
    write_or_locate_rejected_row,
)
from howdah._writes.results import InsertResult, MatchResult, UpsertCounts, UpsertResult
from howdah._writes.rows import (
    LIST_CHUNK_ROWS,
    InsertedRows,
    find_names_to_update,
    normalize_changes,
    normalize_rows,
    open_chunks,
)
from howdah._writes.session_objects import find_objects, has_objects, refresh_objects
from howdah._writes.tables import map_table
from howdah._writes.updating import UNSYNCHRONIZED, KeyMatches, build_update, execute_update, update_rows
from howdah._writes.upserting import Upsert
from howdah.locking import Match, find_missing_keys, lock_cte, lock_matches

ModelT = TypeVar("ModelT", bound=DeclarativeBase)

Rows: TypeAlias = Iterable[object] | AsyncIterable[object]


async def insert_many(
    session: AsyncSession,
    model: type[ModelT] | Table | QueryableAttribute[Any],
    rows: Rows,
    *,
    chunk_size: int | None = None,
    keys: bool = True,
    max_rejected: int = 0,
) -> InsertResult:
    """Insert the rows. If a row doesn't name an attribute, the default of Python or of the database applies.

    Twenty rows or more are sent by COPY if that is possible, otherwise by INSERT. With COPY, a default of `utcnow` is
    called once for many rows. With `keys=False` the result has no keys. Use it if the keys alone would need too much
    memory. Values are read from mapped objects, but the objects aren't added to the session. Joined-table inheritance
    is supported. Every row is written as a `model`, not as a subclass of it.

    `model` may be a `Table`, or a many-to-many relationship, such as `Post.tags`, for its association table. Rows then
    name columns by their `key`. The keys of a table without a primary key aren't returned.

    Rows that a BEFORE INSERT trigger suppresses aren't counted, and the result has no key for them. There is one
    exception: if the rows name their keys and the trigger suppresses a row because its key exists, that row is counted.

    A row may refer to any other row of its chunk by a foreign key that the model declares. The order of these rows
    doesn't matter. A reference to a row of a later chunk raises `ForeignKeyViolation`.

    Up to `max_rejected` rejected rows are skipped. The module's text says which errors these are.
    """
    if isinstance(model, QueryableAttribute):
        model = get_association_table(model)
    if isinstance(model, Table):
        mapped: type[Any] = map_table(model)
        keys = keys and bool(model.primary_key.columns)
    else:
        mapped = model
    references = find_self_references(mapped)
    first = count = 0
    new_keys: list[Any] = []
    rejected = RejectedRows(max_rejected)
    # A single chunk needs no savepoint here, because its write opens one. With `max_rejected` it opens several.
    is_one_chunk = not max_rejected and isinstance(rows, Sequence) and len(rows) <= (chunk_size or LIST_CHUNK_ROWS)
    savepoint = nullcontext() if is_one_chunk else session.begin_nested()  # begins in the `async with` below
    async with open_chunks(rows, chunk_size) as chunks, savepoint:
        async for chunk in chunks:
            skipped = len(rejected.rows)
            written = await _insert_chunk(session, mapped, chunk, references, first=first, keys=keys, rejected=rejected)
            accepted = len(chunk) - (len(rejected.rows) - skipped)
            if written.count < accepted and written.keys:  # a trigger has suppressed rows
                written = await find_present_keys(session, mapped, written.keys)
            new_keys += written.keys
            first, count = first + len(chunk), count + written.count
    return InsertResult(count, new_keys, rejected.in_input_order())


async def _insert_chunk(
    session: AsyncSession,
    model: type[Any],
    chunk: Sequence[object],
    references: Sequence[SelfReference],
    *,
    first: int,
    keys: bool,
    rejected: RejectedRows,
) -> InsertedRows:
    """Insert the rows by COPY if that is possible and faster, otherwise by INSERT.

    `first` is the position of the chunk's first row in the input.
    """
    # Two rows can refer to each other. A COPY is one statement, and PostgreSQL checks foreign keys at the end of a
    # statement.
    if len(chunk) >= (2 if references else MIN_COPY_ROWS):
        copy = await copy_rows(session, model, chunk, keys=keys)
        if copy.is_written:
            return copy.rows
    return await insert_rows(session, model, chunk, references, first=first, keys=keys, rejected=rejected)


async def upsert_many(
    session: AsyncSession,
    model: type[ModelT],
    rows: Rows,
    *,
    on: ConflictOn | None = None,
    update: Sequence[str] | None = None,
    chunk_size: int | None = None,
    max_rejected: int = 0,
) -> UpsertResult:
    """Insert the rows. If a row with the same `on` attributes exists, set the `update` attributes on it instead.

    `on` defaults to the key. It is a list of attributes that have a unique constraint or index, or such a constraint or
    index itself, by its name or as an object. An index may be partial or have expressions. A row with NULL in a unique
    column is always inserted, unless the index has NULLS NOT DISTINCT. `update` defaults to all attributes that the
    rows name, except `on` and the key. The key never changes. With `update=[]` existing rows stay unchanged.

    A partial index finds only rows that meet its predicate. `update` may name an attribute that is part of an index
    expression, because its value may differ between rows that conflict. For a partial index, or one with expressions,
    one more statement finds the equal rows of the input. If the table has BEFORE INSERT triggers, the rows are then
    written one by one.

    If the existing row has the same values, byte for byte, it isn't written, and its `updated_at` and `version` don't
    change. All rows must name the same attributes. They can't name `version`. If several rows of the input have the
    same `on` values, the result and the counts are as if the rows had been written one by one.

    In a view, and before PostgreSQL 18 in a partitioned table, one statement locks the existing rows and another one
    updates them. BEFORE INSERT triggers can then run twice.

    Up to `max_rejected` rejected rows are skipped. The module's text says which errors these are.
    """
    names, version = get_key_names(model), get_version_name(model)
    target = check_upsert(model, on, update)
    count, total, rejected = 0, UpsertCounts(), RejectedRows(max_rejected)
    async with open_chunks(rows, chunk_size) as chunks, session.begin_nested():
        async for chunk in chunks:
            values = normalize_rows(model, chunk, first=count)
            if version in transpose_input_rows(values, (*target.names, *(update or ())), first=count):
                raise ValueError(f"upsert_many can't check a version: leave {version} out of the rows")
            if update is None:
                set_names = find_names_to_update(model, chunk, values, first=count)
                update_names = [name for name in set_names if name not in (*target.names, *names)]
            else:
                update_names = list(update)
            upsert = Upsert(session, model, target, update_names, returns_keys=has_objects(session, model))
            positions = range(count, count + len(values))
            with explain_missing_index(model, target):
                if max_rejected:
                    parts = await write_and_skip_rejected_rows(session, values, upsert.write, positions, rejected)
                    counts = sum((each for _, each in parts), UpsertCounts())
                else:
                    counts = await write_or_locate_rejected_row(session, values, upsert.write, positions)
            await refresh_objects(session, model, counts.changed_keys)
            total, count = total + counts, count + len(values)
    unchanged = count - total.created - total.updated - total.suppressed - len(rejected.rows)
    return UpsertResult(total.created, total.updated, unchanged, total.suppressed, rejected.in_input_order())


async def link(session: AsyncSession, relationship: QueryableAttribute[Any], pairs: Pairs) -> int:
    """Insert links into the association table of a many-to-many relationship. Returns the number of new links.

    `link(session, Post.tags, [(post.id, tag.id), ...])`: each pair has the key of a row of the relationship's own
    model, then the key of a row of the other one. Links that exist stay unchanged. The table's other columns get their
    defaults; to write them, use `insert_many(session, Post.tags, rows)`. The links need a unique constraint. A key
    without a row raises `ForeignKeyViolation`, and nothing is written.

    Loaded relationships that read the association table are expired in the session, so they must be loaded again.
    """
    table = find_link_table(relationship)
    await session.flush()
    result = await upsert_many(session, table.model, table.build_rows(pairs), on=table.names, update=[])
    table.expire_collections(session)
    return result.created


async def unlink(session: AsyncSession, relationship: QueryableAttribute[Any], pairs: Pairs) -> int:
    """Delete links from the association table of a many-to-many relationship. Returns the number of deleted links.

    The pairs have the form of those of `link`. Links that don't exist are ignored. Relationships are expired as by
    `link`.
    """
    table = find_link_table(relationship)
    count = 0
    async with open_chunks(table.build_rows(pairs)) as chunks, session.begin_nested():
        async for chunk in chunks:
            count += await count_deleted_rows(session, table.model, table.match(chunk))
    table.expire_collections(session)
    return count


async def update_many(
    session: AsyncSession, model: type[ModelT], rows: Rows, *, chunk_size: int | None = None
) -> MatchResult:
    """Update each row to its own values. A row of the input names its key and the values to set.

    All rows must name the same attributes. `onupdate` columns and `version` are updated too. If the rows name their
    `version`, it must be the current one. Otherwise `StaleRow` is raised with the keys of the chunk's stale rows.
    Rows with the same key are written one after the other. A statement that sets an array, or a column whose type
    writes values by an SQL expression, has at most 1,000 rows and takes about ten times as long per row.
    """
    reject_joined_tables(model)
    reject_array_keys(model)
    count = 0
    missing: list[Any] = []
    async with open_chunks(rows, chunk_size) as chunks, session.begin_nested():
        async for chunk in chunks:
            if count == 0 and isinstance(rows, Sequence) and len(rows) > len(chunk):
                await lock_matches(session, model, collect_keys_of_rows(model, rows, len(chunk)))
            values = normalize_changes(model, chunk, first=count)
            columns = transpose_input_rows(values, get_key_names(model), first=count)
            # An invalid key raises its error here, with its position in the input.
            extract_keys(model, columns, first=count)
            write, positions = partial(update_rows, session, model), range(count, count + len(values))
            matches = await write_or_locate_rejected_row(session, values, write, positions)
            await refresh_objects(session, model, matches.row_keys)
            missing += matches.missing
            count += len(values)
    return MatchResult(count - len(missing), missing)


async def update_by_key(
    session: AsyncSession, model: type[ModelT], ids: Iterable[Any], values: Mapping[str, Any]
) -> MatchResult:
    """Set the same `values` (or SQL expressions) on every row with one of these keys.

    There may be any number of keys; each counts once. The rows are locked in key order first. `onupdate` columns and
    `version` are updated too.
    """
    check_update_values(model, values)
    is_exact = has_exact_keys(model)

    async def write(keys: Sequence[Any]) -> KeyMatches:
        statement = build_update(model, has_key_in(model, keys), values) if values else None
        if statement is not None and is_exact and await execute_update(session, statement) == len(keys):
            return KeyMatches.of_existing_keys(keys)
        matches = await lock_matches(session, model, keys)
        if statement is not None and not is_exact:
            await execute_update(session, statement)
        return KeyMatches.from_matches(keys, matches)

    keys, positions = prepare_keys(model, ids)
    if not keys:
        return MatchResult(0, [])
    async with session.begin_nested():
        matches = await write_or_locate_rejected_row(session, keys, write, positions)
    await refresh_objects(session, model, matches.row_keys)
    return MatchResult(matches.row_count, deduplicate(matches.missing))


async def update_where(
    session: AsyncSession, model: type[ModelT], criterion: ColumnElement[bool], values: Mapping[str, Any]
) -> int:
    """Set the same `values` (or SQL expressions) on every row that the criterion finds. Returns the number of rows.

    The rows are locked in key order first. `onupdate` columns and `version` are updated too. The criterion and the
    values can read other tables only in subqueries.
    """
    check_update_values(model, values)
    check_criterion(model, criterion)
    async with session.begin_nested():
        if not values:  # nothing to set, but the rows are locked and counted
            keys = lock_cte(model, criterion).keys
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
    reject_joined_tables(model)
    is_exact = has_exact_keys(model)

    async def write(keys: Sequence[Any]) -> tuple[list[Match], list[tuple[Any, Any]], list[Any]]:
        await session.flush()
        matches = [] if is_exact else await lock_matches(session, model, keys)
        objects = await find_objects(session, model, keys if is_exact else [match.key for match in matches])
        return matches, objects, await delete_rows(session, model, has_key_in(model, keys))

    keys, positions = prepare_keys(model, ids)
    if not keys:
        return MatchResult(0, [])
    async with session.begin_nested():
        matches, objects, deleted_keys = await write_or_locate_rejected_row(session, keys, write, positions)
    deleted = {*deleted_keys}
    expunge_deleted(session, objects, deleted)
    if is_exact:
        missing = [key for key in keys if key not in deleted] if len(deleted) < len(keys) else []
    else:
        missing = deduplicate(find_missing_keys(keys, {match.position for match in matches if match.key in deleted}))
    return MatchResult(len(deleted_keys), missing)


async def delete_where(session: AsyncSession, model: type[ModelT], criterion: ColumnElement[bool]) -> int:
    """Delete every row that the criterion finds. Returns the number of rows.

    The rows are locked in key order first. The cascades of the database apply. Those of the ORM don't. The criterion
    can read other tables only in subqueries.
    """
    reject_joined_tables(model)
    check_criterion(model, criterion)
    async with session.begin_nested():
        if not has_objects(session, model):
            return await count_deleted_rows(session, model, criterion)
        if has_exact_keys(model):
            deleted = await delete_rows(session, model, criterion)
            objects = await find_objects(session, model, deleted)
        else:  # the session's objects must be found before their rows are deleted, because PostgreSQL compares the keys
            locked = lock_cte(model, criterion).keys
            keys = [build_key(row) for row in await session.execute(select(*locked.c))]
            objects = await find_objects(session, model, keys)
            deleted = await delete_rows(session, model, has_key_in(model, keys))
    expunge_deleted(session, objects, {*deleted})
    return len(deleted)
