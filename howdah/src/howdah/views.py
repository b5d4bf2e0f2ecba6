"""Rows as JSON that PostgreSQL writes: no objects, no second validation, and one statement for concurrent reads.

Request batching: the calls of `get` that arrive while a statement is running share the next one.

UserView = JsonView(User, UserOut)  # at import: a field that can't be rendered raises an error here

async with UserView.open(database) as users:  # as long as the application runs
    body = await users.get(user_id)  # bytes, ready to send; many tasks may call it concurrently
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, Generic, TypeAlias, overload

from pydantic import BaseModel
from sqlalchemy import LargeBinary, Select, Text, and_, case, cast, func, literal_column, null
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql.elements import ColumnElement
from typing_extensions import TypeVar

from howdah._batch_figures import CoalescerStatus
from howdah._connections.prepared import PreparedSelect, ReadRows
from howdah._keys import (
    collect_keys,
    deduplicate,
    get_normal_key_types,
    get_requested_keys_name,
    has_exact_keys,
    normalize_key,
    normalize_keys,
)
from howdah._page_plans import PagePlans
from howdah._reads.lookups import JsonBytes, KeyLookups, ViewerLookup, make_body
from howdah._reads.page import Page
from howdah._reads.rendering import Renderer
from howdah._reads.row_filters import RowFilter, RowFilters, ViewerFilter
from howdah._reads.viewers import ViewerAttributes, ViewerColumns
from howdah._scoped_coalescing import Scope, ScopedCoalescers
from howdah._view_lists import build_list_query, stream_lines
from howdah._writes.columns import get_version_name
from howdah.coalescing import Coalescer
from howdah.database import Database
from howdah.errors import NotFound
from howdah.pagination import with_total_order

ModelT = TypeVar("ModelT", bound=DeclarativeBase)
ViewerT = TypeVar("ViewerT", default=Any)

_Request: TypeAlias = tuple[Any, tuple[Any, ...] | None]  # a key, and the values of the viewer if the view has one


class JsonView(Generic[ModelT, ViewerT]):
    """Rows of `model` as JSON in the form of `schema`.

    The schema's fields are read from the mapped attributes of the same name (or `alias`): columns, `column_property`,
    hybrid expressions, synonyms, and relationships. Relationships may be nested to any depth. Each has its own order.

    If the schema can parse the bytes, it returns an object that is equal to `schema.model_validate(row)`. The keys,
    their order and the texts are those of the schema's own JSON, with three exceptions. A duration is written in days
    and seconds. A decimal never has an exponent. A float that is infinite or not a number is a text. Code that
    runs in Python can't be rendered: validators, serializers, computed fields, and types that convert their values. The
    constructor then raises `ViewCompileError` with the field and the reason.

    A relationship has the rows that SQLAlchemy would load, each once. A field must be Optional if its expression can be
    NULL, or if its related row may not exist. Only a foreign key with NOT NULL columns guarantees that the row exists.
    Nothing is validated: values that violate a constraint of the schema, or JSON values of another shape, are written
    as they are.

    A view makes no objects. Events of SQLAlchemy's `Session` (`do_orm_execute`, `after_begin`) run only for `stream`.
    `where` has row filters by class. They apply to every read of the view, for the model and for each nested class:

        JsonView(User, UserOut, where={Order: lambda order: order.deleted_at.is_(None)})

    A row filter is evaluated once, when the view is made. A filter that reads a context variable or the clock, or that
    differs between two evaluations, raises `ViewCompileError`; use `func.now()` for the time. A subquery in an
    expression of the model (`column_property`, hybrid property) isn't filtered.

    A filter that depends on the caller has a second parameter, the viewer. Then each call needs a `viewer`:

        OrderView = JsonView(Order, OrderOut, where={Order: lambda order, viewer: order.user_id == viewer.user_id})
        body = await orders.get(order_id, viewer=current_user)

    In the filter, `viewer.user_id` is an SQL parameter. Its type is that of the column that it is compared with, or of
    a `cast(viewer.user_id, Uuid)`. In `or_()`, `and_()` and `not_()` it is a boolean. `column.in_(viewer.team_ids)` is
    for a list. The viewer of a call is any object with these attributes, or a mapping with these keys. An attribute
    that is None is NULL in SQL, so it is equal to no value, and not to NULL either.

    Calls of different viewers share a statement in which each requested key has its own viewer. A call without a
    viewer, or with one that lacks an attribute or has a value of another type, raises an error before anything is sent.
    """

    def __init__(
        self,
        model: type[ModelT],
        schema: type[BaseModel],
        *,
        where: Mapping[type[Any], RowFilter | ViewerFilter] | None = None,
    ) -> None:
        self.model = model
        self.schema = schema
        self._row_filters = RowFilters(where or {})
        self._viewer: ViewerAttributes | None = self._row_filters.viewer
        self._body, criteria = self._render(None)
        is_hidden = self._viewer is not None and bool(criteria)  # from some viewers
        self.body: Final[ColumnElement[bytes]] = case((and_(*criteria), self._body)) if is_hidden else self._body
        """The expression of a row's JSON as bytes, for use in your own `select()`.

        If the view has a viewer, the statement needs `parameters(viewer)`; without them SQLAlchemy raises an error. The
        expression is then NULL for a row that the viewer must not see, even if the statement lacks the `criteria`.
        """
        self.criteria: Final[Sequence[ColumnElement[bool]]] = criteria
        """The row filters of the model. Add them to a `select()` that uses `body`. They need `parameters`, too."""

    def criterion_for(self, viewer: ViewerT) -> ColumnElement[bool]:
        """The row filters of the model with this viewer's values, for `where` of `lock_one`. Errors as `parameters`."""
        if self._viewer is None:
            raise TypeError("this view has no viewer: use and_(*view.criteria)")
        return self._row_filters.bind(self.model, viewer)

    def parameters(self, viewer: ViewerT) -> dict[str, Any]:
        """The parameters of a statement that uses `body` and `criteria`: the values of this viewer.

        Raises the errors of a read with this viewer. Raises `TypeError` if the view has no viewer.
        """
        if self._viewer is None:
            raise TypeError("this view has no viewer: its row filters have one parameter")
        return self._viewer.bind(self._viewer.read(viewer))

    def _render(self, columns: ViewerColumns | None) -> tuple[ColumnElement[bytes], Sequence[ColumnElement[bool]]]:
        """The expression of the JSON, and the row filters of the model.

        With `columns` they refer to a table with one viewer for each requested key.
        """
        renderer = Renderer(self.schema, self._row_filters, columns=columns)
        text = cast(renderer.render_object(self.model), Text)
        body: ColumnElement[bytes] = func.convert_to(text, literal_column("'UTF8'"), type_=LargeBinary)
        return body, renderer.get_row_filters(self.model)

    def open(
        self,
        database: Database,
        *,
        workers: int = 2,
        max_batch_size: int = 100,
        max_waiting: int = 10_000,
        submit_timeout: float = 10.0,
        close_timeout: float = 5.0,
    ) -> JsonViewReader[ModelT, ViewerT]:
        """A reader of the view for one database. The other arguments are those of its `Coalescer`.

        At most `workers` statements of `get` run at a time, each with at most `max_batch_size` keys. A call raises
        `QueueFull` if `max_waiting` calls are waiting, and `QueueTimeout` or `ResultTimeout` after `submit_timeout`
        seconds.
        """
        new_coalescer = partial(
            Coalescer[_Request, JsonBytes],
            workers=workers,
            max_batch_size=max_batch_size,
            max_waiting=max_waiting,
            submit_timeout=submit_timeout,
            close_timeout=close_timeout,
        )
        return JsonViewReader(self, database, new_coalescer)


