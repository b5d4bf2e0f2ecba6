"""UPDATE of many rows in one statement: each row to its own values, or all rows to the same values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Column, ColumnElement, CursorResult, Integer, Update, inspect, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapper

from howdah._arrays import unnest_arrays
from howdah._keys import find_free_name, get_key_attributes, has_exact_keys, has_key_in
from howdah._writes.columns import extract_keys, get_version_name, transpose_rows, with_version_increment
from howdah.errors import StaleRow
from howdah.locking import Match, lock_cte, lock_matches

# the caller refreshes the session's objects afterwards
UNSYNCHRONIZED: Final = {"synchronize_session": False}
_POSITION: Final = Column("position", Integer)


async def update_rows(session: AsyncSession, model: type[Any], rows: Sequence[dict[str, Any]]) -> list[Match] | None:
    """Write the rows, and return the keys that have a row; None if all keys have a row and no two the same.

    Rows with the same key are written one after the other.
    """
    keys = extract_keys(model, transpose_rows(rows) or {}) if rows else ()
    differ = has_exact_keys(model) and len({*keys}) == len(keys)
    if differ and await _update_each(session, model, keys, rows):
        return None
    matches = await lock_matches(session, model, keys)
    if not differ:
        rounds: dict[int, list[int]] = {}
        for match in matches:
            rounds.setdefault(match.turn, []).append(match.position)
        for turn in sorted(rounds):
            places = rounds[turn]
            await _update_each(session, model, [keys[place] for place in places], [rows[place] for place in places])
    return matches


async def _update_each(
    session: AsyncSession, model: type[Any], keys: Sequence[Any], rows: Sequence[dict[str, Any]]
) -> bool:
    """Write the rows, which have different keys. Returns False if some of them have no row in the database."""
    mapper: Mapper[Any] = inspect(model)
    sent: dict[str, tuple[Column[Any], Iterable[Any]]] = {
        name: (mapper.columns[name], each) for name, each in (transpose_rows(rows) or {}).items()
    }
    version = get_version_name(model)
    position = find_free_name(model, "howdah_position")
    if version is not None and version in sent:
        sent[position] = (_POSITION, range(len(rows)))
    table, values = unnest_arrays(sent, name=find_free_name(model, "howdah_given"))
    same_row = lock_cte(model, has_key_in(model, keys))[1]
    same_row += [attribute == values.pop(attribute.key) for attribute in get_key_attributes(model)]
    if version is None or version not in values:
        if not values:
            return False
        statement = update(model).where(*same_row).values(with_version_increment(model, values))
        return await execute_update(session, statement) == len(rows)
    same_row.append(mapper.columns[version] == values.pop(version))
    del values[position]
    statement = (
        update(model).where(*same_row).values(with_version_increment(model, values)).returning(table.c[position])
    )
    current = {*(await session.execute(statement, execution_options=UNSYNCHRONIZED)).scalars()}
    if len(current) == len(rows):
        return True
    stale = [
        keys[match.position] for match in await lock_matches(session, model, keys) if match.position not in current
    ]
    if stale:
        shown = ", ".join(map(str, stale[:5])) + (", …" if len(stale) > 5 else "")
        raise StaleRow(f"{len(stale)} {model.__name__} rows have another version by now: {shown}", stale)
    return False


def build_update(model: type[Any], criterion: ColumnElement[bool], values: Mapping[str, Any]) -> Update:
    """An UPDATE that locks the rows that the criterion finds in key order, and sets these values on them."""
    _, same_row = lock_cte(model, criterion)
    return update(model).where(*same_row).values(with_version_increment(model, values))


async def execute_update(session: AsyncSession, statement: Update) -> int:
    """Execute the statement, and return the number of rows that it has written."""
    result = await session.execute(statement, execution_options=UNSYNCHRONIZED)
    assert isinstance(result, CursorResult)
    return result.rowcount
