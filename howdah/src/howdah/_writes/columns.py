"""Rows by column, for writes that send the values of all rows column by column, with the defaults of Python."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import repeat, starmap
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import Column, ColumnDefault, Integer, inspect
from sqlalchemy.orm import Mapper

from howdah._keys import get_key_attributes, get_key_names, normalize_keys
from howdah._sqlalchemy import has_default_version_generator
from howdah.models import utcnow

# The code of the functions in which SQLAlchemy wraps a default that takes no context: one written in Python, and one
# whose signature isn't known.
_WRAPPERS: Final = frozenset(getattr(ColumnDefault(each).arg, "__code__", None) for each in (lambda: None, time.time))


class ColumnarUnsupported(Exception):
    """The rows can't be sent column by column, so they need an INSERT with VALUES.

    For example, SQL makes a default, or a function makes it from other values of the row.
    """


class UnevenRows(Exception):
    """The rows don't all name the same attributes."""


def transpose_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Turn rows into columns: the values of all rows by attribute. Raises `UnevenRows`. `rows` must not be empty."""
    names = rows[0].keys()
    if {*map(len, rows)} != {len(names)}:
        raise UnevenRows
    try:
        return {name: [*map(itemgetter(name), rows)] for name in names}
    except KeyError:
        raise UnevenRows from None


def transpose_input_rows(
    rows: Sequence[Mapping[str, Any]], required: Sequence[str], *, first: int
) -> dict[str, list[Any]]:
    """As `transpose_rows`, for rows of the input that begin at position `first`.

    Raises `ValueError` for the first row that lacks a `required` attribute or names other attributes than the first
    row.
    """
    with suppress(UnevenRows):
        columns = transpose_rows(rows)
        if columns.keys() >= {*required}:
            return columns
    for position, row in enumerate(rows, start=first):
        missing = [name for name in required if name not in row]
        if missing:
            raise ValueError(f"row {position} of the input, counted from 0, must name {', '.join(missing)}")
        if row.keys() != rows[0].keys():
            raise ValueError(
                f"row {position} of the input, counted from 0, names other attributes than row {first}: "
                "all rows must name the same ones"
            )
    raise AssertionError("unreachable: `transpose_rows` accepts rows that name the same attributes")


def generate_keys(model: type[Any], columns: Mapping[str, Sequence[Any]], count: int) -> dict[str, Sequence[Any]]:
    """The values of the key columns for `count` rows, by attribute. `columns` has the columns that the rows name.

    If a row has no value and the column has a default in Python, the value is generated. Otherwise it is None: the
    database generates it.
    """
    keys: dict[str, Sequence[Any]] = {}
    for attribute, column in zip(get_key_attributes(model), inspect(model).primary_key, strict=True):
        make, values = _get_default_function(column), columns.get(attribute.key)
        if values is None:
            values = [None] * count if make is None else _generate(make, count)
        elif make is not None and None in values:
            values = [make() if value is None else value for value in values]
        keys[attribute.key] = values
    return keys


def find_partly_generated_keys(model: type[Any], columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """The key columns for which the database generates the values of some rows, but not of all rows."""
    return [
        attribute.key
        for attribute, column in zip(get_key_attributes(model), inspect(model).primary_key, strict=True)
        if None in (values := columns.get(attribute.key, ()))
        and _get_default_function(column) is None
        and any(value is not None for value in values)
    ]


def add_key_columns(
    columns: Mapping[str, Sequence[Any]], keys: Mapping[str, Sequence[Any]]
) -> dict[str, Sequence[Any]]:
    """The columns and the key columns, without the key columns that the database generates.

    Raises `ColumnarUnsupported` if the database generates the values of some of the rows only.
    """
    complete = {**columns, **keys}
    for name, values in keys.items():
        if None in values:
            if not all(value is None for value in values):
                raise ColumnarUnsupported
            del complete[name]
    return complete


def extract_keys(model: type[Any], columns: Mapping[str, Sequence[Any]], *, first: int = 0) -> Sequence[Any]:
    """The keys of the rows, from these columns, in the form that `normalize_keys` returns. Raises the same errors."""
    values = [columns[name] for name in get_key_names(model)]
    return normalize_keys(model, values[0] if len(values) == 1 else [*zip(*values, strict=True)], first=first)


def add_keys_to_rows(rows: Sequence[Mapping[str, Any]], keys: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The rows with these key columns, as new dictionaries. A key value that is None is left out."""
    complete = []
    for row, values in zip(rows, zip(*keys.values(), strict=True), strict=True):
        named = {**row, **dict(zip(keys, values, strict=True))}
        if None in values:
            named = {name: value for name, value in named.items() if value is not None or name not in keys}
        complete.append(named)
    return complete


