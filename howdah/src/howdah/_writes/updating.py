"""UPDATE of many rows in one statement: each row to its own values, or all rows to the same values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Column, ColumnElement, CursorResult, Integer, Update, inspect, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapper

from howdah._arrays import fits_in_array, list_values, unnest_arrays
from howdah._keys import find_free_name, get_key_attributes, has_exact_keys, has_key_in
from howdah._writes.columns import extract_keys, get_version_name, transpose_rows, with_version_increment
from howdah.errors import StaleRow
from howdah.locking import Match, find_missing_keys, lock_cte, lock_matches

# The caller refreshes the session's objects after the write.
UNSYNCHRONIZED: Final = {"synchronize_session": False}
_POSITION: Final = Column("position", Integer)

# The limits of a statement with columns that can't be sent as arrays. A statement can have at most 32,767 parameters.
# SQLAlchemy compiles such a statement each time, and the time per row grows with the number of rows.
_LISTED_ROWS: Final = 1000
_LISTED_PARAMETERS: Final = 30_000


@dataclass(frozen=True, slots=True)
class KeyMatches:
    """Which of the requested keys have a row.

    For each requested key that has a row, `row_keys` has the key of that row. So it can have a key twice. `row_count`
    counts each row once. `missing` are the requested keys without a row, in the order of the request.
    """

    row_keys: Sequence[Any]
    row_count: int
    missing: list[Any]

    @classmethod
    def of_existing_keys(cls, keys: Sequence[Any]) -> KeyMatches:
        """The result for distinct exact keys that all have a row."""
        return cls(keys, len(keys), [])

    @classmethod
    def from_matches(cls, keys: Sequence[Any], matches: Sequence[Match]) -> KeyMatches:
        """The result for these keys. `matches` has the keys that have a row."""
        return cls(
            row_keys=[match.key for match in matches],
            row_count=sum(match.occurrence == 0 for match in matches),
            missing=find_missing_keys(keys, {match.position for match in matches}),
        )


async def update_rows(session: AsyncSession, model: type[Any], rows: Sequence[dict[str, Any]]) -> KeyMatches:
    """Update each row to its own values. The rows name the same attributes, and there is at least one.

    Rows with the same key are written one after the other.
    """
    keys = extract_keys(model, transpose_rows(rows))
    is_distinct = has_exact_keys(model) and len({*keys}) == len(keys)
    if is_distinct and await _update_all(session, model, keys, rows):
        return KeyMatches.of_existing_keys(keys)
    matches = await lock_matches(session, model, keys)
    if not is_distinct:
        rounds: dict[int, list[int]] = {}
        for match in matches:
            rounds.setdefault(match.occurrence, []).append(match.position)
        for occurrence in sorted(rounds):
            positions = rounds[occurrence]
            await _update_all(session, model, [keys[each] for each in positions], [rows[each] for each in positions])
    return KeyMatches.from_matches(keys, matches)


async def _update_all(
    session: AsyncSession, model: type[Any], keys: Sequence[Any], rows: Sequence[dict[str, Any]]
) -> bool:
    """Update the rows, which have different keys. Raises `StaleRow`.

    Returns True if all keys have a row, and False if some keys have none. It also returns False if the rows have only
    keys: nothing is written then, and it isn't known which keys have a row.
    """
    listed = sum(not fits_in_array(inspect(model).columns[name]) for name in rows[0])
    size = min(_LISTED_ROWS, _LISTED_PARAMETERS // listed) if listed else len(rows)
    if size < len(rows):  # each statement locks only its own rows in key order
        await lock_matches(session, model, keys)
    is_complete = True
    stale: list[Any] = []
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        is_written, stale_keys = await _update_part(session, model, keys[part], rows[part])
        is_complete = is_complete and is_written
        stale += stale_keys
    if stale:
        shown = ", ".join(map(str, stale[:5])) + (", …" if len(stale) > 5 else "")
        message = (
            f"{len(stale)} {model.__name__} rows don't have the version that the input names; read them again: {shown}"
        )
        raise StaleRow(message, stale)
    return is_complete


async def _update_part(
    session: AsyncSession, model: type[Any], keys: Sequence[Any], rows: Sequence[dict[str, Any]]
) -> tuple[bool, Sequence[Any]]:
    """Update the rows by one statement. Returns the result of `_update_all`, and the keys of stale rows."""
    mapper: Mapper[Any] = inspect(model)
    columns: dict[str, tuple[Column[Any], Iterable[Any]]] = {
        name: (mapper.columns[name], each) for name, each in transpose_rows(rows).items()
    }
    listed = {name: each for name, each in columns.items() if not fits_in_array(each[0])}
    sent = {name: each for name, each in columns.items() if name not in listed}
    version = get_version_name(model)
    position = find_free_name(model, "howdah_position")
    if listed or version in sent:
        sent[position] = (_POSITION, range(len(rows)))
    table, values = unnest_arrays(sent, name=find_free_name(model, "howdah_values"))
    same_row = lock_cte(model, has_key_in(model, keys)).same_row
    values.pop(position, None)
    if listed:
        listed_values = list_values(listed, position=position, name=find_free_name(model, "howdah_listed"))
        same_row.append(listed_values.pop(position) == table.c[position])
        values.update(listed_values)
    same_row += [attribute == values.pop(attribute.key) for attribute in get_key_attributes(model)]
    if version is None or version not in values:
        if not values:
            return False, ()
        statement = update(model).where(*same_row).values(with_version_increment(model, values))
        return await execute_update(session, statement) == len(rows), ()
    same_row.append(mapper.columns[version] == values.pop(version))
    statement = (
        update(model).where(*same_row).values(with_version_increment(model, values)).returning(table.c[position])
    )
    written = {*(await session.execute(statement, execution_options=UNSYNCHRONIZED)).scalars()}
    if len(written) == len(rows):
        return True, ()
    # If a row of the input wasn't written, its key has no row, or a row with another version.
    matches = await lock_matches(session, model, keys)
    return False, [keys[match.position] for match in matches if match.position not in written]


def build_update(model: type[Any], criterion: ColumnElement[bool], values: Mapping[str, Any]) -> Update:
    """An UPDATE that sets these values on the rows that the criterion finds. It locks the rows in key order first."""
    same_row = lock_cte(model, criterion).same_row
    return update(model).where(*same_row).values(with_version_increment(model, values))


async def execute_update(session: AsyncSession, statement: Update) -> int:
    """Execute the UPDATE, and return the number of rows that it has written."""
    result = await session.execute(statement, execution_options=UNSYNCHRONIZED)
    assert isinstance(result, CursorResult)
    return result.rowcount
