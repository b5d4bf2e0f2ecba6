"""Prepared pages of a view: list queries of the same structure are built and compiled once.

SQLAlchemy needs 0.4 ms to build the statement of a page and to find it in its cache. Two list queries that have equal
cache keys in SQLAlchemy have the same SQL text. They differ only in the values of their parameters. So the page's
statement is kept for each key of a list query, and sent with the new values.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import BindParameter, ColumnElement, Integer, Select, bindparam
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from howdah._connections.prepared import PreparedSelect
from howdah._reads.cursors import Cursors, ListDigest, Position
from howdah._reads.page import Page
from howdah._reads.sort_values import SortValue
from howdah._sqlalchemy import find_structure, originals_of
from howdah.pagination import (
    add_count,
    build_page,
    build_page_query,
    check_page_arguments,
    get_sort_keys,
    paginate_as,
    reject_cursor,
)

KeyT = TypeVar("KeyT", bound=Hashable)
ValueT = TypeVar("ValueT")

# The driver keeps 100 prepared statements for each connection.
_MAX_LISTS: Final = 64
_MAX_PAGES_OF_LIST: Final = 16


@dataclass(frozen=True, slots=True)
class BoundList:
    """A list query with its plan. `variables` are the keys of the plan's parameters, and the parameters of this query.

    Without a plan SQLAlchemy executes the query.
    """

    list_query: Select[Any]
    plan: _ListPlan | None = None
    variables: Sequence[tuple[str, BindParameter[Any]]] = ()

    def get_values(self) -> dict[str, Any]:
        return {key: bind.effective_value for key, bind in self.variables if not bind.required}


class PagePlans:
    """The prepared pages of a view. `item` is the expression of a row's JSON."""

    def __init__(self, item: ColumnElement[Any], build_list_query: Callable[[Select[Any] | None], Select[Any]]) -> None:
        """`build_list_query` checks the statement of a call, and adds the view's row filters."""
        self._item, self._build_list_query = item, build_list_query
        self._plans: OrderedDict[Hashable, _ListPlan] = OrderedDict()
        self._bound: WeakKeyDictionary[Select[Any], BoundList] = WeakKeyDictionary()
        self._all_rows: BoundList | None = None

    def bind(self, statement: Select[Any] | None) -> BoundList:
        """The list query for the statement of a call. Raises `ValueError` for one that a view can't read."""
        bound = self._all_rows if statement is None else self._bound.get(statement)
        if bound is None:
            bound = self._bind(statement)
            if statement is None:
                self._all_rows = bound
            else:
                self._bound[statement] = bound
        return bound

    def _bind(self, statement: Select[Any] | None) -> BoundList:
        list_query = self._build_list_query(statement)
        if statement is None:
            return BoundList(list_query, _ListPlan(self._item, list_query, ()))
        structure = find_structure(statement)
        if structure is None:
            return BoundList(list_query)
        key, binds = structure
        plan = _find(self._plans, key, _MAX_LISTS, lambda: _ListPlan(self._item, list_query, binds))
        variables = [(planned.key, bind) for planned, bind in zip(plan.binds, binds, strict=True)]
        return BoundList(list_query, plan, variables)

    async def paginate(
        self,
        connection: AsyncConnection,
        bound: BoundList,
        *,
        limit: int,
        after: str | None,
        before: str | None,
        count: bool | int,
        parameters: Mapping[str, Any],
    ) -> Page[Any]:
        """The page, as `paginate_as` reads it."""
        check_page_arguments(limit, after, before, count)
        page = None
        if bound.plan is not None:
            values = {**bound.get_values(), **parameters}
            page = await bound.plan.read(connection, values, limit=limit, after=after, before=before)
        if page is None:
            return await paginate_as(
                self._item,
                connection,
                bound.list_query,
                limit=limit,
                after=after,
                before=before,
                count=count,
                parameters=parameters,
            )
        return page if count is False else await add_count(page, connection, bound.list_query, count, parameters)


class _Place(str):
    """Stands for a text of the cursor in a statement. `number` is that of the sort key."""

    __slots__ = ("number",)
    number: int


@dataclass(frozen=True, slots=True)
class _Shape:
    """The direction of a page and the form of its cursor. Pages of a list with equal shapes have the same SQL text."""

    is_backward: bool
    inclusive: bool
    values: tuple[tuple[int | None, bool], ...] | None
    """The type of each value, and whether it is NULL. None without a cursor."""

    def position(self) -> Position | None:
        """A position with a `_Place` for each text."""
        if self.values is None:
            return None
        position = Position([], self.inclusive)
        for index, (oid, is_null) in enumerate(self.values):
            place = _Place(f"value {index}")
            place.number = index
            position.values.append(SortValue(None if is_null else place, oid))
        return position