def build_insert_columns(
    model: type[Any], values_by_name: Mapping[str, Sequence[Any]], count: int
) -> dict[Column[Any], Iterable[Any]]:
    """The values that an INSERT of `count` rows writes, by column, before bind processing.

    These are `values_by_name`, and Python's defaults for the other columns. If a default has the same value in all
    rows, its values are an `itertools.repeat`. This includes `utcnow`, which is called once. Raises
    `ColumnarUnsupported`.
    """
    mapper: Mapper[Any] = inspect(model)
    if len(mapper.tables) > 1 or not _maps_all_defaults(mapper):
        raise ColumnarUnsupported
    columns: dict[Column[Any], Iterable[Any]] = {}
    for prop in mapper.column_attrs:
        column = prop.columns[0]
        if not isinstance(column, Column) or column.computed is not None:
            continue
        if column is mapper.version_id_col and callable(mapper.version_id_generator):
            columns[column] = repeat(mapper.version_id_generator(None), count)
        elif prop.key in values_by_name:
            if column.identity is not None and column.identity.always:
                raise ColumnarUnsupported  # an INSERT rejects a value for GENERATED ALWAYS, but COPY would store it
            columns[column] = values_by_name[prop.key]
        elif column is mapper.polymorphic_on:
            columns[column] = repeat(mapper.polymorphic_identity, count)
        elif column.default is not None:
            columns[column] = _generate_defaults(column, count)
    if not columns:
        raise ColumnarUnsupported  # all values are defaults of the database
    return columns


def get_version_name(model: type[Any]) -> str | None:
    """The attribute that has the version of a row. None if the model has no version."""
    mapper: Mapper[Any] = inspect(model)
    return None if mapper.version_id_col is None else mapper.get_property_by_column(mapper.version_id_col).key


def with_version_increment(model: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that an UPDATE sets, by attribute, including the incremented version.

    Raises `TypeError` if the version isn't an integer that SQLAlchemy's default generator increments by one.
    """
    mapper: Mapper[Any] = inspect(model)
    name = get_version_name(model)
    if name is None or mapper.version_id_generator is False:  # the database changes the version
        return dict(values)
    assert mapper.version_id_col is not None
    if not has_default_version_generator(mapper):
        raise TypeError(
            f"{model.__name__}.{name} has its own version_id_generator, which an UPDATE of many rows can't call "
            "for each row: update the objects one by one, or let the database change the version "
            "(version_id_generator=False)"
        )
    if not isinstance(mapper.version_id_col.type, Integer):
        raise TypeError(
            f"{model.__name__}.{name} isn't an integer, so a bulk write can't add one to it: update the objects one by "
            "one, or let the database change the version (version_id_generator=False)"
        )
    return {**values, name: mapper.version_id_col + 1}


def _generate_defaults(column: Column[Any], count: int) -> Iterable[Any]:
    default: Any = column.default
    if default.is_scalar:
        return repeat(default.arg, count)
    make = _get_default_function(column)
    if make is None:
        raise ColumnarUnsupported
    if make is utcnow:
        return repeat(utcnow(), count)
    return _generate(make, count)


def _generate(make: Callable[[], Any], count: int) -> list[Any]:
    values = [*starmap(make, repeat((), count))]
    if len(values) < count:  # StopIteration ends `starmap` without an error
        raise RuntimeError(f"the default {make!r} of a column raised StopIteration")
    return values


def _maps_all_defaults(mapper: Mapper[Any]) -> bool:
    """Whether this class maps all columns of the table that have a default in Python."""
    mapped = {column for prop in mapper.column_attrs for column in prop.columns}
    table = mapper.local_table
    with_default = (column for column in table.c if isinstance(column, Column) and column.default is not None)
    return mapped.issuperset(with_default)


def _get_default_function(column: Column[Any]) -> Callable[[], Any] | None:
    """The function of the column's default in Python. None if there is none, or if it takes a context."""
    return get_context_free_function(column.default)


def get_context_free_function(default: Any) -> Callable[[], Any] | None:
    """The function of a default or onupdate. None if there is none, or if it takes a context."""
    if default is None or not default.is_callable:
        return None
    if getattr(default.arg, "__code__", None) not in _WRAPPERS:  # the application's own wrapper may take a context
        return None
    function: Callable[[], Any] | None = getattr(default.arg, "__wrapped__", None)
    return function
