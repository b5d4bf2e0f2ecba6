"""The search for the rows that PostgreSQL or a type has rejected in a multi-row write."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, StatementError
from sqlalchemy.ext.asyncio import AsyncSession

from howdah._writes.results import RejectedRow
from howdah.errors import DatabaseError, IntegrityViolation, InvalidValue, PolicyViolation

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


class RejectedRows:
    """The rejected rows that a bulk write has skipped, at most `limit` of them."""

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise ValueError(f"max_rejected is a number of rows, so it can't be negative, but it is {limit}")
        self.limit = limit
        self.rows: list[RejectedRow] = []

    def in_input_order(self) -> list[RejectedRow]:
        return sorted(self.rows, key=lambda row: row.index)

    def skip(self, error: StatementError, position: int) -> None:
        """Add the row, or raise its error if it can't be skipped or if `limit` rows have been skipped already."""
        if not isinstance(error, IntegrityViolation | InvalidValue):
            _add_position(error, position)
            raise error
        if len(self.rows) == self.limit:
            _add_position(error, position)
            error.add_note(f"{self.limit} rows were rejected before it, and max_rejected allows no more")
            raise error
        error.row_index = position
        _remove_tracebacks(error)
        self.rows.append(RejectedRow(position, error))


async def write_and_skip_rejected_rows(
    session: AsyncSession,
    items: Sequence[ItemT],
    write: Callable[[Sequence[ItemT]], Awaitable[ResultT]],
    positions: Sequence[int],
    rejected: RejectedRows,
) -> list[tuple[Sequence[int], ResultT]]:
    """Write the items in order and skip rejected ones. Returns the positions and the result of each part.

    A part that is rejected is written again in halves, down to single items. So the search takes about 2 log2(n)
    statements for each rejected item. Earlier parts stay written, because an item may be rejected only because of them.
    Call this in a savepoint: it undoes the parts that were written before an error is raised.
    """
    written: list[tuple[Sequence[int], ResultT]] = []
    parts = [range(len(items))]
    while parts:
        part = parts.pop()
        try:
            async with session.begin_nested():
                result = await write(items[part.start : part.stop])
        except StatementError as error:
            if not is_row_error(error):
                raise
            if len(part) == 1:
                rejected.skip(error, positions[part.start])
            else:
                half = len(part) // 2
                parts += [part[half:], part[:half]]
        else:
            written.append((positions[part.start : part.stop], result))
    return written


def is_row_error(error: StatementError) -> bool:
    """Whether a single row may have caused the error: a constraint, a type, a policy or a trigger rejected it."""
    if not isinstance(error, DBAPIError) or isinstance(error, IntegrityError | DataError | PolicyViolation):
        return True
    return (getattr(error.orig, "sqlstate", None) or "").startswith("P0")  # RAISE in a trigger


def _remove_tracebacks(error: BaseException) -> None:
    """Remove the tracebacks of an error that is kept: their frames would keep the rows of the whole chunk in memory."""
    seen: set[int] = set()
    remaining: list[BaseException | None] = [error]
    while remaining:
        each = remaining.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            remaining += [each.__cause__, each.__context__, getattr(each, "orig", None)]


def _add_position(error: StatementError, position: int) -> None:
    if isinstance(error, DatabaseError):
        error.row_index = position
    error.add_note(f"row {position} of the input, counted from 0, was rejected, so no row was written")
