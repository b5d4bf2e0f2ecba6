"""DELETE of many rows, which are locked in key order first."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, Delete, delete
from sqlalchemy.ext.asyncio import AsyncSession

from howdah._keys import build_key, get_key_attributes
from howdah._writes.updating import UNSYNCHRONIZED
from howdah.locking import lock_cte


async def delete_rows(session: AsyncSession, model: type[Any], criterion: ColumnElement[bool]) -> list[Any]:
    """Delete the rows that the criterion finds, and return their keys."""
    statement = _build_delete(model, criterion).returning(*get_key_attributes(model))
    return [build_key(row) for row in await session.execute(statement, execution_options=UNSYNCHRONIZED)]


async def count_deleted_rows(session: AsyncSession, model: type[Any], criterion: ColumnElement[bool]) -> int:
    """Delete the rows that the criterion finds, and return their number."""
    result = await session.execute(_build_delete(model, criterion), execution_options=UNSYNCHRONIZED)
    assert isinstance(result, CursorResult)
    return result.rowcount


def expunge_deleted(session: AsyncSession, objects: Iterable[tuple[Any, Any]], deleted: Collection[Any]) -> None:
    """Expunge the objects whose keys are in `deleted`."""
    for instance, key in objects:
        if key in deleted and instance in session:  # a cascade of another expunge may have removed it
            session.expunge(instance)


def _build_delete(model: type[Any], criterion: ColumnElement[bool]) -> Delete:
    return delete(model).where(*lock_cte(model, criterion).same_row)
