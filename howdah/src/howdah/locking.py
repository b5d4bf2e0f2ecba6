"""Row locks, taken in one order by everybody."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import CTE, Column, ColumnElement, Select, func, inspect, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapper
from sqlalchemy.sql.selectable import SelectBase
from sqlalchemy.sql.visitors import iterate

from howdah.errors import NotFound
from howdah.keys import (
    distinct,
    free_name,
    has_exact_keys,
    has_key_in,
    key_attributes,
    key_in,
    key_of,
    keys_from,
    listed,
    requested_keys,
)

ModelT = TypeVar("ModelT", bound=DeclarativeBase)


class Match(NamedTuple):
    """A requested key that has a row."""

    position: int
    """Its place among the requested keys, from 0."""
    turn: int
    """How many of the keys before it have the same row."""
    key: Any
    """The key as the row has it."""


async def lock(
    session: AsyncSession, model: type[ModelT], ids: Iterable[Any], *, nowait: bool = False, skip_locked: bool = False
) -> dict[Any, ModelT]:
    """Lock the rows with these keys `FOR UPDATE` until the transaction ends; the objects by key, in key order.

    The dictionary is keyed by the keys as the rows have them, which PostgreSQL may take for equal to what was
    requested: 'ABC' in a citext column finds the row 'Abc', which is here under 'Abc'.

    One statement locks them in ascending key order, so two callers that lock overlapping rows this way wait for each
    other but can't deadlock. (Two calls in one transaction are two orders: lock all at once.) Pending changes are
    flushed first, then every object is read anew even if the session had it: what was read before the lock may be
    stale. Where the object is made of more than its own row (joined eager loading, `with_polymorphic`, a subquery as
    `column_property`), a second statement reads it after the lock.

    Raises `NotFound` with all missing keys, as they were requested; `LockTimeout` after the session's `lock_timeout`,
    or at once under `nowait`. With `skip_locked`, rows that others hold are left out, and so are missing ones: nothing
    tells them apart.
    """
    if nowait and skip_locked:
        raise ValueError("nowait fails where skip_locked leaves out: choose one")
    keys = keys_from(model, listed(model, ids))
    if not keys:
        return {}
    await session.flush()
    read = _lock_and_read if _is_read_from_its_row(inspect(model)) else _lock_then_read
    objects, missing = await read(session, model, keys, nowait, skip_locked)
    if missing and not skip_locked:
        raise NotFound(model, distinct(missing))
    return {key_of(instance): instance for instance in objects}


async def _lock_and_read(
    session: AsyncSession, model: type[ModelT], keys: Sequence[Any], nowait: bool, skip_locked: bool
) -> tuple[Sequence[ModelT], Sequence[Any]]:
    """The objects in key order and the missing keys, by one statement."""
    locking = _for_update(model, _reading_anew(model), nowait=nowait, skip_locked=skip_locked)
    if has_exact_keys(model):
        keys = distinct(keys)
        objects = (await session.scalars(locking.where(has_key_in(model, keys)))).unique().all()
        present = {key_of(instance) for instance in objects} if len(objects) < len(keys) else {*keys}
        return objects, [key for key in keys if key not in present]
    position, same_row = requested_keys(model, keys)
    rows = (await session.execute(locking.add_columns(position).where(same_row))).unique().all()
    return [row[0] for row in rows], missing_keys(keys, {row[1] - 1 for row in rows})


async def _lock_then_read(
    session: AsyncSession, model: type[ModelT], keys: Sequence[Any], nowait: bool, skip_locked: bool
) -> tuple[Sequence[ModelT], Sequence[Any]]:
    """As `_lock_and_read`, by one statement more for each table, and another one that reads."""
    mapper: Mapper[Any] = inspect(model)
    matches = await lock_matches(session, model, keys, nowait=nowait, skip_locked=skip_locked)
    present = [keys[match.position] for match in matches if match.turn == 0]
    held: dict[Mapper[Any], set[Any]] = {}
    for each in mapper.with_polymorphic_mappers:
        if not {*mapper.tables}.issuperset(each.tables):
            of_class = await lock_matches(session, each.class_, present, nowait=nowait, skip_locked=skip_locked)
            held[each] = {match.key for match in of_class}
    found = (await session.scalars(_reading_anew(model).where(has_key_in(model, present)))).unique()
    # With `skip_locked`, a row in the table of a subclass may have been left out.
    objects = [one for one in found if key_of(one) in held.get(inspect(one).mapper, (key_of(one),))]
    return objects, missing_keys(keys, {match.position for match in matches})


def _reading_anew(model: type[Any]) -> Select[Any]:
    return select(model).order_by(*key_attributes(model)).execution_options(populate_existing=True)


async def lock_matches(
    session: AsyncSession, model: type[Any], keys: Sequence[Any], *, nowait: bool = False, skip_locked: bool = False
) -> list[Match]:
    """Lock the rows as `lock` does, without reading them; the keys that have one. For bulk writes."""
    if not keys:
        return []
    await session.flush()
    columns = key_attributes(model)
    if has_exact_keys(model):
        statement = _lock_select(model, select(*columns).where(has_key_in(model, keys)), nowait, skip_locked)
        present = {key_in(row) for row in await session.execute(statement)}
        turns: Counter[Any] = Counter()
        matches = []
        for place, key in enumerate(keys):
            if key in present:
                matches.append(Match(place, turns[key], key))
                turns[key] += 1
        return matches
    requested, same_row = requested_keys(model, keys)
    requested = requested.label(free_name(model, "howdah_position"))
    statement = _lock_select(model, select(*columns, requested).where(same_row), nowait, skip_locked)
    *values, position = statement.cte(free_name(model, "howdah_locked")).c
    turn = func.row_number().over(partition_by=values, order_by=position)
    found = await session.execute(select(position, turn, *values).order_by(position))
    return [Match(place - 1, number - 1, key_in(key)) for place, number, *key in found]


def missing_keys(keys: Sequence[Any], found: Collection[int]) -> list[Any]:
    """The keys whose positions aren't among those of the keys that have a row."""
    return [key for position, key in enumerate(keys) if position not in found] if len(found) < len(keys) else []


def locked(model: type[Any], criterion: ColumnElement[bool]) -> tuple[CTE, list[ColumnElement[bool]]]:
    """The keys of the rows that the criterion finds, and the condition that joins them to a write of the model's rows:
    these are locked in key order, each before it is written."""
    columns = key_attributes(model)
    keys = _lock_select(model, select(*columns).where(criterion)).cte(free_name(model, "howdah_locked"))
    return keys, [attribute == keys.c[attribute.key] for attribute in columns]


def _lock_select(
    model: type[Any], statement: Select[Any], nowait: bool = False, skip_locked: bool = False
) -> Select[Any]:
    ordered = statement.order_by(*key_attributes(model))
    return _for_update(model, ordered, nowait=nowait, skip_locked=skip_locked)


def _for_update(model: type[Any], statement: Select[Any], *, nowait: bool, skip_locked: bool) -> Select[Any]:
    """Lock the model's own tables. The entity itself would also name the tables of subclasses that `with_polymorphic`
    joins to it, whose rows may be absent, and which PostgreSQL then refuses to lock."""
    return statement.with_for_update(of=inspect(model).tables, nowait=nowait, skip_locked=skip_locked)


def _is_read_from_its_row(mapper: Mapper[Any]) -> bool:
    """Whether an object's columns all come from the rows that are locked. What a statement that waits for a lock reads
    from others is as old as the statement."""
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
