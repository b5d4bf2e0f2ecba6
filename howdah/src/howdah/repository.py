"""The repository: reading and writing the rows of one model in the caller's session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar, get_args, get_origin

from sqlalchemy import BigInteger, ColumnElement, ScalarResult, Select, inspect, literal, select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, QueryableAttribute, selectinload
from sqlalchemy.orm.interfaces import LoaderOption
from sqlalchemy.sql.base import ExecutableOption

from howdah import bulk
from howdah._keys import (
    distinct,
    has_exact_keys,
    has_key_in,
    key_attributes,
    key_from,
    key_of,
    keys_from,
    listed,
    requested_keys,
)
from howdah._reads.page import Page
from howdah._sqlalchemy import options_of
from howdah._writes.rows import refuse_unknown
from howdah.errors import NotFound
from howdah.locking import lock
from howdah.pagination import count_rows, get_entity, has_rows, paginate, reject_own_limit, with_total_order

ModelT = TypeVar("ModelT", bound=DeclarativeBase)
LoadWhat: TypeAlias = Sequence[QueryableAttribute[Any] | ExecutableOption]


class AsyncRepository(Generic[ModelT]):
    """The rows of one model, in the session that it is given. It flushes and never commits.

    The model is the type parameter of a subclass, or the second argument:

        class UserRepository(AsyncRepository[User]): ...
        users = UserRepository(session)
        orders = AsyncRepository(session, Order)

    Methods that read take a `Select` of the model. Without one they read all rows. `load` names what to load with the
    rows: relationships (`load=[User.orders]`, one further statement for each), or SQLAlchemy's loader options for
    anything deeper. A key is the value of the primary key, a tuple if the primary key is composite, or a mapping of the
    key's attribute names to values. PostgreSQL decides which row a key belongs to.
    """

    _declared_model: ClassVar[Any] = ModelT  # type: ignore[misc]  # the model, or the type parameter that is going to be it

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__dict__.get("__orig_bases__", ()):
            origin = get_origin(base)
            if isinstance(origin, type) and issubclass(origin, AsyncRepository):
                given = dict(zip(origin.__parameters__, get_args(base), strict=True))  # type: ignore[attr-defined]
                cls._declared_model = given.get(origin._declared_model, origin._declared_model)

    def __init__(self, session: AsyncSession, model: type[ModelT] | None = None) -> None:
        chosen = self._declared_model if model is None else model
        if not isinstance(chosen, type):
            raise TypeError(
                "which model? Pass it, AsyncRepository(session, User), "
                "or name it, class UserRepository(AsyncRepository[User])"
            )
        self.session = session
        self.model: type[ModelT] = chosen

    async def get(self, id: Any, *, load: LoadWhat = ()) -> ModelT | None:
        """The object with this key, or None. One that the session holds already comes without a statement, unless
        there is something to load with it."""
        key = key_from(self.model, id)
        if not load:
            return await self.session.get(self.model, key)
        values = key if isinstance(key, tuple) else (key,)
        same_key = (column == value for column, value in zip(key_attributes(self.model), values, strict=True))
        return (await self._objects(self._all().where(*same_key), load)).one_or_none()

    async def get_one(self, id: Any, *, load: LoadWhat = ()) -> ModelT:
        """The object with this key; raises `NotFound`."""
        found = await self.get(id, load=load)
        if found is None:
            raise NotFound(self.model, [id])
        return found

    async def get_by_ids(self, ids: Iterable[Any], *, load: LoadWhat = ()) -> list[ModelT]:
        """The objects with these keys, each once, in the order of the keys. Missing ones are left out.

        There may be any number of keys.
        """
        keys = keys_from(self.model, listed(self.model, ids))
        if not keys:
            return []
        if has_exact_keys(self.model):
            keys = distinct(keys)
            rows = await self._objects(self._all().where(has_key_in(self.model, keys)), load)
            found = {key_of(row): row for row in rows}
            return [found[key] for key in keys if key in found]
        position, same_row = requested_keys(self.model, keys)
        matching = self._loading(self._all().add_columns(position).where(same_row), load)
        matches = (await self.session.execute(matching)).unique().all()
        in_order = sorted(matches, key=lambda match: match[1])
        return [*{id(instance): instance for instance, _ in in_order}.values()]

    async def list(
        self,
        statement: Select[Any] | None = None,
        *,
        offset: int = 0,
        limit: int | None = 100,
        load: LoadWhat = (),
    ) -> list[ModelT]:
        """Rows in a stable order: the statement's own, then the key, in the direction of what comes before it.
        `limit=None` means all.

        An object that a join brings several times comes once, but `limit` counts each of them. A high offset is slow,
        and shifts when rows come and go: for walking a listing take `page`.
        """
        if offset < 0 or (limit is not None and limit < 0):
            raise ValueError(f"offset and limit can't be negative: {offset}, {limit}")
        listing = self._listing(statement)
        reject_own_limit(listing)
        listing = with_total_order(listing).offset(literal(offset, BigInteger))
        if limit is not None:
            listing = listing.limit(literal(limit, BigInteger))
        return list(await self._objects(listing, load))

    async def page(
        self,
        statement: Select[Any] | None = None,
        *,
        limit: int = 50,
        after: str | None = None,
        before: str | None = None,
        count: bool | int = False,
        load: LoadWhat = (),
    ) -> Page[ModelT]:
        """A keyset page; see `howdah.pagination.paginate`."""
        listing = self._loading(self._listing(statement), load)
        return await paginate(self.session, listing, limit=limit, after=after, before=before, count=count)

    async def count(self, statement: Select[Any] | None = None) -> int:
        """How many rows there are; up to the statement's own limit, if it has one."""
        return await count_rows(self.session, self._all() if statement is None else statement)

    async def exists(self, statement: Select[Any] | None = None) -> bool:
        """Whether there is any row."""
        return await has_rows(self.session, self._all() if statement is None else statement)

    async def stream(
        self, statement: Select[Any] | None = None, *, batch: int = 1000, load: LoadWhat = ()
    ) -> AsyncIterator[ModelT]:
        """Rows one after the other, in the order of `list`, `batch` of them in memory at a time (server-side cursor).

        Use it with `async for`. The session can run other statements meanwhile, but it must not commit before the end.
        Collections with `lazy="joined"` are loaded by a further statement for each batch, unless loader options say
        otherwise. SQLAlchemy rejects `joinedload` of a collection here; use `load=[User.orders]` instead.
        """
        if batch < 1:
            raise ValueError(f"a batch holds at least one row, not {batch}")
        listing = with_total_order(self._listing(statement))
        options = [*options_of(listing), *load]
        if not any(isinstance(option, LoaderOption) for option in options):  # two options would conflict
            listing = listing.options(*_collections_by_select(listing))
        listing = self._loading(listing, load).execution_options(yield_per=batch)
        result = await self.session.stream_scalars(listing)
        try:
            async for row in result:
                yield row
        finally:
            await result.close()

    async def create(self, **values: Any) -> ModelT:
        """A new row, flushed. Raises `UnknownAttribute` before anything is sent, or the constraint's error."""
        refuse_unknown(self.model, values)
        instance = self.model(**values)
        self.session.add(instance)
        await self.session.flush()
        return instance

    async def create_many(
        self, rows: bulk.Rows, *, chunk_size: int | None = None, keys: bool = True
    ) -> bulk.InsertResult:
        """New rows from mappings, Pydantic models, dataclasses or objects; see `howdah.bulk.insert_many`."""
        return await bulk.insert_many(self.session, self.model, rows, chunk_size=chunk_size, keys=keys)

    async def update(self, instance: ModelT, **values: Any) -> ModelT:
        """Set attributes and flush. Raises `UnknownAttribute` before anything is set, `StaleRow` for a `Versioned`
        model whose row has moved on, `InvalidRequestError` for an object that isn't in this session."""
        self._refuse_foreign(instance)
        refuse_unknown(type(instance), values)
        for name, value in values.items():
            setattr(instance, name, value)
        await self.session.flush()
        return instance

    async def update_many(self, rows: bulk.Rows, *, chunk_size: int | None = None) -> bulk.MatchResult:
        """Each row to its own values, by the key that it names; see `howdah.bulk.update_many`."""
        return await bulk.update_many(self.session, self.model, rows, chunk_size=chunk_size)

    async def update_where(self, criterion: ColumnElement[bool], **values: Any) -> int:
        """The same values for every row that the criterion finds; how many. See `howdah.bulk.update_where`."""
        return await bulk.update_where(self.session, self.model, criterion, values)

    async def upsert_many(
        self,
        rows: bulk.Rows,
        *,
        on: Sequence[str] | None = None,
        update: Sequence[str] | None = None,
        chunk_size: int | None = None,
    ) -> bulk.UpsertResult:
        """Insert, or update what is there; see `howdah.bulk.upsert_many`."""
        return await bulk.upsert_many(self.session, self.model, rows, on=on, update=update, chunk_size=chunk_size)

    async def delete(self, instance: ModelT) -> None:
        """Delete the object's row and flush. Relationships cascade as they say; without a cascade, rows that refer to
        this one let go of it, or raise `NotNullViolation` where they can't. Raises `StaleRow` and
        `InvalidRequestError` as `update` does."""
        self._refuse_foreign(instance)
        await self.session.delete(instance)
        await self.session.flush()

    async def delete_many(self, ids: Iterable[Any]) -> bulk.MatchResult:
        """Delete the rows with these keys; see `howdah.bulk.delete_many`."""
        return await bulk.delete_many(self.session, self.model, ids)

    async def lock(self, ids: Iterable[Any], *, nowait: bool = False, skip_locked: bool = False) -> dict[Any, ModelT]:
        """Lock rows in key order and read them anew; see `howdah.locking.lock`."""
        return await lock(self.session, self.model, ids, nowait=nowait, skip_locked=skip_locked)

    def _refuse_foreign(self, instance: ModelT) -> None:
        if not isinstance(instance, self.model):
            raise TypeError(f"this takes a {self.model.__name__}, not a {type(instance).__name__}: get it first")
        if instance not in self.session:
            raise InvalidRequestError(f"this {type(instance).__name__} isn't in the repository's session")

    def _all(self) -> Select[Any]:
        return select(self.model)

    def _listing(self, statement: Select[Any] | None) -> Select[Any]:
        if statement is None:
            return self._all()
        if not inspect(get_entity(statement)).mapper.isa(inspect(self.model)):
            raise ValueError(f"a listing of this repository is a select({self.model.__name__})")
        return statement

    def _loading(self, statement: Select[Any], load: LoadWhat) -> Select[Any]:
        options = (selectinload(what) if isinstance(what, QueryableAttribute) else what for what in load)
        return statement.options(*options)

    async def _objects(self, statement: Select[Any], load: LoadWhat) -> ScalarResult[ModelT]:
        return (await self.session.scalars(self._loading(statement, load))).unique()


def _collections_by_select(statement: Select[Any]) -> Iterator[ExecutableOption]:
    """`selectinload` for each collection that the mapping loads by a join.

    With a join, the rows of one object could be in two batches.
    """
    entity = get_entity(statement)
    for relationship in inspect(entity).mapper.relationships:
        if relationship.uselist and relationship.lazy in ("joined", False):
            yield selectinload(getattr(entity, relationship.key))
