"""The repository: reading and writing the rows of one model in the caller's session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar, cast, get_args, get_origin

from sqlalchemy import Select, func, literal, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, QueryableAttribute, selectinload
from sqlalchemy.sql.base import ExecutableOption

from howdah import bulk
from howdah.errors import NotFound
from howdah.keys import distinct, has_key_in, key_attributes, key_of
from howdah.locking import lock
from howdah.pagination import Page, paginate
from howdah.rows import CHUNK_ROWS, refuse_unknown

ModelT = TypeVar("ModelT", bound=DeclarativeBase)
LoadWhat: TypeAlias = Sequence[QueryableAttribute[Any] | ExecutableOption]


class AsyncRepository(Generic[ModelT]):
    """The rows of one model, in the session that it is given. It flushes and never commits.

    The model is the type parameter of a subclass, or the second argument:

        class UserRepository(AsyncRepository[User]): ...
        users = UserRepository(session)
        orders = AsyncRepository(session, Order)

    What to read is said with a `Select` of the model that the caller composes; left out, it means all rows. `load`
    names what to load with the rows: relationships (`load=[User.orders]`, one further statement each), or SQLAlchemy's
    loader options for anything deeper. A key is the primary key's value, a tuple where it is composite.
    """

    _declared_model: ClassVar[type[DeclarativeBase] | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in getattr(cls, "__orig_bases__", ()):
            origin = get_origin(base)
            if isinstance(origin, type) and issubclass(origin, AsyncRepository) and isinstance(get_args(base)[0], type):
                cls._declared_model = get_args(base)[0]

    def __init__(self, session: AsyncSession, model: type[ModelT] | None = None) -> None:
        declared = cast("type[ModelT] | None", self._declared_model)
        chosen = model if model is not None else declared
        if chosen is None:
            raise TypeError(
                "which model? Pass it, AsyncRepository(session, User), "
                "or name it, class UserRepository(AsyncRepository[User])"
            )
        self.session = session
        self.model: type[ModelT] = chosen

    async def get(self, id: Any, *, load: LoadWhat = ()) -> ModelT | None:
        """The object with this key, or None. One that the session holds already comes without a statement, unless
        there is something to load with it."""
        if not load:
            return await self.session.get(self.model, id)
        return (await self.session.scalars(self._loading(self._with_key(id), load))).one_or_none()

    async def get_one(self, id: Any, *, load: LoadWhat = ()) -> ModelT:
        """The object with this key; raises `NotFound`."""
        found = await self.get(id, load=load)
        if found is None:
            raise NotFound(self.model, [id])
        return found

    async def get_by_ids(self, ids: Iterable[Any], *, load: LoadWhat = ()) -> list[ModelT]:
        """The objects with these keys, any number, in the order asked; each once, missing ones left out."""
        keys = distinct(self.model, ids)
        if not keys:
            return []
        found = {
            key_of(row): row
            for row in await self.session.scalars(self._loading(self._all().where(has_key_in(self.model, keys)), load))
        }
        return [found[key] for key in keys if key in found]

    async def list(
        self,
        statement: Select[Any] | None = None,
        *,
        offset: int = 0,
        limit: int | None = 100,
        load: LoadWhat = (),
    ) -> list[ModelT]:
        """Rows in a stable order: the statement's own, then the key. `limit=None` means all.

        A high offset is slow, and shifts when rows come and go: for walking a listing take `page`.
        """
        if offset < 0 or (limit is not None and limit < 0):
            raise ValueError(f"offset and limit can't be negative: {offset}, {limit}")
        listing = self._ordered(statement).offset(offset).limit(limit)
        return list(await self.session.scalars(self._loading(listing, load)))

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
        listing = self._loading(self._all() if statement is None else statement, load)
        return await paginate(self.session, listing, limit=limit, after=after, before=before, count=count)

    async def count(self, statement: Select[Any] | None = None) -> int:
        """How many rows there are."""
        listing = (self._all() if statement is None else statement).order_by(None)
        counted = select(func.count()).select_from(
            listing.with_only_columns(literal(1), maintain_column_froms=True).subquery()
        )
        return (await self.session.scalars(counted)).one()

    async def exists(self, statement: Select[Any] | None = None) -> bool:
        """Whether there is any row."""
        listing = (self._all() if statement is None else statement).order_by(None)
        return bool(
            await self.session.scalar(
                select(listing.with_only_columns(literal(1), maintain_column_froms=True).exists())
            )
        )

    async def stream(
        self, statement: Select[Any] | None = None, *, batch: int = 1000, load: LoadWhat = ()
    ) -> AsyncIterator[ModelT]:
        """Rows one after the other, in the order of `list`, `batch` of them in memory at a time (server-side cursor).

        Meant for `async for`. The session can run other statements meanwhile, but mustn't commit.
        """
        listing = self._loading(self._ordered(statement), load).execution_options(yield_per=batch)
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

    async def create_many(self, rows: bulk.Rows, *, chunk_size: int = CHUNK_ROWS, keys: bool = True) -> bulk.Created:
        """New rows from mappings, Pydantic models, dataclasses or objects; see `howdah.bulk.insert_many`."""
        return await bulk.insert_many(self.session, self.model, rows, chunk_size=chunk_size, keys=keys)

    async def update(self, instance: ModelT, **values: Any) -> ModelT:
        """Set attributes and flush. Raises `UnknownAttribute` before anything is set, `StaleRow` for a `Versioned`
        model whose row has moved on."""
        refuse_unknown(self.model, values)
        for name, value in values.items():
            setattr(instance, name, value)
        await self.session.flush()
        return instance

    async def update_many(self, rows: bulk.Rows, *, chunk_size: int = CHUNK_ROWS) -> bulk.Matched:
        """Each row to its own values, by the key that it names; see `howdah.bulk.update_many`."""
        return await bulk.update_many(self.session, self.model, rows, chunk_size=chunk_size)

    async def upsert_many(
        self,
        rows: bulk.Rows,
        *,
        on: Sequence[str] | None = None,
        update: Sequence[str] | None = None,
        chunk_size: int = CHUNK_ROWS,
    ) -> bulk.Upserted:
        """Insert, or update what is there; see `howdah.bulk.upsert_many`."""
        return await bulk.upsert_many(self.session, self.model, rows, on=on, update=update, chunk_size=chunk_size)

    async def delete(self, instance: ModelT) -> None:
        """Delete the object's row and flush."""
        await self.session.delete(instance)
        await self.session.flush()

    async def delete_many(self, ids: Iterable[Any]) -> bulk.Matched:
        """Delete the rows with these keys; see `howdah.bulk.delete_many`."""
        return await bulk.delete_many(self.session, self.model, ids)

    async def lock(self, ids: Iterable[Any], *, nowait: bool = False, skip_locked: bool = False) -> dict[Any, ModelT]:
        """Lock rows in key order and read them anew; see `howdah.locking.lock`."""
        return await lock(self.session, self.model, ids, nowait=nowait, skip_locked=skip_locked)

    def _all(self) -> Select[Any]:
        return select(self.model)

    def _with_key(self, key: Any) -> Select[Any]:
        values = key if isinstance(key, tuple) else (key,)
        return self._all().where(
            *(column == value for column, value in zip(key_attributes(self.model), values, strict=True))
        )

    def _ordered(self, statement: Select[Any] | None) -> Select[Any]:
        return (self._all() if statement is None else statement).order_by(*key_attributes(self.model))

    def _loading(self, statement: Select[Any], load: LoadWhat) -> Select[Any]:
        options = (selectinload(what) if isinstance(what, QueryableAttribute) else what for what in load)
        return statement.options(*options)
