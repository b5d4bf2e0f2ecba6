"""Row locks, taken in one order by everybody."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
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
    statement = select(model).order_by(*key_attributes(model)).execution_options(populate_existing=True)
    if has_exact_keys(model) and _is_read_from_its_row(inspect(model)):
        keys = distinct(keys)
        statement = statement.where(has_key_in(model, keys))
        statement = _for_update(model, statement, nowait=nowait, skip_locked=skip_locked)
        locked = {key_of(row): row for row in (await session.scalars(statement)).unique()}
        missing = [key for key in keys if key not in locked] if len(locked) < len(keys) else []
    else:
        matches = await lock_matches(session, model, keys, nowait=nowait, skip_locked=skip_locked)
        missing = missing_keys(keys, matches)
        present = [keys[match.position] for match in matches if match.turn == 0]
        skipped = await _lock_subclass_rows(session, model, present, nowait, skip_locked)
        found = (await session.scalars(statement.where(has_key_in(model, present)))).unique()
        locked = {key_of(row): row for row in found if not skipped(row)}
    if missing and not skip_locked:
        raise NotFound(model, distinct(missing))
    return locked


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
    position, same_row = requested_keys(model, keys)
    requested = select(*columns, position.label(free_name(model, "howdah_position"))).where(same_row)
    rows = _lock_select(model, requested, nowait, skip_locked).cte(free_name(model, "howdah_locked"))
    *key, place = rows.c
    turn = func.row_number().over(partition_by=key, order_by=place)
    found = await session.execute(select(place, turn, *key).order_by(place))
    return [Match(at - 1, number - 1, key_in(values)) for at, number, *values in found]


def missing_keys(keys: Sequence[Any], matches: Sequence[Match]) -> list[Any]:
    """Those of the requested keys that have no row."""
    if len(matches) == len(keys):
        return []
    found = {match.position for match in matches}
    return [key for position, key in enumerate(keys) if position not in found]


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


async def _lock_subclass_rows(
    session: AsyncSession, model: type[Any], keys: Sequence[Any], nowait: bool, skip_locked: bool
) -> Callable[[Any], bool]:
    """Lock the rows of subclasses' tables that are read with the model's, which are locked already; and what tells
    whether an object's row was skipped there."""
    mapper: Mapper[Any] = inspect(model)
    locked: dict[Mapper[Any], set[Any]] = {}
    for each in mapper.with_polymorphic_mappers:
        if not {*mapper.tables}.issuperset(each.tables):
            matches = await lock_matches(session, each.class_, keys, nowait=nowait, skip_locked=skip_locked)
            locked[each] = {match.key for match in matches}
    return lambda row: key_of(row) not in locked.get(inspect(row).mapper, {key_of(row)})


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
