"""The association table of a many-to-many relationship, and the values of its rows."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Column, ColumnElement, Table, func, inspect, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapper, QueryableAttribute, RelationshipProperty

from howdah._arrays import build_array
from howdah._keys import normalize_key
from howdah._sqlalchemy import reverse_relationships_of
from howdah._writes.conflict_targets import has_unique_constraint
from howdah._writes.tables import map_table
from howdah.errors import InvalidValue

Pairs: TypeAlias = Iterable[tuple[Any, Any]] | AsyncIterable[tuple[Any, Any]]


@dataclass(frozen=True)
class LinkTable:
    """The association table of a relationship. `own` and `other` are its columns that refer to the two keys."""

    relationship: RelationshipProperty[Any]
    model: type[Any]
    own: Sequence[Column[Any]]
    other: Sequence[Column[Any]]

    @property
    def names(self) -> list[str]:
        """The attributes of `model` that make a link: those of the own key, then those of the other one."""
        return [column.key for column in (*self.own, *self.other)]

    async def build_rows(self, pairs: Pairs) -> AsyncIterator[dict[str, Any]]:
        """A row for each pair of keys. An error has a note with the pair's position."""
        own, other = self.relationship.parent.class_, self.relationship.mapper.class_
        position = 0
        async for pair in _iterate(pairs):
            try:
                own_key, other_key = pair
                values = (*_to_values(normalize_key(own, own_key)), *_to_values(normalize_key(other, other_key)))
            except (TypeError, ValueError, InvalidValue) as error:
                if isinstance(error, InvalidValue):
                    error.row_index = position
                error.add_note(f"in pair {position} of the input, counted from 0: it must be a tuple of two keys")
                raise
            yield dict(zip(self.names, values, strict=True))
            position += 1

    def match(self, rows: Sequence[dict[str, Any]]) -> ColumnElement[bool]:
        """An SQL condition that is true for the links of these rows."""
        columns = [getattr(self.model, name) for name in self.names]
        arrays = [
            build_array([row[name] for row in rows], column.type)
            for name, column in zip(self.names, columns, strict=True)
        ]
        keys = func.unnest(*arrays).table_valued(*self.names).render_derived(name="howdah_links")
        return tuple_(*columns).in_(select(*keys.c))

    def expire_collections(self, session: AsyncSession) -> None:
        """Expire the collections of the session's objects, in both directions, because links may have changed."""
        for relationship in (self.relationship, *reverse_relationships_of(self.relationship)):
            for instance in session.identity_map.values():
                if isinstance(instance, relationship.parent.class_) and relationship.key in inspect(instance).dict:
                    session.expire(instance, [relationship.key])


def get_association_table(relationship: Any) -> Table:
    """The association table of a many-to-many relationship. Raises `TypeError` if it has none."""
    prop = getattr(relationship, "property", None)
    if not isinstance(prop, RelationshipProperty) or not isinstance(prop.secondary, Table):
        raise TypeError(f"{relationship} has no association table: pass a many-to-many relationship, such as Post.tags")
    return prop.secondary


def find_link_table(relationship: QueryableAttribute[Any]) -> LinkTable:
    """The association table of a many-to-many relationship, with the columns that make a link.

    Raises `TypeError` if the columns don't refer to the keys of the two models, or if links can exist twice.
    """
    table = get_association_table(relationship)
    prop: Any = relationship.property
    own = _find_columns(prop.parent, prop.synchronize_pairs)
    other = _find_columns(prop.mapper, prop.secondary_synchronize_pairs or ())
    if own is None or other is None or prop.viewonly:
        raise TypeError(
            f"{relationship} can't be linked by keys, because its association table doesn't refer to the two primary "
            "keys, or because it is viewonly: use insert_many with the rows of the table"
        )
    model = map_table(table)
    names = [column.key for column in (*own, *other)]
    if not table.primary_key.columns or not has_unique_constraint(model, names):
        raise TypeError(
            f"{table.fullname} can have the same link twice: give it a primary key, and a unique constraint on exactly "
            f"({', '.join(names)})"
        )
    return LinkTable(prop, model, own, other)


def _find_columns(mapper: Mapper[Any], pairs: Sequence[tuple[Any, Any]]) -> list[Column[Any]] | None:
    """The columns that refer to the mapper's key, in the order of the key. None if they refer to other columns."""
    by_referred = dict(pairs)
    if {*by_referred} != {*mapper.primary_key} or len(pairs) != len(by_referred):
        return None
    return [by_referred[column] for column in mapper.primary_key]


def _to_values(key: Any) -> tuple[Any, ...]:
    return key if isinstance(key, tuple) else (key,)


async def _iterate(pairs: Pairs) -> AsyncIterator[tuple[Any, Any]]:
    if isinstance(pairs, AsyncIterable):
        async for pair in pairs:
            yield pair
    else:
        for pair in pairs:
            yield pair
