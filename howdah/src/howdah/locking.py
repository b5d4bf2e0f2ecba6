"""Row locks, always taken in key order, so that two transactions that lock the same rows can't deadlock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import CTE, Column, ColumnClause, ColumnElement, Select, TextClause, func, inspect, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapper
from sqlalchemy.orm.interfaces import CriteriaOption
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import SelectBase
from sqlalchemy.sql.visitors import iterate

from howdah._keys import (
    build_key,
    collect_keys,
    deduplicate,
    find_free_name,
    get_key,
    get_key_attributes,
    has_exact_keys,
    has_key_in,
    join_requested_keys,
    normalize_key,
    normalize_keys,
)
from howdah._sqlalchemy import has_limit, options_of, order_by_of, without_options
from howdah.errors import NotFound

ModelT = TypeVar("ModelT", bound=DeclarativeBase)


class Match(NamedTuple):
    """A requested key that has a row."""

    position: int
    """Its position among the requested keys, from 0."""
    occurrence: int
    """The number of earlier requested keys that belong to the same row."""
    key: Any
    """The key as the row has it."""


class _LockCTE(NamedTuple):
    """A CTE that locks rows, and the conditions that join it to an UPDATE or DELETE of these rows."""

    keys: CTE
    same_row: list[ColumnElement[bool]]


async def lock(
    session: AsyncSession, model: type[ModelT], ids: Iterable[Any], *, nowait: bool = False, skip_locked: bool = False
) -> dict[Any, ModelT]:
    """Lock the rows with these keys `FOR UPDATE` until the transaction ends, and return the objects by key.

    The dictionary is in key order. Its keys are those of the rows, which may differ from the requested keys: in a
    citext column 'ABC' finds the row 'Abc', and the dictionary has it under 'Abc'.

    One statement locks the rows in ascending key order. So two transactions that lock some of the same rows wait for
    each other but can't deadlock. Lock all rows of a transaction in one call: with two calls a deadlock is possible.

    Pending changes are flushed first. Then every object is refreshed, even if the session had it, because its values
    may be older than the lock. If an object depends on more than its own row (joined eager loading,
    `with_polymorphic`, a subquery as `column_property`), a second statement reads it after the lock.

    Raises `NotFound` with all missing keys, as they were requested. Raises `LockTimeout` after the session's
    `lock_timeout`, or immediately with `nowait`. With `skip_locked`, the result leaves out locked rows and missing
    rows, and `NotFound` isn't raised.
    """
    if nowait and skip_locked:
        raise ValueError("lock() takes either nowait or skip_locked, not both: choose one")
    keys = normalize_keys(model, collect_keys(model, ids))
    if not keys:
        return {}
    await session.flush()
    lock_and_read = _lock_and_read if depends_on_own_row_only(inspect(model)) else _lock_then_read
    objects, missing = await lock_and_read(session, model, keys, nowait, skip_locked)
    if missing and not skip_locked:
        raise NotFound(model, deduplicate(missing))
    return {get_key(instance): instance for instance in objects}


async def lock_one(
    session: AsyncSession,
    model: type[ModelT],
    id: Any,
    *,
    where: ColumnElement[bool] | None = None,
    nowait: bool = False,
) -> ModelT:
    """Lock the row with this key `FOR UPDATE` until the transaction ends, and return its refreshed object.

    With `where`, the row must also meet this criterion, after the lock was acquired: a row that another transaction has
    changed meanwhile is checked again. So a criterion that decides who may change a row is never checked on an old row.
    A row that doesn't meet it isn't locked. If the criterion reads other rows (a subquery, a function), a second
    statement checks it after the lock. The other rows aren't locked.

    Pending changes are flushed first. Raises `NotFound` if there is no such row or if it doesn't meet `where`. Raises
    `LockTimeout` like `lock`. To lock several rows, use `lock`: two calls can deadlock.
    """
    key = normalize_key(model, id)
    if where is None:
        return next(iter((await lock(session, model, [key], nowait=nowait)).values()))
    await session.flush()
    values = key if isinstance(key, tuple) else (key,)
    same_key = [column == value for column, value in zip(get_key_attributes(model), values, strict=True)]
    is_checked_by_lock = depends_on_own_row_only(inspect(model)) and _reads_own_columns_only(model, where)
    if is_checked_by_lock:
        reading = _add_for_update(model, _select_refreshed(model), nowait=nowait, skip_locked=False)
    else:
        keys = select(*get_key_attributes(model)).where(*same_key, where)
        if (await session.execute(_lock_select(model, keys, nowait))).first() is None:
            raise NotFound(model, [id])
        if not depends_on_own_row_only(inspect(model)):
            await lock(session, model, [key], nowait=nowait)  # locks the tables of subclasses, too
        reading = _select_refreshed(model)
    found: ModelT | None = (await session.scalars(reading.where(*same_key, where))).unique().one_or_none()
    if found is None:
        raise NotFound(model, [id])
    return found


async def lock_next(session: AsyncSession, statement: Select[Any], limit: int) -> list[Any]:
    """Lock at most `limit` rows of a `select(Model)` that no other transaction has locked, and return the objects.

    Use it for a queue: several workers that call it at once get different rows, and none of them waits
    (`FOR UPDATE SKIP LOCKED`). The rows are locked until the transaction ends, in the order of the statement, or of the
    key if the statement has none. A row that another transaction has changed is compared with the statement's
    conditions again. So the statement must exclude rows that are done:

        jobs = await lock_next(session, select(Job).where(Job.done_at.is_(None)).order_by(Job.id), 10)

    A partial index on the columns of the order, with the conditions as its predicate, avoids a sort. The rows are
    sorted by their values at the start of the statement. Pending changes are flushed first, and the objects are
    refreshed. As in `lock`, a second statement reads the objects if they depend on more than their own rows. If a join
    returns a row several times, it is in the result once, but `limit` counts each: use EXISTS instead (`any()`,
    `has()`). With joined-table inheritance the tables of the selected class are locked, not those of its subclasses.

    Raises `ValueError` for a statement that has a limit of its own, or that selects anything but one mapped class.
    """
    entity = _get_lockable_entity(statement)
    if limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    await session.flush()
    if not order_by_of(statement):
        statement = statement.order_by(*get_key_attributes(entity))
    locking = _add_for_update(entity, statement.limit(limit), nowait=False, skip_locked=True)
    if depends_on_own_row_only(inspect(entity)):
        return [*(await session.scalars(locking, execution_options={"populate_existing": True})).unique()]
    keys = locking.with_only_columns(*get_key_attributes(entity), maintain_column_froms=True)
    # Loader options would fail without the entity. Criteria are kept, because they decide which rows may be locked.
    criteria = [option for option in options_of(statement) if isinstance(option, CriteriaOption)]
    locked = [build_key(row) for row in await session.execute(without_options(keys).options(*criteria))]
    if not locked:
        return []
    reading = _select_refreshed(entity).options(*options_of(statement)).where(has_key_in(entity, locked))
    found = {get_key(instance): instance for instance in (await session.scalars(reading)).unique()}
    return [found[key] for key in locked if key in found]


def _reads_own_columns_only(model: type[Any], criterion: ColumnElement[bool]) -> bool:
    """Whether the criterion is a comparison of columns of the locked row: no subquery, function, text or other table.

    After the wait for a lock, PostgreSQL checks such a criterion again on the changed row.
    """
    tables = inspect(model).tables
    for part in iterate(criterion):
        if isinstance(part, SelectBase | FunctionElement | TextClause):
            return False
        if isinstance(part, ColumnClause) and part.table not in tables:
            return False
    return True


def _get_lockable_entity(statement: Select[Any]) -> Any:
    described = statement.column_descriptions
    entity = described[0].get("entity")
    if len(described) != 1 or entity is None or described[0]["expr"] is not entity or inspect(entity).is_aliased_class:
        raise ValueError("lock_next takes a select(Model): it selects one mapped class, no alias, and nothing else")
    if has_limit(statement):
        raise ValueError("the statement can't have limit() or offset(): pass the limit as an argument of lock_next")
    return entity


async def _lock_and_read(
    session: AsyncSession, model: type[ModelT], keys: Sequence[Any], nowait: bool, skip_locked: bool
) -> tuple[Sequence[ModelT], Sequence[Any]]:
    """Lock and read with one statement. Returns the objects in key order, and the missing keys."""
    statement = _add_for_update(model, _select_refreshed(model), nowait=nowait, skip_locked=skip_locked)
    if has_exact_keys(model):
        keys = deduplicate(keys)
        objects = (await session.scalars(statement.where(has_key_in(model, keys)))).unique().all()
        present = {get_key(instance) for instance in objects} if len(objects) < len(keys) else {*keys}
        return objects, [key for key in keys if key not in present]
    position, same_row = join_requested_keys(model, keys)
    rows = (await session.execute(statement.add_columns(position).where(same_row))).unique().all()
    return [row[0] for row in rows], find_missing_keys(keys, {row[1] - 1 for row in rows})


async def _lock_then_read(
    session: AsyncSession, model: type[ModelT], keys: Sequence[Any], nowait: bool, skip_locked: bool
) -> tuple[Sequence[ModelT], Sequence[Any]]:
    """Lock the rows, also in the tables of subclasses, and then read them. Returns the same as `_lock_and_read`."""
    mapper: Mapper[Any] = inspect(model)
    matches = await lock_matches(session, model, keys, nowait=nowait, skip_locked=skip_locked)
    present = [keys[match.position] for match in matches if match.occurrence == 0]
    keys_by_mapper: dict[Mapper[Any], set[Any]] = {}
    for each in mapper.with_polymorphic_mappers:
        if not {*mapper.tables}.issuperset(each.tables):
            subclass_matches = await lock_matches(session, each.class_, present, nowait=nowait, skip_locked=skip_locked)
            keys_by_mapper[each] = {match.key for match in subclass_matches}
    found = (await session.scalars(_select_refreshed(model).where(has_key_in(model, present)))).unique()
    # With `skip_locked`, the row in the table of a subclass may have been skipped. Then the object isn't returned.
    objects = [one for one in found if get_key(one) in keys_by_mapper.get(inspect(one).mapper, (get_key(one),))]
    return objects, find_missing_keys(keys, {match.position for match in matches})


def _select_refreshed(model: type[Any]) -> Select[Any]:
    return select(model).order_by(*get_key_attributes(model)).execution_options(populate_existing=True)


async def lock_matches(
    session: AsyncSession, model: type[Any], keys: Sequence[Any], *, nowait: bool = False, skip_locked: bool = False
) -> list[Match]:
    """Lock the rows as `lock` does, without reading them. Returns the keys that have a row. For bulk writes."""
    if not keys:
        return []
    await session.flush()
    columns = get_key_attributes(model)
    if has_exact_keys(model):
        statement = _lock_select(model, select(*columns).where(has_key_in(model, keys)), nowait, skip_locked)
        present = {build_key(row) for row in await session.execute(statement)}
        occurrences: Counter[Any] = Counter()
        matches = []
        for index, key in enumerate(keys):
            if key in present:
                matches.append(Match(index, occurrences[key], key))
                occurrences[key] += 1
        return matches
    requested, same_row = join_requested_keys(model, keys)
    requested = requested.label(find_free_name(model, "howdah_position"))
    statement = _lock_select(model, select(*columns, requested).where(same_row), nowait, skip_locked)
    *values, position = statement.cte(find_free_name(model, "howdah_locked")).c
    occurrence = func.row_number().over(partition_by=values, order_by=position)
    found = await session.execute(select(position, occurrence, *values).order_by(position))
    return [Match(number - 1, repetition - 1, build_key(key)) for number, repetition, *key in found]


def find_missing_keys(keys: Sequence[Any], found: Collection[int]) -> list[Any]:
    """The keys that have no row. `found` has the positions of the keys that have a row."""
    return [key for position, key in enumerate(keys) if position not in found] if len(found) < len(keys) else []


def lock_cte(model: type[Any], criterion: ColumnElement[bool]) -> _LockCTE:
    """Build a CTE that locks the rows that match the criterion, in key order, each one before it is written."""
    columns = get_key_attributes(model)
    keys = _lock_select(model, select(*columns).where(criterion)).cte(find_free_name(model, "howdah_locked"))
    return _LockCTE(keys, [attribute == keys.c[attribute.key] for attribute in columns])


def _lock_select(
    model: type[Any], statement: Select[Any], nowait: bool = False, skip_locked: bool = False
) -> Select[Any]:
    ordered = statement.order_by(*get_key_attributes(model))
    return _add_for_update(model, ordered, nowait=nowait, skip_locked=skip_locked)


def _add_for_update(model: type[Any], statement: Select[Any], *, nowait: bool, skip_locked: bool) -> Select[Any]:
    """Add FOR UPDATE OF the model's own tables.

    FOR UPDATE OF the entity would also name the tables of subclasses that `with_polymorphic` adds by an outer join.
    PostgreSQL rejects that.
    """
    return statement.with_for_update(of=inspect(model).tables, nowait=nowait, skip_locked=skip_locked)


def depends_on_own_row_only(mapper: Mapper[Any]) -> bool:
    """Whether all values of an object come from the rows that are locked.

    After the wait for a lock, PostgreSQL reads the locked rows again. It reads other rows as of the statement's start.
    """
    polymorphic = [mapper, *mapper.with_polymorphic_mappers]
    if not all({*mapper.tables}.issuperset(each.tables) for each in polymorphic):
        return False
    for each in polymorphic:
        if any(relationship.lazy in ("joined", False) for relationship in each.relationships):
            return False
        for prop in each.column_attrs:
            column = prop.columns[0]
            if not isinstance(column, Column) and any(isinstance(part, SelectBase) for part in iterate(column)):
                return False
    return True
