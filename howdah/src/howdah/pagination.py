"""Keyset pagination: each page starts where the last one ended, even if rows were inserted or deleted in between.

The primary key is added to the order of the list query, so that the order is total. A cursor holds the sort key of one
row. The page after that row is `WHERE (sort key) > (cursor)`. A cursor is bound to its list query: the order, the
filters and their values.

- `howdah._reads.sort_keys`: the order, how NULLs are ordered, and the condition for the rows after a cursor.
- `howdah._reads.nullability`: whether a sort key can be NULL.
- `howdah._reads.sort_values`: the values of a sort key as PostgreSQL's text, and the types to read them with.
- `howdah._reads.cursors`: the opaque string, and its checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import (
    Alias,
    BigInteger,
    ColumnElement,
    Join,
    Select,
    SelectBase,
    Subquery,
    Table,
    func,
    inspect,
    literal,
    select,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm.interfaces import CriteriaOption
from sqlalchemy.sql import visitors

from howdah._keys import get_key_attributes
from howdah._reads.cursors import Cursors, ListDigest, Position
from howdah._reads.nullability import can_be_null
from howdah._reads.page import Page
from howdah._reads.sort_keys import SortKey, is_after_position, parse_order, reject_unstable_order
from howdah._reads.sort_values import SortValue, SortValues, resolve_cast_types
from howdah._sqlalchemy import (
    has_distinct,
    has_distinct_on,
    has_group_by,
    has_joins,
    has_limit,
    options_of,
    order_by_of,
    requires_unique,
)
from howdah.errors import InvalidCursor

# A page is in memory as a whole, so its size has a bound. `stream` reads any number of rows.
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
    other row is repeated or skipped. A row whose sort key changes in between may be repeated or skipped. With
    `count=True`, a second statement counts all rows of the list query. With an integer, it stops at that number.

    A join must not repeat an object: use `User.orders.any(...)` instead. A cursor isn't valid if the value of a filter
    differs from request to request, such as `now() - 1 day` computed in Python. If the page after a cursor is empty,
    its `previous` leads to the page that ends with the cursor's own row. If the page before a cursor is empty, its
    `next` leads to the page that begins with that row.

    The order may be any expression of columns, because a cursor holds its value as PostgreSQL's text. These can't be
    used: `money`, rows, text search types, types of extensions that the mapping doesn't name, and functions such as
    `now()` and `random()`.

    Raises `InvalidCursor` for a cursor of another list query. Raises `ValueError` or `TypeError` for a list query that
    can't be paginated, or for a limit out of bounds.
    """
    return await paginate_as(None, session, statement, limit=limit, after=after, before=before, count=count)


async def paginate_as(
    item: ColumnElement[Any] | None,
    session: AsyncSession | AsyncConnection,
    statement: Select[Any],
    *,
    limit: int,
    after: str | None,
    before: str | None,
    count: bool | int,
    parameters: Mapping[str, Any] | None = None,
) -> Page[Any]:
    """As `paginate`, but the items are the values of the expression `item`, or objects if it is None.

    `parameters` has the values of parameters that have no value in the statement and in `item`. A cursor is bound to
    them.
    """
    check_page_arguments(limit, after, before, count)
    keys = get_sort_keys(statement)
    cursors = Cursors(keys, lambda: ListDigest(statement, keys).compute(parameters or {}))
    is_backward = before is not None
    cursor = before if is_backward else after
    position = None if cursor is None else cursors.decode(cursor)
    # One extra row is read. It shows whether there is another page.
    page_query = build_page_query(item, statement, keys, position, limit + 1, is_backward=is_backward)
    found, row_count = await _execute(session, page_query, position, parameters)
    has_more = len(found) > limit or (row_count > limit and _can_repeat_objects(statement))
    page = await build_page(session, cursors, found[:limit], position, has_more=has_more, is_backward=is_backward)
    return page if count is False else await add_count(page, session, statement, count, parameters)