class JsonViewReader(Generic[ModelT, ViewerT]):
    """A reader of a view for one database and one event loop. Use `async with`, or call `aclose`.

    Any number of tasks may call it concurrently. Reads run outside of the caller's transaction. A read sees everything
    that was committed before it was requested. Raises the errors of a `Coalescer` (`QueueFull`, …) and of the database.
    """

    def __init__(
        self,
        view: JsonView[ModelT, ViewerT],
        database: Database,
        new_coalescer: Callable[..., Coalescer[_Request, JsonBytes]],
    ) -> None:
        self._view, self.model, self._database = view, view.model, database
        self._viewer = view._viewer
        self._has_exact_keys = has_exact_keys(view.model)
        self._normal_key_types = get_normal_key_types(view.model)
        version = get_version_name(view.model)
        version_column = null() if version is None else getattr(view.model, version)
        self._by_key = KeyLookups(view.model, [version_column, view._body], view.criteria)
        self._select_one = PreparedSelect(self._by_key.one)
        self._select_many = PreparedSelect(self._by_key.many)
        self._page_plans = PagePlans(view._body, partial(build_list_query, view.model, view.criteria))
        if self._viewer is not None:
            columns = self._viewer.columns(get_requested_keys_name(view.model))
            body, criteria = view._render(columns)
            self._by_viewer = ViewerLookup(view.model, [version_column, body], criteria, columns)
            self._select_by_viewer = PreparedSelect(self._by_viewer.statement)
        # with `bisect_on_error`, a key or a row that causes an error fails only its own read
        self._coalescer = new_coalescer(partial(self._read, database), key=self._identify, bisect_on_error=True)
        self._scopes = ScopedCoalescers(self._coalescer)
        # of a reader that `scoped` has made
        self._scope: Scope[_Request, JsonBytes] | Coalescer[_Request, JsonBytes] | None = None
        self._kept: dict[Database, JsonViewReader[ModelT, ViewerT]] = {}

    def scoped(self, database: Database) -> JsonViewReader[ModelT, ViewerT]:
        """This reader, for a copy that `with_settings` has made, or for another `Database` with the same tables.

        For example, the other `Database` may have another role. Calls of `get` share a statement only with calls of the
        same `Database` and equal settings. The limits of `open` apply to each of them separately.
        """
        if database is self._database:
            return self
        kept = self._kept.get(database)
        return self._scope_to(database) if kept is None else kept

    def _scope_to(self, database: Database) -> JsonViewReader[ModelT, ViewerT]:
        """A reader for this database. It is kept if the database has no settings, because there are few of those."""
        scoped: JsonViewReader[ModelT, ViewerT] = object.__new__(type(self))  # faster than copy(), for each request
        scoped.__dict__.update(self.__dict__)
        scoped._database = database
        read = partial(self._read, database)
        if database._root is database:
            scoped._scope = self._scopes.keep(read)
            self._kept[database] = scoped
        else:
            scoped._scope = Scope(self._scopes, database.scope_key(), read)
        return scoped

    async def __aenter__(self) -> JsonViewReader[ModelT, ViewerT]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Finish the submitted calls of `get`, at most for `close_timeout` seconds. Later ones raise `CoalescerClosed`.

        Does nothing for a scoped reader.
        """
        if self._scope is None:
            await asyncio.gather(self._coalescer.aclose(), self._scopes.aclose())

    def status(self) -> CoalescerStatus:
        """The status of the coalescers that batch the calls of `get`: also those of all scoped readers together."""
        return self._scopes.status()

    @overload
    async def get(self: JsonViewReader[ModelT, None], id: Any) -> JsonBytes: ...
    @overload
    async def get(self, id: Any, *, viewer: ViewerT) -> JsonBytes: ...
    async def get(self, id: Any, *, viewer: Any = None) -> JsonBytes:
        """The row with this key. Raises `NotFound` if there is none, or if a row filter hides it.

        Concurrent calls share a statement (unless the application's event listeners prevent it; see
        `Database.shares_reads`). An error of one call doesn't affect the others. Each call has its own viewer.
        """
        key = id if type(id) in self._normal_key_types else normalize_key(self._view.model, id)
        request = key, self._read_viewer(viewer)
        if not self._database.shares_reads():  # a listener may set something on the connection for one caller
            (body,) = await self._read(self._database, [request])
            if isinstance(body, Exception):
                raise body
            return body
        return await (self._scope or self._coalescer).submit(request)

    @overload
    async def get_many(self: JsonViewReader[ModelT, None], ids: Iterable[Any]) -> list[JsonBytes]: ...
    @overload
    async def get_many(self, ids: Iterable[Any], *, viewer: ViewerT) -> list[JsonBytes]: ...
    async def get_many(self, ids: Iterable[Any], *, viewer: Any = None) -> list[JsonBytes]:
        """The rows with these keys, each once, in the order of the keys. Missing and hidden ones are left out.

        There may be any number of keys. It is one statement, which is not shared with other calls.
        """
        values = self._read_viewer(viewer)
        keys = normalize_keys(self._view.model, collect_keys(self._view.model, ids))
        found = await self._find(self._database, deduplicate(keys) if self._has_exact_keys else keys, values)
        # Keys of the same row have the identical body object, so the row is returned once.
        return [*{id(body): body for body in found if body is not None}.values()]

    @overload
    async def page(
        self: JsonViewReader[ModelT, None],
        statement: Select[Any] | None = None,
        *,
        limit: int = 50,
        after: str | None = None,
        before: str | None = None,
        count: bool | int = False,
    ) -> Page[bytes]: ...
    @overload
    async def page(
        self,
        statement: Select[Any] | None = None,
        *,
        viewer: ViewerT,
        limit: int = 50,
        after: str | None = None,
        before: str | None = None,
        count: bool | int = False,
    ) -> Page[bytes]: ...
    async def page(
        self,
        statement: Select[Any] | None = None,
        *,
        viewer: Any = None,
        limit: int = 50,
        after: str | None = None,
        before: str | None = None,
        count: bool | int = False,
    ) -> Page[bytes]:
        """A keyset page of a `select()` of the model, with bytes as its items; see `howdah.pagination.paginate`.

        It sends one statement, and with `count` a second one. Raises `ValueError` for a `select()` with `options()`,
        `execution_options()` or `with_for_update()`. Raises `InvalidCursor` for a cursor of a viewer with other values.
        """
        parameters = self._bind_viewer(self._read_viewer(viewer))
        bound = self._page_plans.bind(statement)
        paginate = partial(self._page_plans.paginate, bound=bound, parameters=parameters)
        return await self._database.read(partial(paginate, limit=limit, after=after, before=before, count=count))

    @overload
    def stream(
        self: JsonViewReader[ModelT, None], statement: Select[Any] | None = None, *, batch: int = 500
    ) -> AsyncIterator[bytes]: ...
    @overload
    def stream(
        self, statement: Select[Any] | None = None, *, viewer: ViewerT, batch: int = 500
    ) -> AsyncIterator[bytes]: ...
    def stream(
        self, statement: Select[Any] | None = None, *, viewer: Any = None, batch: int = 500
    ) -> AsyncIterator[bytes]:
        """Rows as lines of NDJSON, in the order of the statement and then of the key.

        `batch` rows are in memory at a time. All rows are from one snapshot. Raises `ValueError` as `page` does. The
        viewer is read by this call, and not when the first row is read.
        """
        parameters = self._bind_viewer(self._read_viewer(viewer))
        list_query = with_total_order(build_list_query(self._view.model, self._view.criteria, statement))
        return stream_lines(self._database, self._view._body, list_query, parameters, batch)

    def _read_viewer(self, viewer: Any) -> tuple[Any, ...] | None:
        """The values of the viewer, or None if the view has no viewer. Raises `TypeError` for a missing viewer."""
        if self._viewer is not None:
            return self._viewer.read(viewer)
        if viewer is not None:
            raise TypeError("this view has no viewer, so its rows are the same for everyone: leave `viewer` out")
        return None

    def _bind_viewer(self, values: tuple[Any, ...] | None) -> dict[str, Any]:
        return {} if self._viewer is None or values is None else self._viewer.bind(values)

    def _identify(self, request: _Request) -> Hashable:
        """A key that is equal for two requests only if they have the same answer."""
        key, values = request
        # Two keys may be equal in Python but different in PostgreSQL.
        identity = key if self._has_exact_keys else (key, repr(key))
        return identity if self._viewer is None or values is None else (identity, self._viewer.identify(values))

    async def _read(self, database: Database, requests: Sequence[_Request]) -> Sequence[JsonBytes | Exception]:
        """The results of one batch. A `NotFound` is the result of its own request."""
        keys = [key for key, _ in requests]
        if self._viewer is None or len(requests) == 1:
            found = await self._find(database, keys, requests[0][1])
        else:
            found = await self._find_for_viewers(database, keys, [values or () for _, values in requests])
        return [
            NotFound(self._view.model, [key]) if body is None else body for key, body in zip(keys, found, strict=True)
        ]

    async def _find(
        self, database: Database, keys: Sequence[Any], values: tuple[Any, ...] | None
    ) -> Sequence[JsonBytes | None]:
        """The body for each key, or None, for one viewer. Keys of the same row have the identical body object."""
        viewer = self._bind_viewer(values)
        if len(keys) == 1:
            rows = await self._fetch(database, self._select_one, self._by_key.bind_one(keys[0]) | viewer)
            return [make_body(*rows[0]) if rows else None]
        rows = await self._fetch(database, self._select_many, self._by_key.bind_many(keys) | viewer)
        return self._by_key.get_bodies(rows, keys)

    async def _find_for_viewers(
        self, database: Database, keys: Sequence[Any], viewers: Sequence[tuple[Any, ...]]
    ) -> Sequence[JsonBytes | None]:
        """The body for each key as its own viewer sees it, or None."""
        rows = await self._fetch(database, self._select_by_viewer, self._by_viewer.bind(keys, viewers))
        return self._by_viewer.get_bodies(rows, len(keys))

    async def _fetch(
        self, database: Database, statement: PreparedSelect, parameters: Mapping[str, Any]
    ) -> Sequence[Sequence[Any]]:
        return await database.read(ReadRows(statement, parameters))
