"""Row locks, taken in one order by everybody."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from sqlalchemy import CTE, ColumnElement, Select, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase

from howdah.errors import NotFound
from howdah.keys import distinct, has_key_in, key_attributes, key_in, key_of

ModelT = TypeVar("ModelT", bound=DeclarativeBase)


async def lock(
    session: AsyncSession, model: type[ModelT], ids: Iterable[Any], *, nowait: bool = False, skip_locked: bool = False
) -> dict[Any, ModelT]:
    """Lock the rows with these keys `FOR UPDATE` until the transaction ends; the objects by key, in key order.

    One statement locks them in ascending key order, so two callers that lock overlapping rows this way wait for each
    other but can't deadlock. (Two calls in one transaction are two orders: lock all at once.) Pending changes are
    flushed first, then every object is read anew even if the session had it: what was read before the lock may be
    stale. Raises `NotFound` with all missing keys; `LockTimeout` after the session's `lock_timeout`, or at once under
    `nowait`. With `skip_locked`, rows that others hold are left out, and so are missing ones: nothing tells them
    apart.
    """
    if nowait and skip_locked:
        raise ValueError("nowait fails where skip_locked leaves out: choose one")
    keys = distinct(model, ids)
    if not keys:
        return {}
    await session.flush()
    statement = (
        select(model)
        .where(has_key_in(model, keys))
        .order_by(*key_attributes(model))
        .with_for_update(of=model, nowait=nowait, skip_locked=skip_locked)
        .execution_options(populate_existing=True)
    )
    locked = {key_of(row): row for row in (await session.scalars(statement)).unique()}
    if not skip_locked and len(locked) < len(keys):
        raise NotFound(model, [key for key in keys if key not in locked])
    return locked


async def lock_keys(session: AsyncSession, model: type[Any], keys: Sequence[Any]) -> set[Any]:
    """Lock the rows as `lock` does, without reading them; the keys that exist. For bulk writes."""
    if not keys:
        return set()
    await session.flush()
    return {key_in(row) for row in await session.execute(_locking(model, has_key_in(model, keys)))}


def locked(model: type[Any], criterion: ColumnElement[bool]) -> tuple[CTE, list[ColumnElement[bool]]]:
    """The keys of the rows that the criterion finds, and the condition that joins them to a write of the model's rows:
    these are locked in key order, each before it is written."""
    keys = _locking(model, criterion).cte("howdah_locked")
    return keys, [attribute == keys.c[attribute.key] for attribute in key_attributes(model)]


def _locking(model: type[Any], criterion: ColumnElement[bool]) -> Select[Any]:
    columns = key_attributes(model)
    return select(*columns).where(criterion).order_by(*columns).with_for_update(of=model)
