"""Which row of many was refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, StatementError
from sqlalchemy.ext.asyncio import AsyncSession

from howdah.errors import DatabaseError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


async def or_name_the_row(
    session: AsyncSession,
    placed: Sequence[tuple[int, ItemT]],
    write: Callable[[Sequence[ItemT]], Awaitable[ResultT]],
) -> ResultT:
    """Write all the items, each given with its place in the input, and return what `write` returned.

    If one is refused, find out which by writing ever smaller parts, and raise its error with `row_index`. What is
    written on the way is for the caller's savepoint to undo.
    """
    suspects, some = placed, placed
    refused: StatementError | None = None
    while True:
        try:
            async with session.begin_nested():
                result = await write([item for _, item in some])
        except StatementError as error:
            if not _is_of_a_row(error):
                raise
            if len(some) == 1:
                _name(error, some[0][0])
                raise
            refused, suspects = error, some
        else:
            if refused is None:
                return result
            # Those before a bad one stay written while it is looked for: it may be bad only beside them.
            suspects = suspects[len(some) :]
            if not suspects:  # what it met was undone by somebody else meanwhile
                raise refused
        some = suspects[: max(1, len(suspects) // 2)]


def _is_of_a_row(error: StatementError) -> bool:
    return isinstance(error, IntegrityError | DataError) or not isinstance(error, DBAPIError)


def _name(error: StatementError, place: int) -> None:
    if isinstance(error, DatabaseError):
        error.row_index = place
    error.add_note(f"row {place} of the input, counted from 0, was refused, so none was written")
