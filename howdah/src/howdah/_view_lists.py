"""The list queries of a view."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.sql.util import unwrap_order_by

from howdah._reads.unsupported_parts import reject_unordered_model, reject_unsupported_parts
from howdah._sqlalchemy import has_distinct, order_by_of
from howdah.database import Database
from howdah.pagination import get_entity


def build_list_query(
    model: type[Any], criteria: Sequence[ColumnElement[bool]], statement: Select[Any] | None
) -> Select[Any]:
    """The statement with the row filters of the view; without a statement, a SELECT of all rows.

    Raises `ValueError` for a statement that a view can't read.
    """
    reject_unordered_model(model)
    if statement is None:
        return select(model).where(*criteria)
    if get_entity(statement) is not model:
        raise ValueError(f"a list query of this view is a select({model.__name__}), not of another class or an alias")
    reject_unsupported_parts(statement)
    return statement.where(*criteria)


async def stream_lines(
    database: Database,
    body: ColumnElement[bytes],
    list_query: Select[Any],
    parameters: Mapping[str, Any],
    batch: int,
) -> AsyncIterator[bytes]:
    """The `body` of each row of the list query, as a line of NDJSON."""
    async with database.session(read_only=True) as session:
        # with DISTINCT, ORDER BY expressions must be selected
        order = [part for each in order_by_of(list_query) for part in unwrap_order_by(each)]
        columns = [body, *(order if has_distinct(list_query) else ())]
        bodies = list_query.with_only_columns(*columns, maintain_column_froms=True)
        result = await session.stream_scalars(bodies.execution_options(yield_per=batch), parameters)
        try:
            async for line in result:
                # In JSON a newline is only between tokens; in a text it is escaped.
                yield line.replace(b"\n", b" ") + b"\n"
        finally:
            await result.close()