def check_page_arguments(limit: int, after: str | None, before: str | None, count: bool | int) -> None:
    """Raise `ValueError` for a limit out of bounds, for two cursors, and for a negative count."""
    if not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"limit must be from 1 to {MAX_LIMIT}, not {limit}")
    if after is not None and before is not None:
        raise ValueError("after and before can't both be given: pass one of them")
    if count is not True and count < 0:
        raise ValueError(f"count must be True, False, or a maximum of at least 0, not {count}")


def build_page_query(
    item: ColumnElement[Any] | None,
    statement: Select[Any],
    keys: Sequence[SortKey],
    position: Position | None,
    limit: int | ColumnElement[int],
    *,
    is_backward: bool,
) -> Select[Any]:
    """The SELECT of a page: each item and its `SortValues`.

    A page before a cursor is read in the opposite order. `build_page` reverses its rows.
    """
    directed_keys = [key.reverse() for key in keys] if is_backward else keys
    page_query = _select_page(item, statement, keys)
    if position is not None:
        is_behind = is_after_position(directed_keys, position.values, inclusive=position.inclusive)
        # with GROUP BY the sort key may be an aggregate, which is compared in HAVING
        page_query = page_query.having(is_behind) if has_group_by(statement) else page_query.where(is_behind)
    return page_query.order_by(*(key.to_order_by() for key in directed_keys)).limit(limit)


async def build_page(
    session: AsyncSession | AsyncConnection,
    cursors: Cursors,
    rows: list[Any],
    position: Position | None,
    *,
    has_more: bool,
    is_backward: bool,
) -> Page[Any]:
    """The page of these rows, with its cursors."""
    if is_backward:
        rows.reverse()
    # Both positions are computed even if no cursor is returned, so that an unsupported order raises an error on the
    # first page.
    first, last = await _get_end_positions(session, cursors.keys, rows, position)
    # The page on the other side of the cursor has the cursor's own row. (It may be empty if that row was deleted.)
    has_next = has_more or is_backward
    has_previous = has_more if is_backward else position is not None
    return Page(
        items=[row[0] for row in rows],
        next=cursors.encode(last) if last is not None and has_next else None,
        previous=cursors.encode(first) if first is not None and has_previous else None,
    )


async def add_count(
    page: Page[Any],
    session: AsyncSession | AsyncConnection,
    statement: Select[Any],
    count: bool | int,
    parameters: Mapping[str, Any] | None,
) -> Page[Any]:
    """The page with the number of rows of the statement, at most `count` if that is a number."""
    if count is True:
        return replace(page, total=await count_rows(session, statement, parameters=parameters))
    total = await count_rows(session, statement, at_most=count + 1, parameters=parameters)
    return replace(page, total=min(total, count), total_capped=total > count)


def _select_page(item: ColumnElement[Any] | None, statement: Select[Any], keys: Sequence[SortKey]) -> Select[Any]:
    """A SELECT of each item and its `SortValues`, without an order and a limit."""
    query = statement.order_by(None)
    if item is not None:
        query = query.with_only_columns(item, maintain_column_froms=True)
    query = query.add_columns(SortValues([(key.raw, key.kind) for key in keys]).label(None))
    if has_distinct(statement):  # ORDER BY must name expressions that are selected
        query = query.add_columns(*(key.raw.label(None) for key in keys))
    return query


# The SQLSTATEs of errors that a cursor can cause. Class 22: a text of the cursor isn't a value of its type. Class 42:
# the sort key has another type now.
_UNREADABLE_SQLSTATES: Final = frozenset(
    {"22003", "22007", "22008", "22009", "22015", "22021", "22023", "22P02", "22P05", "2202E", "22000"}
    | {"42704", "42804", "42846", "42883"}
)


