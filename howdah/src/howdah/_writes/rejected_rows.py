"""The search for the row that PostgreSQL or a type has rejected in a multi-row write."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, StatementError
from sqlalchemy.ext.asyncio import AsyncSession

from howdah.errors import DatabaseError, PolicyViolation

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


async def write_or_locate_rejected_row(
    session: AsyncSession,
    items: Sequence[ItemT],
    write: Callable[[Sequence[ItemT]], Awaitable[ResultT]],
    positions: Sequence[int],
) -> ResultT:
    """Write all items and return the result of `write`. If an item is rejected, raise its error with its position.

    `positions` are the positions of the items in the input, one for each item. The `row_index` of the error is the
    position of the rejected item. To find the item, the items are written again in ever smaller parts. Call this in a
    savepoint: it undoes the parts that were written before the error.
    """
    start, end = 0, len(items)  # a rejected item is in items[start:end]
    stop = end
    rejection: StatementError | None = None
    while True:
        try:
            async with session.begin_nested():
                result = await write(items[start:stop])
        except StatementError as error:
            if not is_row_error(error):
                raise
            if stop - start == 1:
                _add_position(error, positions[start])
                raise
            rejection, end = error, stop
        else:
            if rejection is None:
                return result
            # These items stay written during the search, because a later item may be rejected only because of them.
            start = stop
            if start == end:  # each item was accepted now: another transaction has removed the cause of the error
                raise rejection
        stop = start + max(1, (end - start) // 2)


def is_row_error(error: StatementError) -> bool:
    """Whether a single row may have caused the error: a constraint, a type, a policy or a trigger rejected it."""
    if not isinstance(error, DBAPIError) or isinstance(error, IntegrityError | DataError | PolicyViolation):
        return True
    return (getattr(error.orig, "sqlstate", None) or "").startswith("P0")  # RAISE in a trigger


def _add_position(error: StatementError, position: int) -> None:
    if isinstance(error, DatabaseError):
        error.row_index = position
    error.add_note(f"row {position} of the input, counted from 0, was rejected, so no row was written")
