"""Keyset pagination: each page starts where the last one ended, even if rows were inserted or deleted in between.

The primary key is added to the order of the list query, so that the order is total. A cursor holds the sort key of one
row. The page after that row is `WHERE (sort key) > (cursor)`. A cursor is bound to its list query: the order, the
filters and their values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import Alias, BigInteger, ColumnElement, Join, Select, Subquery, Table, func, inspect, literal, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm.interfaces import CriteriaOption
from sqlalchemy.sql import visitors

from howdah._keys import key_attributes
from howdah._reads.cursors import Cursors, Position
from howdah._reads.nullability import can_be_null
from howdah._reads.page import Page
from howdah._reads.sort_keys import SortKey, follows, parse_order, refuse_unstable
from howdah._reads.sort_values import SortValue, SortValues, read_types
from howdah.errors import InvalidCursor

MAX_LIMIT: Final = 1000


async def paginate(
    session: AsyncSession,
    statement: Select[Any],
    *,
    limit: int = 50,
    after: str | None = None,
    before: str | None = None,
    count: bool | int = False,
) -> Page[Any]:
    """One page of a `select(Model)`, in the order of its `order_by`, then of the primary key (see `with_total_order`).

    The page has at most `limit` rows (1 to 1,000) after the cursor `after` or before the cursor `before`. The order may
    mix `asc()`, `desc()`, `nulls_first()` and `nulls_last()`. If rows are inserted or deleted between two pages, no
    other row is repeated or skipped. A row whose sort key changes in between may be repeated or skipped. With `count` a
    second statement counts all rows of the list query. If `count` is an integer, it stops there.

    A join must not repeat an object: filter by `User.orders.any(...)`. A cursor isn't valid if the value of a filter
    differs from request to request, such as `now() - 1 day` computed in Python. An empty page after a cursor has a
    `previous` that leads back and includes the cursor's own row. An empty page before a cursor has such a `next`.

    The order may be any expression of columns, because a cursor holds its value as PostgreSQL's text. These can't be
    used: `money`, rows, text search types, types of extensions that the mapping doesn't name, and functions such as
    `now()` and `random()`.

    Raises `InvalidCursor` for a cursor of another list query. Raises `ValueError` or `TypeError` for a list query that
    can't be paginated, or for a limit out of bounds.
    """
    return await paginate_as(None, session, statement, limit=limit, after=after, before=before, count=count)


async def paginate_as(
    what: ColumnElement[Any] | None,
    session: AsyncSession | AsyncConnection,
    statement: Select[Any],
    *,
    limit: int,
    after: str | None,
    before: str | None,
    count: bool | int,
) -> Page[Any]:
    """As `paginate`, but the items are the values of the expression `what` instead of objects."""
    if not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"limit must be from 1 to {MAX_LIMIT}, not {limit}")
    if after is not None and before is not None:
        raise ValueError("a page follows `after` or comes before `before`, not both")
    if count is not True and count < 0:
        raise ValueError(f"count must be True, False or at least 0, not {count}")
    keys = _sort_keys(statement)
    cursors = Cursors(statement, keys)
    backward = before is not None
    directed = [key.reversed() for key in keys] if backward else keys
    cursor = after if after is not None else before
    position = None if cursor is None else cursors.decode(cursor)
    rows_wanted = _rows_wanted(what, statement, keys)
    if position is not None:
        is_behind = follows(directed, position.values, inclusive=position.inclusive)
        # a condition on an aggregate belongs into HAVING
        rows_wanted = rows_wanted.having(is_behind) if statement._group_by_clauses else rows_wanted.where(is_behind)
    rows_wanted = rows_wanted.order_by(*(key.clause() for key in directed)).limit(limit + 1)
    found, read = await _execute(session, rows_wanted, behind=position)
    more = len(found) > limit or (read > limit and _may_repeat(statement))
    rows = found[:limit]
    if backward:
        rows.reverse()
    # Both are computed even if no cursor is returned, so that an unsupported order raises an error on the first page.
    first, last = await _ends(session, keys, rows, position)
    total, capped = (None, False) if count is False else await _capped_count(session, statement, count)
    # In the other direction there is at least the row that the cursor was made from, or the position of that row.
    return Page(
        items=[row[0] for row in rows],
        next=cursors.encode(last) if last is not None and (more or backward) else None,
        previous=cursors.encode(first) if first is not None and (more if backward else position is not None) else None,
        total=total,
        total_capped=capped,
    )


def _rows_wanted(what: ColumnElement[Any] | None, statement: Select[Any], keys: Sequence[SortKey]) -> Select[Any]:
    """A SELECT of each item and its `SortValues`."""
    wanted = statement.order_by(None)
    if what is not None:
        wanted = wanted.with_only_columns(what, maintain_column_froms=True)
    wanted = wanted.add_columns(SortValues([(key.raw, key.kind) for key in keys]).label(None))
    if statement._distinct:  # ORDER BY must name expressions that are selected
        wanted = wanted.add_columns(*(key.raw.label(None) for key in keys))
    return wanted


# SQLSTATEs if a text of the cursor isn't a value of its type, or if the sort key has another type now: class 22
# (values) and class 42 (types and operators).
_UNREADABLE: Final = frozenset(
    {"22003", "22007", "22008", "22009", "22015", "22021", "22023", "22P02", "22P05", "2202E", "22000"}
    | {"42704", "42804", "42846", "42883"}
)


async def _execute(
    session: AsyncSession | AsyncConnection, rows_wanted: Select[Any], *, behind: Position | None
) -> tuple[list[Any], int]:
    """The rows, and the number of rows that were read if collections are loaded by a join (otherwise 0)."""
    try:
        result = await session.execute(rows_wanted)
    except DBAPIError as error:
        if behind is None or getattr(error, "sqlstate", None) not in _UNREADABLE:
            raise
        raise InvalidCursor("PostgreSQL can't read the cursor's values") from error
    # SQLAlchemy requires unique() only if collections are loaded by a join. In other cases unique() must not be called:
    # it would drop rows that a join repeats, but the limit has counted them. No public attribute tells the cases apart.
    if result._unique_filter_state is None:
        return [*result.all()], 0
    read = 0

    def identify(row: Any) -> tuple[Any, ...]:
        nonlocal read
        read += 1
        return id(row[0]), *row[1]

    return [*result.unique(identify).all()], read


def _may_repeat(statement: Select[Any]) -> bool:
    """Whether a join in the statement itself may repeat an object.

    If a collection is loaded by a join as well, the two kinds of repeated rows look the same. The page then has a
    cursor to a next page, which may be empty.
    """
    if statement._group_by_clauses or statement._distinct:
        return False
    return bool(statement._setup_joins or statement._from_obj or len(statement.get_final_froms()) > 1)


async def _ends(
    session: AsyncSession | AsyncConnection, keys: Sequence[SortKey], rows: Sequence[Any], position: Position | None
) -> tuple[Position | None, Position | None]:
    """The positions of the first and the last row.

    Without rows, both are the position of the cursor, and `inclusive`: a page in either direction includes the cursor's
    own row if that row exists.
    """
    if not rows:
        return (None, None) if position is None else (here := position._replace(inclusive=True), here)
    first, last = rows[0][1], rows[-1][1]
    oids = await read_types(session, [(key.column, key.kind) for key in keys], first)
    return Position([*map(SortValue, first[:-1:2], oids)]), Position([*map(SortValue, last[:-1:2], oids)])


def get_entity(statement: Select[Any]) -> Any:
    """The mapped class, or the alias of one, that the statement selects. Raises `ValueError` if it selects more."""
    described = statement.column_descriptions
    entity = described[0].get("entity")
    if len(described) != 1 or entity is None or described[0]["expr"] is not entity:
        raise ValueError("a listing is a select(Model): one mapped class and nothing else")
    return entity


def reject_own_limit(statement: Select[Any]) -> None:
    """Raise `ValueError` for a statement with a LIMIT or OFFSET of its own, which the page's limit would replace."""
    if statement._has_row_limiting_clause:
        raise ValueError("a listing's limit and offset are arguments, not part of its select()")


