"""The primary key of a mapped class: its columns, its values, and sets of them of any size.

A key is the column's value, or for a composite key a tuple in the order of the mapper's primary key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final
from uuid import UUID

import asyncpg.pgproto.pgproto
from sqlalchemy import Column, ColumnElement, Uuid, and_, any_, bindparam, func, inspect, literal, select, tuple_
from sqlalchemy.orm import QueryableAttribute

from howdah.arrays import Array

_PLAIN: Final = frozenset({int, UUID, asyncpg.pgproto.pgproto.UUID})


def key_attributes(model: type[Any]) -> tuple[QueryableAttribute[Any], ...]:
    """The mapped attributes of the primary key, in the mapper's order; of a mapped class or an alias of one."""
    mapper = inspect(model).mapper
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


def key_from(model: type[Any], given: Any) -> Any:
    """The key as it compares with what comes back from the database: a UUID written as text is read, a list or a row
    of a composite key becomes a tuple. Raises `ValueError` for a text that is no UUID or the wrong number of values."""
    columns: tuple[Column[Any], ...] = inspect(model).primary_key
    if type(given) in _PLAIN and len(columns) == 1:
        return given  # the ordinary case
    values = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str | bytes) else (given,)
    if len(values) != len(columns):
        raise ValueError(f"a key of {model.__name__} is {', '.join(key_names(model))}: one value each, not {given!r}")
    return key_in([_read(column, value) for column, value in zip(columns, values, strict=True)])


def distinct(model: type[Any], keys: Iterable[Any]) -> list[Any]:
    """Each key once, as `key_from` makes it, in the order of first appearance. Raises `TypeError` for a single key."""
    return list(dict.fromkeys(keys_from(model, listed(model, keys))))


def listed(model: type[Any], keys: Iterable[Any]) -> list[Any]:
    """The keys as a list. Raises `TypeError` for a single key."""
    if isinstance(keys, str | bytes) or not isinstance(keys, Iterable):
        raise TypeError(f"keys of {model.__name__} are an iterable of them, not a single {type(keys).__name__}")
    return list(keys)


def keys_from(model: type[Any], given: Sequence[Any], *, first: int = 0) -> Sequence[Any]:
    """Each as `key_from` makes it. An error has a note of the place, where the first one has the place `first`."""
    if _PLAIN.issuperset(map(type, given)) and len(inspect(model).primary_key) == 1:
        return given  # the ordinary case, many times faster
    keys = []
    for place, key in enumerate(given, start=first):
        try:
            keys.append(key_from(model, key))
        except ValueError as error:
            error.add_note(f"in row {place} of the input, counted from 0")
            raise
    return keys


def has_key_in(model: type[Any], keys: Sequence[Any]) -> ColumnElement[bool]:
    """True for the rows with one of these keys, given as `distinct` makes them.

    The keys travel as one array a key column, so there may be any number of them (a parameter each would end at
    32,767) and the statement's text, which PostgreSQL's and SQLAlchemy's caches go by, is always the same.
    """
    columns = key_attributes(model)
    if len(columns) == 1:
        return _is_in(columns, [literal(list(keys), Array(columns[0].type))])
    return _is_in(columns, [literal([key[i] for key in keys], Array(each.type)) for i, each in enumerate(columns)])


def has_bound_key_in(model: type[Any]) -> tuple[ColumnElement[bool], Callable[[Sequence[Any]], dict[str, list[Any]]]]:
    """As `has_key_in`, for keys that are given when the statement is executed; and what makes them its parameters."""
    columns = key_attributes(model)
    names = [f"key_{place}" for place in range(len(columns))]

    def bind(keys: Sequence[Any]) -> dict[str, list[Any]]:
        if len(names) == 1:
            return {names[0]: [*keys]}
        return {name: [key[place] for key in keys] for place, name in enumerate(names)}

    arrays = [bindparam(name, type_=Array(each.type)) for name, each in zip(names, columns, strict=True)]
    return _is_in(columns, arrays), bind


def has_bound_key(model: type[Any]) -> tuple[ColumnElement[bool], Callable[[Any], dict[str, Any]]]:
    """As `has_bound_key_in`, for a single key: PostgreSQL plans a comparison once, but one with an array each time."""
    columns = key_attributes(model)
    names = [f"key_{place}" for place in range(len(columns))]

    def bind(key: Any) -> dict[str, Any]:
        return dict(zip(names, key if len(names) > 1 else [key], strict=True))

    return and_(*(each == bindparam(name, type_=each.type) for name, each in zip(names, columns, strict=True))), bind


def _is_in(columns: Sequence[QueryableAttribute[Any]], arrays: Sequence[ColumnElement[Any]]) -> ColumnElement[bool]:
    if len(columns) == 1:
        return columns[0] == any_(arrays[0])
    rows = func.unnest(*arrays).table_valued(*(f"key{i}" for i in range(len(columns)))).render_derived()
    return tuple_(*columns).in_(select(*rows.c))


def _read(column: Column[Any], value: Any) -> Any:
    if isinstance(value, str) and isinstance(column.type, Uuid) and column.type.as_uuid:
        return UUID(value)
    return value
