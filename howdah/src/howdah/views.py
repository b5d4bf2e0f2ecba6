"""Rows as JSON that PostgreSQL writes: no objects, no second validation, and one statement for concurrent reads.

Request batching: the calls of `get` that arrive while a statement is running share the next one.

UserView = JsonView(User, UserOut)  # at import: a field that can't be rendered raises an error here

async with UserView.open(database) as users:  # as long as the application runs
    body = await users.get(user_id)  # bytes, ready to send; many tasks may call it concurrently
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from copy import copy
from functools import partial
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel
from sqlalchemy import LargeBinary, Select, Text, cast, func, inspect, literal_column, null, select
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.util import unwrap_order_by

from howdah._connections.prepared import PreparedSelect
from howdah._keys import (
    build_key,
    build_key_condition,
    build_key_list_condition,
    build_requested_keys_join,
    collect_keys,
    deduplicate,
    get_key_attributes,
    has_exact_keys,
    normalize_key,
    normalize_keys,
)
from howdah._reads.page import Page
from howdah._reads.rendering import Renderer
from howdah._reads.row_filters import RowFilter
from howdah._scoped_coalescing import Scope, ScopedCoalescers
from howdah._sqlalchemy import has_distinct, has_for_update, options_of, order_by_of
from howdah._writes.columns import get_version_name
from howdah.coalescing import Coalescer, CoalescerStatus
from howdah.database import Database
from howdah.errors import NotFound
from howdah.pagination import get_entity, paginate_as, with_total_order

ModelT = TypeVar("ModelT", bound=DeclarativeBase)


class JsonBytes(bytes):
    """A row's JSON in UTF-8. `version` is the row's version, or None if the model has none."""

    version: Any = None

    @property
    def etag(self) -> str:
        """The entity tag of these bytes (RFC 9110, section 8.8.3), with its quotes.

        If the model has a version, the tag begins with it (`"7-…"`), so that an `If-Match` can be compared with a
        locked row.
        """
        # 96 bits are enough to exclude that two bodies have the same tag by accident.
        digest = hashlib.blake2b(self, digest_size=12).hexdigest()
        return f'"{digest}"' if self.version is None else f'"{self.version}-{digest}"'


class JsonView(Generic[ModelT]):
    """Rows of `model` as JSON in the form of `schema`.

    The schema's fields are read from the mapped attributes of the same name (or `alias`): columns, `column_property`,
    hybrid expressions, synonyms, and relationships. Relationships may be nested to any depth. Each has its own order.

    If the schema can parse the bytes, it returns an object that is equal to `schema.model_validate(row)`. The keys,
    their order and the texts are those of the schema's own JSON, with three exceptions. A duration is written in days
    and seconds. A decimal never has an exponent. A float that is infinite or not a number is a text.

    Code that runs in Python can't be rendered: validators, serializers, computed fields, and types that convert their
    values. The constructor then raises `ViewCompileError` with the field and the reason.

    A relationship has the rows that SQLAlchemy would load, each once. A field must be Optional if its expression can be
    NULL, or if its related row may not exist. Only a foreign key with NOT NULL columns guarantees that the row exists.
    Nothing is validated: values that violate a constraint of the schema, or JSON values of another shape, are written
    as they are.

    A view makes no objects. Events of SQLAlchemy's `Session` (`do_orm_execute`, `after_begin`) run only for `stream`.

    `where` has row filters by class. They apply to every read of the view, for the model and for each nested class:

        JsonView(User, UserOut, where={Order: lambda order: order.deleted_at.is_(None)})

    A row filter is evaluated once, when the view is made, and is the same for every caller. It can't protect the rows
    of one user or tenant from another. A filter that reads a context variable or the clock, or that differs between two
    evaluations, raises `ViewCompileError`; use `func.now()` for the time. A subquery in an expression of the model
    (`column_property`, hybrid property) isn't filtered.
    """

    def __init__(
        self, model: type[ModelT], schema: type[BaseModel], *, where: Mapping[type[Any], RowFilter] | None = None
    ) -> None:
        self.model = model
        self.schema = schema
        self._renderer = Renderer(schema, where or {})
        self.body: Final[ColumnElement[bytes]] = func.convert_to(
            cast(self._renderer.render_object(model), Text), literal_column("'UTF8'"), type_=LargeBinary
        )
        """The expression of a row's JSON as bytes, for use in your own `select()`."""
        self.criteria: Final[Sequence[ColumnElement[bool]]] = self._renderer.get_row_filters(model)
        """The row filters of the model. Add them to a `select()` that uses `body`."""

    def open(
        self, database: Database, *, workers: int = 2, max_batch_size: int = 100, max_waiting: int = 10_000
    ) -> JsonViewReader[ModelT]:
        """A reader of the view for one database. The other arguments are those of its `Coalescer`.

        At most `workers` statements of `get` run at a time, each with at most `max_batch_size` keys. A call raises
        `QueueFull` if `max_waiting` calls are waiting.
        """
        return JsonViewReader(self, database, workers=workers, max_batch_size=max_batch_size, max_waiting=max_waiting)