def with_total_order(statement: Select[Any]) -> Select[Any]:
    """The list query, with the columns of the primary key at the end of its order if they aren't in the order already.

    They get the direction of the last sort key, so that one index can serve the whole order.
    """
    clauses = statement._order_by_clauses
    known = [key for clause in clauses for key in parse_order(clause)]
    descending = bool(known) and known[-1].descending
    missing = (
        attribute.expression
        for attribute in key_attributes(get_entity(statement))
        if not any(attribute.expression.compare(key.column) for key in known)
    )
    return statement.order_by(*(column.desc() if descending else column for column in missing))


async def count_rows(
    session: AsyncSession | AsyncConnection, statement: Select[Any], *, at_most: int | None = None
) -> int:
    """The number of rows of the statement, with its LIMIT and DISTINCT. `at_most` ends the count at that number."""
    counted = statement.order_by(None).subquery()
    if at_most is not None:
        counted = select(literal(1)).select_from(counted).limit(literal(at_most, BigInteger)).subquery()
    rows = select(func.count()).select_from(counted).options(*_criteria(statement))
    return int((await session.execute(rows)).scalar_one())


async def has_rows(session: AsyncSession | AsyncConnection, statement: Select[Any]) -> bool:
    """Whether the statement has any row."""
    has_any = select(statement.order_by(None).exists()).options(*_criteria(statement))
    return bool((await session.execute(has_any)).scalar_one())