async def _execute(
    session: AsyncSession | AsyncConnection,
    page_query: Select[Any],
    position: Position | None,
    parameters: Mapping[str, Any] | None,
) -> tuple[list[Any], int]:
    """The rows, each once, and the number of rows that PostgreSQL returned.

    PostgreSQL returns more if collections are loaded by a join. Raises `InvalidCursor` if it can't read the values of
    the cursor's position.
    """
    try:
        result = await session.execute(page_query, parameters)
    except DBAPIError as error:
        reject_cursor(position, error)
        raise
    # SQLAlchemy requires unique() only if collections are loaded by a join. In other cases unique() must not be called:
    # it would drop rows that a join repeats, but the limit has counted them.
    if not requires_unique(result):
        rows = [*result.all()]
        return rows, len(rows)
    row_count = 0

    def identify(row: Any) -> tuple[Any, ...]:
        nonlocal row_count
        row_count += 1
        return id(row[0]), *row[1]

    unique_rows = [*result.unique(identify).all()]
    return unique_rows, row_count


def reject_cursor(position: Position | None, error: DBAPIError) -> None:
    """Raise `InvalidCursor` if PostgreSQL can't read the values of the cursor's position."""
    if position is not None and getattr(error, "sqlstate", None) in _UNREADABLE_SQLSTATES:
        raise InvalidCursor(
            "the cursor's values don't fit the sort key, whose type may have changed: start from the first page"
        ) from error


def _can_repeat_objects(statement: Select[Any]) -> bool:
    """Whether a join in the statement itself may repeat an object.

    If a collection is loaded by a join as well, it isn't known which of the two joins has repeated a row. The page then
    has a cursor to a further page, which may be empty.
    """
    if has_group_by(statement) or has_distinct(statement):
        return False
    return has_joins(statement) or len(statement.get_final_froms()) > 1


async def _get_end_positions(
    session: AsyncSession | AsyncConnection, keys: Sequence[SortKey], rows: Sequence[Any], position: Position | None
) -> tuple[Position | None, Position | None]:
    """The positions of the first and the last row.

    If the page has no rows, both are the position of the cursor, with `inclusive=True`. So the next page in either
    direction includes the cursor's own row if that row exists. Both are None if there is no cursor either: then the
    list is empty.
    """
    if not rows:
        if position is None:
            return None, None
        position = position._replace(inclusive=True)
        return position, position
    first, last = rows[0][1], rows[-1][1]
    oids = await resolve_cast_types(session, [(key.column, key.kind) for key in keys], first)
    return Position([*map(SortValue, first[:-1:2], oids)]), Position([*map(SortValue, last[:-1:2], oids)])


def get_entity(statement: SelectBase) -> Any:
    """The mapped class, or the alias of one, that the statement selects. Raises `ValueError` if it selects more."""
    if not isinstance(statement, Select):
        raise ValueError(  # noqa: TRY004  # the same error as for another kind of SELECT
            f"a list query is a select(Model), not a {type(statement).__name__}: select the keys in a subquery, as in "
            "select(Model).where(Model.id.in_(...))"
        )
    described = statement.column_descriptions
    entity = described[0].get("entity")
    if len(described) != 1 or entity is None or described[0]["expr"] is not entity:
        raise ValueError("a list query is a select(Model): it selects one mapped class and nothing else")
    return entity


def reject_own_limit(statement: Select[Any]) -> None:
    """Raise `ValueError` for a statement with a LIMIT or OFFSET of its own, which the page's limit would replace."""
    if has_limit(statement):
        raise ValueError("a list query can't have limit() or offset(): pass them as arguments of the call")


def with_total_order(statement: Select[Any]) -> Select[Any]:
    """The list query, with the columns of the primary key at the end of its order if they aren't in the order already.

    They get the direction of the last sort key, so that one index can serve the whole order.
    """
    clauses = order_by_of(statement)
    keys = [key for clause in clauses for key in parse_order(clause)]
    is_descending = bool(keys) and keys[-1].is_descending
    missing = (
        attribute.expression
        for attribute in get_key_attributes(get_entity(statement))
        if not any(attribute.expression.compare(key.column) for key in keys)
    )
    return statement.order_by(*(column.desc() if is_descending else column for column in missing))


