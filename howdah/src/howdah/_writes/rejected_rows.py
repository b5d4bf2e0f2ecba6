"""Which row of many was refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, StatementError
from sqlalchemy.ext.asyncio import AsyncSession

from howdah.errors import DatabaseError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


async def write_or_locate_rejected_row(
    session: AsyncSession,
    items: Sequence[ItemT],
    write: Callable[[Sequence[ItemT]], Awaitable[ResultT]],
    *,
    places: Sequence[int] | None = None,
    first: int = 0,
) -> ResultT:
    """Write all the items, and return what `write` returned.

    If one is refused, find out which by writing ever smaller parts, and raise its error with `row_index`: its place in
    the input, which is in `places`, or counts from `first`. What is written on the way is for the caller's savepoint
    to undo.
    """
    start, end = 0, len(items)  # the suspects
    some = end
    refused: StatementError | None = None
    while True:
        try:
            async with session.begin_nested():
                result = await write(items[start:some])
        except StatementError as error:
            if not is_row_error(error):
                raise
            if some - start == 1:
                _name(error, first + start if places is None else places[start])
                raise
            refused, end = error, some
        else:
            if refused is None:
                return result
            # Those before a bad one stay written while it is looked for: it may be bad only beside them.
            start = some
            if start == end:  # what it met was undone by somebody else meanwhile
                raise refused
        some = start + max(1, (end - start) // 2)


def is_row_error(error: StatementError) -> bool:
    """Whether a single row may have caused the error: a constraint, a type or a trigger rejected it."""
    if not isinstance(error, DBAPIError) or isinstance(error, IntegrityError | DataError):
        return True
    return (getattr(error.orig, "sqlstate", None) or "").startswith("P0")  # a trigger's RAISE


def _name(error: StatementError, place: int) -> None:
    if isinstance(error, DatabaseError):
        error.row_index = place
    error.add_note(f"row {place} of the input, counted from 0, was refused, so none was written")