def _criteria(statement: Select[Any]) -> list[CriteriaOption]:
    """The statement's `with_loader_criteria`. SQLAlchemy only applies those of the outermost statement."""
    return [option for option in statement._with_options if isinstance(option, CriteriaOption)]


async def _capped_count(
    session: AsyncSession | AsyncConnection, statement: Select[Any], count: bool | int
) -> tuple[int, bool]:
    if count is True:
        return await count_rows(session, statement), False
    total = await count_rows(session, statement, at_most=count + 1)
    return min(total, count), total > count


def _sort_keys(statement: Select[Any]) -> list[SortKey]:
    """The sort keys of the statement. Raises `ValueError` for a statement that can't be paginated."""
    entity = get_entity(statement)
    reject_own_limit(statement)
    if statement._distinct_on or getattr(statement, "_pre_columns_clause", None) is not None:  # 2.0, 2.1
        raise ValueError("DISTINCT ON can't be paged: which row it takes would depend on the page")
    keys = [key for clause in with_total_order(statement)._order_by_clauses for key in parse_order(clause)]
    refuse_unstable(keys)
    never_null = _never_null(entity)
    return [replace(key, nullable=not _is_one_of(key.column, never_null)) for key in keys]


def _is_one_of(column: ColumnElement[Any], columns: Sequence[ColumnElement[Any]]) -> bool:
    name = getattr(column, "name", None)
    return any(each.name == name and each.compare(column) for each in columns)


@lru_cache(maxsize=256)
def _never_null(entity: Any) -> list[ColumnElement[Any]]:
    """The NOT NULL columns of the entity's own tables.

    A column of another table may be NULL because of an outer join. If the class is mapped to a union or a subquery, its
    columns are those that can't be NULL in any of its SELECTs. If it is aliased to one, they may all be NULL.
    """
    inspected = inspect(entity)
    mapped = [mapper.local_table for mapper in inspected.mapper.iterate_to_root()]
    if mapped == [inspected.selectable] and isinstance(mapped[0], Subquery):
        if any(getattr(part, "_group_by_clauses", ()) for part in visitors.iterate(mapped[0])):
            return []  # GROUP BY ROLLUP (column) adds NULLs to the column
        return [column for column in mapped[0].c if not can_be_null(column, mapped)]
    if not (all(isinstance(table, Table) for table in mapped) and _is_of_tables(inspected.selectable)):
        return []
    attributes = [getattr(entity, prop.key, None) for prop in inspected.mapper.column_attrs]
    own = [attribute.expression for attribute in attributes if attribute is not None]
    return [column for column in own if not getattr(column, "nullable", True)]


def _is_of_tables(selectable: Any) -> bool:
    if isinstance(selectable, Join):
        return _is_of_tables(selectable.left) and _is_of_tables(selectable.right)
    return _is_of_tables(selectable.element) if isinstance(selectable, Alias) else isinstance(selectable, Table)