async def count_rows(
    session: AsyncSession | AsyncConnection,
    statement: Select[Any],
    *,
    at_most: int | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> int:
    """The number of rows of the statement, with its LIMIT and DISTINCT. The count stops at `at_most`."""
    counted = statement.order_by(None).subquery()
    if at_most is not None:
        counted = select(literal(1)).select_from(counted).limit(literal(at_most, BigInteger)).subquery()
    rows = select(func.count()).select_from(counted).options(*_get_criteria_options(statement))
    return int((await session.execute(rows, parameters)).scalar_one())


async def has_rows(session: AsyncSession | AsyncConnection, statement: Select[Any]) -> bool:
    """Whether the statement has at least one row."""
    has_any = select(statement.order_by(None).exists()).options(*_get_criteria_options(statement))
    return bool((await session.execute(has_any)).scalar_one())


def _get_criteria_options(statement: Select[Any]) -> list[CriteriaOption]:
    """The statement's `with_loader_criteria`. SQLAlchemy only applies those of the outermost statement."""
    return [option for option in options_of(statement) if isinstance(option, CriteriaOption)]


def get_sort_keys(statement: Select[Any]) -> list[SortKey]:
    """The sort keys of the statement. Raises `ValueError` for a statement that can't be paginated."""
    entity = get_entity(statement)
    reject_own_limit(statement)
    if has_distinct_on(statement):
        raise ValueError(
            "a list query can't have DISTINCT ON: which rows it selects would depend on the page. Put it into a "
            "subquery"
        )
    keys = [key for clause in order_by_of(with_total_order(statement)) for key in parse_order(clause)]
    reject_unstable_order(keys)
    not_null = _get_not_null_columns(entity)
    return [replace(key, nullable=not _contains(not_null, key.column)) for key in keys]


def _contains(columns: Sequence[ColumnElement[Any]], column: ColumnElement[Any]) -> bool:
    # `in` would compare with ==, which makes an SQL expression. Names are compared first, because compare() is slow.
    name = getattr(column, "name", None)
    return any(each.name == name and each.compare(column) for each in columns)


@lru_cache(maxsize=256)
def _get_not_null_columns(entity: Any) -> list[ColumnElement[Any]]:
    """The NOT NULL columns of the entity's own tables.

    A column of another table may be NULL because of an outer join. For a class that is mapped to a union or a subquery,
    these are the columns that aren't NULL in any of its SELECTs. For a class that is aliased to a union or a subquery
    there are none, because every column may be NULL.
    """
    inspected = inspect(entity)
    mapped = [mapper.local_table for mapper in inspected.mapper.iterate_to_root()]
    if mapped == [inspected.selectable] and isinstance(mapped[0], Subquery):
        if any(map(has_group_by, visitors.iterate(mapped[0]))):
            return []  # GROUP BY ROLLUP (column) adds NULLs to the column
        return [column for column in mapped[0].c if not can_be_null(column, mapped)]
    if not (all(isinstance(table, Table) for table in mapped) and _has_only_tables(inspected.selectable)):
        return []
    attributes = [getattr(entity, prop.key, None) for prop in inspected.mapper.column_attrs]
    own = [attribute.expression for attribute in attributes if attribute is not None]
    return [column for column in own if not getattr(column, "nullable", True)]


def _has_only_tables(selectable: Any) -> bool:
    """Whether a FROM element consists of tables, joins of tables and their aliases, without a subquery."""
    if isinstance(selectable, Join):
        return _has_only_tables(selectable.left) and _has_only_tables(selectable.right)
    return _has_only_tables(selectable.element) if isinstance(selectable, Alias) else isinstance(selectable, Table)