class JsonViewReader(Generic[ModelT]):
    """A reader of a view for one database and one event loop. Use `async with`, or call `aclose`.

    Any number of tasks may call it concurrently. Reads run outside of the caller's transaction. A read sees everything
    that was committed before it was requested. Raises the errors of a `Coalescer` (`QueueFull`, …) and of the database.
    """

    def __init__(
        self, view: JsonView[ModelT], database: Database, *, workers: int, max_batch_size: int, max_waiting: int
    ) -> None:
        self._view, self._database = view, database
        version = get_version_name(view.model)
        version_column = null() if version is None else getattr(view.model, version)
        # A class may be mapped to a join of tables, and the body may name only some of them. So FROM names the class.
        body = self._apply_row_filters(select(version_column, view.body).select_from(view.model))
        has_key, self._bind_one = build_key_condition(view.model)
        self._select_one = PreparedSelect(body.where(has_key))
        self._has_exact_keys = has_exact_keys(view.model)
        if self._has_exact_keys:
            has_any_key, self._bind_many = build_key_list_condition(view.model)
            self._select_many = PreparedSelect(body.add_columns(*get_key_attributes(view.model)).where(has_any_key))
        else:
            position, same_row, self._bind_many = build_requested_keys_join(view.model)
            first = func.min(position).over(partition_by=get_key_attributes(view.model))
            self._select_many = PreparedSelect(body.add_columns(position, first).where(same_row))
        create = partial(
            Coalescer[Any, JsonBytes],
            # Two keys may be equal in Python but different in PostgreSQL.
            key=(lambda key: key) if self._has_exact_keys else (lambda key: (key, repr(key))),
            bisect_on_error=True,  # a key or a row that causes an error fails only its own read
            workers=workers,
            max_batch_size=max_batch_size,
            max_waiting=max_waiting,
        )
        self._coalescer: Coalescer[Any, JsonBytes] = create(self._read)
        self._scopes: ScopedCoalescers[Any, JsonBytes] = ScopedCoalescers(create)
        self._scope: Scope[Any, JsonBytes] | None = None  # of a reader that `scoped` has made

    def scoped(self, database: Database) -> JsonViewReader[ModelT]:
        """This reader with the settings of `database`, which `with_settings` has made from the reader's database.

        It is cheap, so that each request can have its own. Its calls of `get` share a statement only with calls that
        have equal settings. `workers`, `max_batch_size` and `max_waiting` then limit the calls with these settings.
        """
        scoped = copy(self)
        scoped._database = database
        scoped._scope = Scope(self._scopes, database.scope_key(self._database), scoped._read)
        return scoped

    async def __aenter__(self) -> JsonViewReader[ModelT]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Finish the submitted calls of `get`. Later ones raise `CoalescerClosed`.

        It does nothing for a reader that `scoped` has made, which uses the resources of another one.
        """
        if self._scope is None:
            await self._coalescer.aclose()
            await self._scopes.aclose()

    def status(self) -> CoalescerStatus:
        """The status of the coalescer that batches the calls of `get`, other than those of scoped readers."""
        return self._coalescer.status()

    async def get(self, id: Any) -> JsonBytes:
        """The row with this key. Raises `NotFound` if there is none, or if a row filter hides it.

        Concurrent calls share a statement (unless the application's event listeners prevent it; see
        `Database.shares_reads`). An error of one call doesn't affect the others.
        """
        key = normalize_key(self._view.model, id)
        if not self._database.shares_reads():  # a listener may set something on the connection for one caller
            (body,) = await self._read([key])
            if isinstance(body, Exception):
                raise body
            return body
        return await (self._coalescer if self._scope is None else self._scope).submit(key)

    async def get_many(self, ids: Iterable[Any]) -> list[JsonBytes]:
        """The rows with these keys, each once, in the order of the keys. Missing ones are left out.

        There may be any number of keys. It is one statement, which is not shared with other calls.
        """
        keys = normalize_keys(self._view.model, collect_keys(self._view.model, ids))
        found = await self._find(deduplicate(keys) if self._has_exact_keys else keys)
        # Keys of the same row have the identical body object, so the row is returned once.
        return [*{id(body): body for body in found if body is not None}.values()]

    async def page(
        self,
        statement: Select[Any] | None = None,
        *,
        limit: int = 50,
        after: str | None = None,
        before: str | None = None,
        count: bool | int = False,
    ) -> Page[bytes]:
        """A keyset page of a `select()` of the model, with bytes as its items; see `howdah.pagination.paginate`.

        It sends one statement, and with `count` a second one. Raises `ValueError` for a `select()` with `options()`,
        `execution_options()` or `with_for_update()`.
        """
        list_query = self._build_list_query(statement)
        return await self._database.read(
            lambda connection: paginate_as(
                self._view.body, connection, list_query, limit=limit, after=after, before=before, count=count
            )
        )

    async def stream(self, statement: Select[Any] | None = None, *, batch: int = 500) -> AsyncIterator[bytes]:
        """Rows as lines of NDJSON, in the order of the statement and then of the key.

        `batch` rows are in memory at a time. All rows are from one snapshot. Raises `ValueError` as `page` does.
        """
        list_query = with_total_order(self._build_list_query(statement))
        async with self._database.session(read_only=True) as session:
            # with DISTINCT, ORDER BY expressions must be selected
            order = [part for each in order_by_of(list_query) for part in unwrap_order_by(each)]
            columns = [self._view.body, *(order if has_distinct(list_query) else ())]
            bodies = list_query.with_only_columns(*columns, maintain_column_froms=True)
            result = await session.stream_scalars(bodies.execution_options(yield_per=batch))
            try:
                async for body in result:
                    # In JSON a newline is only between tokens; in a text it is escaped.
                    yield body.replace(b"\n", b" ") + b"\n"
            finally:
                await result.close()

    def _build_list_query(self, statement: Select[Any] | None) -> Select[Any]:
        """The statement with the row filters; without a statement, a SELECT of all rows."""
        if inspect(self._view.model).concrete:
            raise ValueError(
                f"a view can't order the rows of {self._view.model.__name__}, which are read from a union of tables: "
                "read them by key, or page and stream them with a repository"
            )
        if statement is None:
            return self._apply_row_filters(select(self._view.model))
        if get_entity(statement) is not self._view.model:
            raise ValueError(
                f"a list query of this view is a select({self._view.model.__name__}), not of another class or an alias"
            )
        _reject_unsupported_parts(statement)
        return self._apply_row_filters(statement)

    def _apply_row_filters(self, statement: Select[Any]) -> Select[Any]:
        return statement.where(*self._view.criteria)

    async def _read(self, keys: Sequence[Any]) -> Sequence[JsonBytes | Exception]:
        """The results of one batch. A `NotFound` is the result of its own key."""
        found = await self._find(keys)
        return [
            NotFound(self._view.model, [key]) if body is None else body for key, body in zip(keys, found, strict=True)
        ]

    async def _find(self, keys: Sequence[Any]) -> Sequence[JsonBytes | None]:
        """The body for each key, or None. Keys of the same row have the identical body object."""
        if len(keys) == 1:
            rows = await self._fetch(self._select_one, self._bind_one(keys[0]))
            return [_make_body(*rows[0]) if rows else None]
        rows = await self._fetch(self._select_many, self._bind_many(keys))
        if self._has_exact_keys:
            by_key = {build_key(key): _make_body(version, text) for version, text, *key in rows}
            return [by_key.get(key) for key in keys]
        by_position: dict[int, JsonBytes] = {}
        by_row: dict[int, JsonBytes] = {}
        for version, text, position, first in rows:
            by_position[position] = by_row.setdefault(first, _make_body(version, text))
        return [by_position.get(position) for position in range(1, len(keys) + 1)]

    async def _fetch(self, statement: PreparedSelect, parameters: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        return await self._database.read(lambda connection: statement.rows(connection, parameters))


def _make_body(version: Any, text: bytes) -> JsonBytes:
    body = JsonBytes(text)
    body.version = version
    return body


def _reject_unsupported_parts(statement: Select[Any]) -> None:
    """Raise `ValueError` for parts of a statement that a view can't apply to its JSON."""
    if options_of(statement):
        raise ValueError(
            "a view's statement takes no options(): they wouldn't apply to nested rows. The schema decides what is "
            "loaded; filter by where() or by the view's `where`"
        )
    if statement.get_execution_options():
        raise ValueError("a view's statement takes no execution_options(): the view sets its own")
    if has_for_update(statement):
        raise ValueError("a view's statement can't have with_for_update(): its locks end with the read. Use lock()")