class _ListPlan:
    """The pages of all list queries with one structure. `binds` are the parameters of the first one."""

    def __init__(self, item: ColumnElement[Any], list_query: Select[Any], binds: Sequence[BindParameter[Any]]) -> None:
        self._item, self._list_query, self.binds = item, list_query, binds
        self._keys = get_sort_keys(list_query)
        self._pages: OrderedDict[_Shape, _PagePlan] = OrderedDict()

    @cached_property
    def _digest(self) -> ListDigest:
        return ListDigest(self._list_query, self._keys)

    @cached_property
    def _is_digest_complete(self) -> bool:
        return _are_complete([*self._digest.binds.values()], self.binds)

    async def read(
        self,
        connection: AsyncConnection,
        values: Mapping[str, Any],
        *,
        limit: int,
        after: str | None,
        before: str | None,
    ) -> Page[Any] | None:
        """The page, or None if SQLAlchemy must execute the statement."""
        if not self._is_digest_complete:
            return None
        cursors = Cursors(self._keys, lambda: self._digest.compute(values))
        is_backward = before is not None
        cursor = before if is_backward else after
        position = None if cursor is None else cursors.decode(cursor)
        form = None if position is None else tuple((each.oid, each.is_null) for each in position.values)
        shape = _Shape(is_backward, position is not None and position.inclusive, form)
        page = _find(self._pages, shape, _MAX_PAGES_OF_LIST, lambda: self._plan_page(shape, connection))
        try:
            found = await page.fetch(connection, values, limit + 1, position)
        except DBAPIError as error:
            reject_cursor(position, error)
            raise
        if found is None:
            return None
        return await build_page(
            connection,
            cursors,
            [*found[:limit]],
            position,
            has_more=len(found) > limit,
            is_backward=is_backward,
        )

    def _plan_page(self, shape: _Shape, connection: AsyncConnection) -> _PagePlan:
        limit: BindParameter[int] = bindparam(None, 0, Integer, unique=True)
        query = build_page_query(
            self._item, self._list_query, self._keys, shape.position(), limit, is_backward=shape.is_backward
        )
        statement = PreparedSelect(query)
        binds = statement.binds(connection)
        places = [(bind.key, bind.value.number) for bind in binds if isinstance(bind.value, _Place)]
        is_complete = _are_complete(binds, [*self.binds, limit]) and limit.key in {bind.key for bind in binds}
        return _PagePlan(statement if is_complete else None, limit.key, places)


@dataclass(frozen=True, slots=True)
class _PagePlan:
    """A statement, and the keys of its parameters for the limit and for the texts of the cursor."""

    statement: PreparedSelect | None
    limit_key: str
    places: Sequence[tuple[str, int]]

    async def fetch(
        self, connection: AsyncConnection, values: Mapping[str, Any], limit: int, position: Position | None
    ) -> Sequence[Any] | None:
        """At most `limit` rows, or None if SQLAlchemy must execute the statement."""
        if self.statement is None:
            return None
        arguments = {**values, self.limit_key: limit}
        if position is not None:
            arguments |= {key: position.values[index].text for key, index in self.places}
        return await self.statement.rows_from_driver(connection, arguments)


def _are_complete(binds: Sequence[BindParameter[Any]], variables: Sequence[BindParameter[Any]]) -> bool:
    """Whether all parameters whose values vary can be found by their keys among the parameters of a statement.

    The compiler may copy a parameter. A copy with another key would keep the value of the first query.
    """
    keys = {bind.key for bind in variables}
    varying = {id(bind) for bind in variables}
    return len(keys) == len(variables) and all(
        bind.key in keys or varying.isdisjoint(map(id, originals_of(bind))) for bind in binds
    )


def _find(cache: OrderedDict[KeyT, ValueT], key: KeyT, max_entries: int, build: Callable[[], ValueT]) -> ValueT:
    """The value of the key. The entries that weren't used for the longest time are dropped."""
    value = cache.get(key)
    if value is None:
        value = cache[key] = build()
        if len(cache) > max_entries:
            cache.popitem(last=False)
    else:
        cache.move_to_end(key)
    return value
