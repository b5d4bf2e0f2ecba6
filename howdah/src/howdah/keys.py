"""The primary key of a mapped class: its columns, its values, and sets of them of any size.

A key is the column's value, or for a composite key a tuple in the order of the mapper's primary key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, ColumnElement, Uuid, any_, func, inspect, literal, select, tuple_
from sqlalchemy.orm import QueryableAttribute


def key_attributes(model: type[Any]) -> tuple[QueryableAttribute[Any], ...]:
    """The mapped attributes of the primary key, in the mapper's order."""
    mapper = inspect(model)
    return tuple(getattr(model, mapper.get_property_by_column(column).key) for column in mapper.primary_key)


def key_names(model: type[Any]) -> tuple[str, ...]:
    """The names of those attributes."""
    return tuple(attribute.key for attribute in key_attributes(model))


def key_of(instance: object) -> Any:
    """The key of an object, as it stands in its attributes."""
    return key_in([getattr(instance, name) for name in key_names(type(instance))])


def key_in(values: Sequence[Any]) -> Any:
    """The key that these column values make."""
    return values[0] if len(values) == 1 else tuple(values)


def distinct(model: type[Any], keys: Iterable[Any]) -> list[Any]:
    """Each key once, in the order of first appearance. A UUID written as text is read, so that it compares with what
    comes back from the database; a text that is none raises `ValueError`."""
    columns = inspect(model).primary_key
    if len(columns) == 1 and isinstance(columns[0].type, Uuid):
        keys = (UUID(key) if isinstance(key, str) else key for key in keys)
    return list(dict.fromkeys(keys))


def has_key_in(model: type[Any], keys: Sequence[Any]) -> ColumnElement[bool]:
    """True for the rows with one of these keys.

    The keys travel as one array a key column, so there may be any number of them (a parameter each would end at
    32,767) and the statement's text, which PostgreSQL's and SQLAlchemy's caches go by, is always the same.
    """
    columns = key_attributes(model)
    if len(columns) == 1:
        return columns[0] == any_(literal(list(keys), ARRAY(columns[0].type)))
    if any(len(key) != len(columns) for key in keys):
        raise ValueError(f"a key of {model.__name__} has {len(columns)} values: {', '.join(key_names(model))}")
    arrays = [literal([key[i] for key in keys], ARRAY(column.type)) for i, column in enumerate(columns)]
    rows = func.unnest(*arrays).table_valued(*(f"key{i}" for i in range(len(columns)))).render_derived()
    return tuple_(*columns).in_(select(*rows.c))
