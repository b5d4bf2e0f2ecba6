"""INSERT of many rows, each named by its error: for few rows, and where COPY isn't possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

from sqlalchemy import Insert, Row, insert
from sqlalchemy.ext.asyncio import AsyncSession

from howdah.columns import keys_in, new_keys, with_keys
from howdah.keys import key_attributes, key_in, key_names
from howdah.references import SelfReference, parents_first
from howdah.refusals import or_name_the_row
from howdah.rows import read_rows


async def insert_rows(
    session: AsyncSession,
    model: type[Any],
    chunk: Sequence[object],
    references: Sequence[SelfReference],
    *,
    first: int,
    keys: bool,
) -> Sequence[Any]:
    """Insert the rows; their keys in the order of the rows, none if `keys` aren't wanted. `references` are the model's
    foreign keys to itself, `first` is the place of the first row in the input."""
    rows = read_rows(model, chunk, first=first)
    given = {name: [row.get(name) for row in rows] for name in key_names(model)}
    new = new_keys(model, given, len(rows))
    statement = insert(model)
    known = not keys or not any(None in column for column in new.values())
    if not known:  # the database makes them
        statement = statement.returning(*key_attributes(model), sort_by_parameter_order=True)
    write = partial(_insert, session, statement)
    complete = with_keys(rows, new)
    # The rows are written one by one, and in parts to find the one that is refused: each part must come after those
    # that it refers to.
    order = parents_first(references, complete) if references else range(len(rows))
    places = [first + place for place in order]
    returned = await or_name_the_row(session, [complete[place] for place in order], write, places=places)
    if known:
        return keys_in(model, new, first=first) if keys else ()
    by_place = sorted(zip(order, returned, strict=True), key=itemgetter(0))
    return [key_in(row) for _, row in by_place]


async def _insert(session: AsyncSession, statement: Insert, rows: Sequence[Mapping[str, Any]]) -> Sequence[Row[Any]]:
    result = await session.execute(statement, rows, execution_options={"render_nulls": True})
    return result.all() if statement._returning else ()
