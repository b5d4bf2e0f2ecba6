"""The repository: it reads and writes the rows of one model in the caller's session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar, get_args, get_origin

from sqlalchemy import BigInteger, ColumnElement, ScalarResult, Select, inspect, literal, select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, QueryableAttribute
from sqlalchemy.orm.interfaces import LoaderOption

from howdah import bulk
from howdah._keys import (
    collect_keys,
    deduplicate,
    get_key,
    get_key_attributes,
    has_exact_keys,
    has_key_in,
    join_requested_keys,
    normalize_key,
    normalize_keys,
)
from howdah._reads.attributes import build_equality_conditions, reject_reserved_names
from howdah._reads.loading import LoadOptions, add_load_options, build_collection_options, load_relationships
from howdah._reads.page import Page
from howdah._sqlalchemy import options_of
from howdah._writes.conflict_targets import ConflictOn
from howdah._writes.links import Pairs
from howdah._writes.results import InsertResult, MatchResult, UpsertResult
from howdah._writes.rows import reject_unknown_names
from howdah._writes.single_row import check_unique_attributes, insert_or_find, upsert_row
from howdah._writes.versions import count_collections_as_change
from howdah.errors import MultipleRowsFound, NotFound
from howdah.locking import lock, lock_next, lock_one
from howdah.pagination import count_rows, get_entity, has_rows, paginate, reject_own_limit, with_total_order

ModelT = TypeVar("ModelT", bound=DeclarativeBase)


class AsyncRepository(Generic[ModelT]):
    """Reads and writes the rows of one model in a session. It flushes and never commits.

    The model is the type parameter of a subclass, or the second argument:

        class UserRepository(AsyncRepository[User]): ...
        users = UserRepository(session)
        orders = AsyncRepository(session, Order)

    Methods that read take a `Select` of the model. Without one they read all rows. `load` contains relationships to
    load with the rows (`load=[User.orders]`); each takes one more statement. It may also contain loader options of
    SQLAlchemy, which can load the relationships of related objects too. A key is the value of the primary key, a tuple
    if the primary key is composite, or a mapping of the key's attribute names to values. PostgreSQL decides which row a
    key belongs to.

    A repository can be used by one task at a time, like its session.
    """

    _declared_model: ClassVar[Any] = ModelT  # type: ignore[misc]  # the model, or a TypeVar in a generic subclass

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__dict__.get("__orig_bases__", ()):
            origin = get_origin(base)
            if isinstance(origin, type) and issubclass(origin, AsyncRepository):
                arguments = dict(zip(origin.__parameters__, get_args(base), strict=True))  # type: ignore[attr-defined]
                cls._declared_model = arguments.get(origin._declared_model, origin._declared_model)

    def __init__(self, session: AsyncSession, model: type[ModelT] | None = None) -> None:
        chosen = self._declared_model if model is None else model
        if not isinstance(chosen, type):
            raise TypeError(
                "the repository has no model: pass it, AsyncRepository(session, User), "
                "or declare it, class UserRepository(AsyncRepository[User])"
            )
        self.session = session
        self.model: type[ModelT] = chosen

    async def get(self, id: Any, *, load: LoadOptions = ()) -> ModelT | None:
        """The object with this key, or None.

        If the session has the object and `load` is empty, no statement is sent.
        """
        key = normalize_key(self.model, id)
        if not load:
            return await self.session.get(self.model, key)
        values = key if isinstance(key, tuple) else (key,)
        same_key = (column == value for column, value in zip(get_key_attributes(self.model), values, strict=True))
        return (await self._fetch_objects(self._select_all().where(*same_key), load)).one_or_none()

    async def get_one(self, id: Any, *, load: LoadOptions = ()) -> ModelT:
        """The object with this key. Raises `NotFound` if there is none."""
        found = await self.get(id, load=load)
        if found is None:
            raise NotFound(self.model, [id])
        return found

    async def get_by(self, *, load: LoadOptions = (), **attributes: Any) -> ModelT | None:
        """The object whose attributes have these values, or None. The value None means IS NULL.

        PostgreSQL compares the values. Raises `MultipleRowsFound` if there are several rows, and `UnknownAttribute` for
        a name that the model doesn't have. A related object can be passed, but a collection can't be compared.
        """
        reject_reserved_names(self.model, load=load)
        matching = self._select_all().where(*build_equality_conditions(self.model, attributes)).limit(2)
        found = (await self._fetch_objects(matching, load)).all()
        if len(found) > 1:
            raise MultipleRowsFound(self.model, [*attributes])
        return found[0] if found else None

    async def get_one_by(self, *, load: LoadOptions = (), **attributes: Any) -> ModelT:
        """As `get_by`, but raises `NotFound` if there is no such row. Its text has the names, but not the values."""
        found = await self.get_by(load=load, **attributes)
        if found is None:
            raise NotFound(self.model, [attributes])
        return found

    async def get_by_ids(self, ids: Iterable[Any], *, load: LoadOptions = ()) -> list[ModelT]:
        """The objects with these keys, each once, in the order of the keys. Keys without a row are skipped.

        There may be any number of keys.
        """
        keys = normalize_keys(self.model, collect_keys(self.model, ids))
        if not keys:
            return []
        if has_exact_keys(self.model):
            keys = deduplicate(keys)
            rows = await self._fetch_objects(self._select_all().where(has_key_in(self.model, keys)), load)
            found = {get_key(row): row for row in rows}
            return [found[key] for key in keys if key in found]
        position, same_row = join_requested_keys(self.model, keys)
        matching = add_load_options(self._select_all().add_columns(position).where(same_row), load)
        matches = (await self.session.execute(matching)).unique().all()
        in_order = sorted(matches, key=lambda match: match[1])
        return [*{id(instance): instance for instance, _ in in_order}.values()]

    async def list(
        self,
        statement: Select[Any] | None = None,
        *,
        offset: int = 0,
        limit: int | None = 100,
        load: LoadOptions = (),
    ) -> list[ModelT]:
        """The objects in the order of the statement, then of the key.

        The key is sorted in the direction of the last sort key.

        `limit=None` returns all rows. If a join returns an object several times, it is in the result once, but `limit`
        counts each row. A high offset is slow. Rows are skipped or repeated if others are inserted or deleted
        between two calls. So use `page` to read a long list.
        """
        if offset < 0 or (limit is not None and limit < 0):
            raise ValueError(f"offset and limit must not be negative, but are {offset} and {limit}")
        list_query = self._build_list_query(statement)
        reject_own_limit(list_query)
        list_query = with_total_order(list_query).offset(literal(offset, BigInteger))
        if limit is not None:
            list_query = list_query.limit(literal(limit, BigInteger))
        return list(await self._fetch_objects(list_query, load))

    async def page(
        self,
        statement: Select[Any] | None = None,
        *,
        limit: int = 50,
        after: str | None = None,
        before: str | None = None,
        count: bool | int = False,
        load: LoadOptions = (),
    ) -> Page[ModelT]:
        """One page by keyset pagination; see `howdah.pagination.paginate`."""
        list_query = add_load_options(self._build_list_query(statement), load)
        return await paginate(self.session, list_query, limit=limit, after=after, before=before, count=count)

    async def count(self, statement: Select[Any] | None = None) -> int:
        """The number of rows, at most the statement's own limit if it has one."""
        return await count_rows(self.session, self._select_all() if statement is None else statement)

    async def exists(self, statement: Select[Any] | None = None) -> bool:
        """Whether there is any row."""
        return await has_rows(self.session, self._select_all() if statement is None else statement)

    async def stream(
        self, statement: Select[Any] | None = None, *, batch: int = 1000, load: LoadOptions = ()
    ) -> AsyncIterator[ModelT]:
        """Yield all objects one after the other, in the order of `list`, with a server-side cursor.

        `batch` rows are in memory at a time. The session can run other statements during the loop, but it must not
        commit before the end. Collections with `lazy="joined"` are loaded by one more statement for each batch, unless
        there are loader options. SQLAlchemy rejects `joinedload` of a collection here; use `load=[User.orders]`
        instead.
        """
        if batch < 1:
            raise ValueError(f"batch must be at least 1, not {batch}")
        list_query = with_total_order(self._build_list_query(statement))
        options = [*options_of(list_query), *load]
        # A second option for the same relationship would conflict with the first.
        if not any(isinstance(option, LoaderOption) for option in options):
            list_query = list_query.options(*build_collection_options(get_entity(list_query)))
        list_query = add_load_options(list_query, load).execution_options(yield_per=batch)
        result = await self.session.stream_scalars(list_query)
        try:
            async for row in result:
                yield row
        finally:
            await result.close()

    async def create(self, *, load: LoadOptions = (), **values: Any) -> ModelT:
        """Create an object and flush. Raises `UnknownAttribute` before anything is sent, or a constraint's error.

        With `load`, one more statement reads the row, and one more is sent for each relationship.
        """
        reject_reserved_names(self.model, load=load)
        reject_unknown_names(self.model, values)
        instance = self.model(**values)
        self.session.add(instance)
        await self.session.flush()
        await load_relationships(self.session, instance, load)
        return instance

    async def get_or_create(
        self, *, defaults: Mapping[str, Any] | None = None, load: LoadOptions = (), **attributes: Any
    ) -> tuple[ModelT, bool]:
        """Find the object with these attributes, or create it with `defaults` too. Returns it, and whether it is new.

        The model must declare a unique constraint on exactly these attributes; otherwise `ValueError` is raised. So
        concurrent calls create one row, and all of them return it. At REPEATABLE READ and SERIALIZABLE a concurrent
        call can raise `SerializationFailure`. The attributes must be columns. A row is inserted without a call of the
        model's constructor.
        """
        values = defaults or {}
        reject_reserved_names(self.model, load=load, defaults=defaults)
        check_unique_attributes(self.model, attributes, values)
        found = await self.get_by(load=load, **attributes)
        if found is not None:
            return found, False
        instance, is_new = await insert_or_find(self.session, self.model, attributes, values)
        await load_relationships(self.session, instance, load)
        return instance, is_new

    async def create_many(
        self, rows: bulk.Rows, *, chunk_size: int | None = None, keys: bool = True, max_rejected: int = 0
    ) -> InsertResult:
        """Insert mappings, Pydantic models, dataclasses or mapped objects; see `howdah.bulk.insert_many`."""
        return await bulk.insert_many(
            self.session, self.model, rows, chunk_size=chunk_size, keys=keys, max_rejected=max_rejected
        )

    async def update(self, instance: ModelT, *, load: LoadOptions = (), **values: Any) -> ModelT:
        """Set attributes of the object and flush. `load` works as in `create`.

        Raises `UnknownAttribute` before any attribute is set. Raises `StaleRow` if the model is `Versioned` and the row
        has another version. A changed collection increments the version, too. Raises `InvalidRequestError` for an
        object that isn't in the repository's session.
        """
        self._reject_foreign(instance)
        reject_reserved_names(type(instance), load=load)
        reject_unknown_names(type(instance), values)
        for name, value in values.items():
            setattr(instance, name, value)
        count_collections_as_change(instance, values)
        await self.session.flush()
        await load_relationships(self.session, instance, load)
        return instance

    async def update_many(self, rows: bulk.Rows, *, chunk_size: int | None = None) -> MatchResult:
        """Update each row to its own values. A row names its key; see `howdah.bulk.update_many`."""
        return await bulk.update_many(self.session, self.model, rows, chunk_size=chunk_size)

    async def update_where(self, criterion: ColumnElement[bool], **values: Any) -> int:
        """Set the same values on every row that the criterion finds; see `howdah.bulk.update_where`."""
        return await bulk.update_where(self.session, self.model, criterion, values)

    async def upsert(
        self,
        row: object,
        *,
        on: ConflictOn | None = None,
        update: Sequence[str] | None = None,
        load: LoadOptions = (),
    ) -> tuple[ModelT, bool]:
        """Insert one row, or update the existing one. Returns its object, and whether it is new.

        The row, `on` and `update` are those of `howdah.bulk.upsert_many`. One statement is sent. If the existing row
        has the same values, it isn't written, and a second statement reads it. Raises `NotFound` if a trigger has
        suppressed the row. Views, and partitioned tables before PostgreSQL 18, are rejected by the database: use
        `upsert_many`.
        """
        instance, is_new = await upsert_row(self.session, self.model, row, on, update)
        await load_relationships(self.session, instance, load)
        return instance, is_new

    async def upsert_many(
        self,
        rows: bulk.Rows,
        *,
        on: ConflictOn | None = None,
        update: Sequence[str] | None = None,
        chunk_size: int | None = None,
        max_rejected: int = 0,
    ) -> UpsertResult:
        """Insert rows, or update the existing ones; see `howdah.bulk.upsert_many`."""
        return await bulk.upsert_many(
            self.session, self.model, rows, on=on, update=update, chunk_size=chunk_size, max_rejected=max_rejected
        )

    async def delete(self, instance: ModelT) -> None:
        """Delete the object's row and flush.

        The cascades of the relationships apply. Without a cascade, the foreign keys of related rows are set to NULL, or
        `NotNullViolation` is raised if they can't be NULL. Raises `StaleRow` and `InvalidRequestError` like `update`.
        """
        self._reject_foreign(instance)
        await self.session.delete(instance)
        await self.session.flush()

    async def delete_many(self, ids: Iterable[Any]) -> MatchResult:
        """Delete the rows with these keys; see `howdah.bulk.delete_many`."""
        return await bulk.delete_many(self.session, self.model, ids)

    async def delete_where(self, criterion: ColumnElement[bool]) -> int:
        """Delete every row that the criterion finds; see `howdah.bulk.delete_where`."""
        return await bulk.delete_where(self.session, self.model, criterion)

    async def lock(self, ids: Iterable[Any], *, nowait: bool = False, skip_locked: bool = False) -> dict[Any, ModelT]:
        """Lock the rows in key order and refresh the objects; see `howdah.locking.lock`."""
        return await lock(self.session, self.model, ids, nowait=nowait, skip_locked=skip_locked)

    async def lock_one(
        self, id: Any, *, where: ColumnElement[bool] | None = None, nowait: bool = False, load: LoadOptions = ()
    ) -> ModelT:
        """Lock one row and refresh its object, if the row meets the criterion; see `howdah.lock_one`.

        `load` works as in `create`. The related rows aren't locked.
        """
        instance = await lock_one(self.session, self.model, id, where=where, nowait=nowait)
        await load_relationships(self.session, instance, load)
        return instance

    async def lock_next(self, limit: int, statement: Select[Any] | None = None) -> Sequence[ModelT]:
        """Lock at most `limit` rows that nobody has locked, in the order of the statement; see `howdah.lock_next`."""
        return await lock_next(self.session, self._build_list_query(statement), limit)

    async def link(self, relationship: QueryableAttribute[Any], pairs: Pairs) -> int:
        """Link rows by a many-to-many relationship; see `howdah.bulk.link`."""
        return await bulk.link(self.session, relationship, pairs)

    async def unlink(self, relationship: QueryableAttribute[Any], pairs: Pairs) -> int:
        """Remove links of a many-to-many relationship; see `howdah.bulk.unlink`."""
        return await bulk.unlink(self.session, relationship, pairs)

    def _reject_foreign(self, instance: ModelT) -> None:
        if not isinstance(instance, self.model):
            raise TypeError(
                f"pass a {self.model.__name__} object, as `get` returns it, not a {type(instance).__name__}"
            )
        if instance not in self.session:
            raise InvalidRequestError(
                f"this {type(instance).__name__} isn't in the repository's session: get it from this "
                "repository, or add it to the session"
            )

    def _select_all(self) -> Select[Any]:
        return select(self.model)

    def _build_list_query(self, statement: Select[Any] | None) -> Select[Any]:
        if statement is None:
            return self._select_all()
        if not inspect(get_entity(statement)).mapper.isa(inspect(self.model)):
            raise ValueError(f"this repository reads {self.model.__name__}: pass a select({self.model.__name__})")
        return statement

    async def _fetch_objects(self, statement: Select[Any], load: LoadOptions) -> ScalarResult[ModelT]:
        return (await self.session.scalars(add_load_options(statement, load))).unique()
