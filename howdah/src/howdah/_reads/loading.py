"""Relationships that a caller wants to be loaded with the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from sqlalchemy import Select, inspect, select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import QueryableAttribute, selectinload
from sqlalchemy.sql.base import ExecutableOption

from howdah._keys import build_key, get_key_attributes
from howdah.errors import NotFound

LoadOptions: TypeAlias = Sequence[QueryableAttribute[Any] | ExecutableOption]


def add_load_options(statement: Select[Any], load: LoadOptions) -> Select[Any]:
    """Add the options. A relationship is loaded by `selectinload`."""
    options = (selectinload(each) if isinstance(each, QueryableAttribute) else each for each in load)
    return statement.options(*options)


async def load_relationships(session: AsyncSession, instance: object, load: LoadOptions) -> None:
    """Load these relationships of an object whose row was written. Those that are loaded already are loaded again.

    One statement reads the object's row, and one more is sent for each relationship. If `load` has a loader option, all
    other relationships of the object are expired too.
    """
    if not load:
        return
    named = {each.key for each in load if isinstance(each, QueryableAttribute)}
    relationships = inspect(instance).mapper.relationships.keys() if len(named) < len(load) else named
    loaded = [name for name in relationships if name in inspect(instance).dict]
    if loaded:  # an empty list would expire all attributes
        session.expire(instance, loaded)
    model, key = type(instance), inspect(instance).identity
    conditions = (column == value for column, value in zip(get_key_attributes(model), key, strict=True))
    statement = add_load_options(select(model).where(*conditions), load)
    found = (await session.scalars(statement)).unique().one_or_none()
    if found is None:
        raise NotFound(model, [build_key(key)])
    if found is not instance:
        raise InvalidRequestError(
            f"PostgreSQL stores the key of this {model.__name__} in another form than the one you passed, so its "
            "relationships can't be loaded: pass the key as it is stored, or `get` the object after the write"
        )


def build_collection_options(entity: Any) -> Iterator[ExecutableOption]:
    """`selectinload` for each collection that the mapping loads by a join.

    With a join, the rows of one object could be in two batches.
    """
    for relationship in inspect(entity).mapper.relationships:
        if relationship.uselist and relationship.lazy in ("joined", False):
            yield selectinload(getattr(entity, relationship.key))
