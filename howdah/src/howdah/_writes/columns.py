"""Rows by column, for writes that send one array for each column, with the defaults that Python adds to an INSERT."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat, starmap
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import Column, ColumnDefault, Integer, inspect
from sqlalchemy.orm import Mapper

from howdah._keys import key_attributes, key_names, keys_from
from howdah._sqlalchemy import has_default_version_generator
from howdah.models import utcnow

# The code of the functions in which SQLAlchemy wraps a default that takes no context: one written in Python, and one
# whose signature isn't known.
_WRAPPERS: Final = frozenset(getattr(ColumnDefault(each).arg, "__code__", None) for each in (lambda: None, time.time))


class CopyUnsupported(Exception):
    """These rows need an INSERT with VALUES: a value is made by SQL, or from other values of the row."""


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]] | None:
    """The values of the rows by attribute; None if the rows don't all name the same attributes."""
    names = rows[0].keys()
    if {*map(len, rows)} != {len(names)}:
        return None
    try:
        return {name: [*map(itemgetter(name), rows)] for name in names}
    except KeyError:
        return None


def generate_keys(model: type[Any], given: Mapping[str, Sequence[Any]], count: int) -> dict[str, Sequence[Any]]:
    """The values of the key columns for `count` rows, by attribute; `given` has the columns that the rows name.

    If a row has no key and the column has a default in Python, the default makes the key. Otherwise it stays None, and
    the database makes it.
    """
    columns: dict[str, Sequence[Any]] = {}
    for attribute, column in zip(key_attributes(model), inspect(model).primary_key, strict=True):
        make, values = _default_function(column), given.get(attribute.key)
        if values is None:
            values = [None] * count if make is None else _made(make, count)
        elif make is not None and None in values:
            values = [make() if value is None else value for value in values]
        columns[attribute.key] = values
    return columns


def names_made_by_database(model: type[Any], given: Mapping[str, Sequence[Any]]) -> list[str]:
    """The key columns of which the database makes the values for some of the rows, but not for all."""
    return [
        attribute.key
        for attribute, column in zip(key_attributes(model), inspect(model).primary_key, strict=True)
        if None in (values := given.get(attribute.key, ()))
        and _default_function(column) is None
        and any(value is not None for value in values)
    ]


def with_made_keys(given: Mapping[str, Sequence[Any]], new: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """The columns with the key columns of `new`, but without those that the database makes.

    Raises `CopyUnsupported` if the database makes the keys of some of the rows only.
    """
    columns = {**given, **new}
    for name, values in new.items():
        if None in values:
            if not all(value is None for value in values):
                raise CopyUnsupported
            del columns[name]
    return columns


def keys_in(model: type[Any], columns: Mapping[str, Sequence[Any]], *, first: int = 0) -> Sequence[Any]:
    """The keys in these columns, as `keys_from` makes them."""
    values = [columns[name] for name in key_names(model)]
    return keys_from(model, values[0] if len(values) == 1 else [*zip(*values, strict=True)], first=first)


def with_keys(rows: Sequence[Mapping[str, Any]], keys: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The rows with these keys, as new mappings. A key that is None is left out."""
    complete = []
    for row, values in zip(rows, zip(*keys.values(), strict=True), strict=True):
        named = {**row, **dict(zip(keys, values, strict=True))}
        if None in values:
            named = {name: value for name, value in named.items() if value is not None or name not in keys}
        complete.append(named)
    return complete


def inserted_columns(
    model: type[Any], given: Mapping[str, Sequence[Any]], count: int
) -> dict[Column[Any], Iterable[Any]]:
    """The values that an INSERT of `count` rows writes, by column, before bind processing.

    They are the `given` values, and Python's defaults for the other columns. A value that is the same in all rows is an
    `itertools.repeat`; so is a time that `utcnow` makes. Raises `CopyUnsupported`.
    """
    mapper: Mapper[Any] = inspect(model)
    if len(mapper.tables) > 1 or not _maps_all_defaults(mapper):
        raise CopyUnsupported
    columns: dict[Column[Any], Iterable[Any]] = {}
    for prop in mapper.column_attrs:
        column = prop.columns[0]
        if not isinstance(column, Column) or column.computed is not None:
            continue
        if column is mapper.version_id_col and callable(mapper.version_id_generator):
            columns[column] = repeat(mapper.version_id_generator(None), count)
        elif prop.key in given:
            if column.identity is not None and column.identity.always:
                raise CopyUnsupported  # an INSERT rejects a value for GENERATED ALWAYS, COPY would store it
            columns[column] = given[prop.key]
        elif column is mapper.polymorphic_on:
            columns[column] = repeat(mapper.polymorphic_identity, count)
        elif column.default is not None:
            columns[column] = _defaults(column, count)
    if not columns:
        raise CopyUnsupported  # every value is a default of the database
    return columns


def version_name(model: type[Any]) -> str | None:
    """The attribute that is the version of a row, if there is one."""
    mapper: Mapper[Any] = inspect(model)
    return None if mapper.version_id_col is None else mapper.get_property_by_column(mapper.version_id_col).key


def with_version_increment(model: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that an UPDATE sets, by attribute, including the incremented version.

    Raises `TypeError` if SQLAlchemy's default generator, which adds one, doesn't make the version.
    """
    mapper: Mapper[Any] = inspect(model)
    name = version_name(model)
    if name is None or mapper.version_id_generator is False:  # the database moves it
        return dict(values)
    assert mapper.version_id_col is not None
    if not has_default_version_generator(mapper):
        raise TypeError(
            f"{model.__name__}.{name} has a version_id_generator of its own, which an UPDATE of many rows can't call "
            "for each row: update the objects one by one, or let the database move the version "
            "(version_id_generator=False)"
        )
    if not isinstance(mapper.version_id_col.type, Integer):
        raise TypeError(
            f"{model.__name__}.{name} isn't an integer, so a bulk write can't add one to it: update the objects one by "
            "one, or let the database move the version (version_id_generator=False)"
        )
    return {**values, name: mapper.version_id_col + 1}


def _defaults(column: Column[Any], count: int) -> Iterable[Any]:
    default: Any = column.default
    if default.is_scalar:
        return repeat(default.arg, count)
    make = _default_function(column)
    if make is None:
        raise CopyUnsupported
    if make is utcnow:
        return repeat(utcnow(), count)
    return _made(make, count)


def _made(make: Callable[[], Any], count: int) -> list[Any]:
    values = [*starmap(make, repeat((), count))]
    if len(values) < count:  # `starmap` would end early without an error
        raise RuntimeError(f"{make!r}, a column's default, raised StopIteration")
    return values


def _maps_all_defaults(mapper: Mapper[Any]) -> bool:
    """Whether this class maps all columns of the table that have a default in Python."""
    mapped = {column for prop in mapper.column_attrs for column in prop.columns}
    made = (column for column in mapper.local_table.c if isinstance(column, Column) and column.default is not None)
    return mapped.issuperset(made)


def _default_function(column: Column[Any]) -> Callable[[], Any] | None:
    """The function that makes the column's default in Python, if there is one that takes no context."""
    return without_context(column.default)


def without_context(default: Any) -> Callable[[], Any] | None:
    """The function of a default or onupdate if it takes no context, otherwise None."""
    if default is None or not default.is_callable:
        return None
    if getattr(default.arg, "__code__", None) not in _WRAPPERS:  # the application's own wrapper may take a context
        return None
    function: Callable[[], Any] | None = getattr(default.arg, "__wrapped__", None)
    return function
