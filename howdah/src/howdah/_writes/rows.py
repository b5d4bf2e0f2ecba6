"""The input rows of bulk writes: mappings, Pydantic models, dataclasses and mapped objects."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Hashable, Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import Any, Final, TypeVar, cast

from pydantic import BaseModel
from sqlalchemy import inspect
from sqlalchemy.ext.hybrid import hybrid_method, hybrid_property
from sqlalchemy.orm import ColumnProperty, DeclarativeBase, Mapper, RelationshipProperty
from sqlalchemy.schema import Column

from howdah._writes.objects import get_insert_values, get_set_names, get_update_values
from howdah.errors import UnknownAttribute

ItemT = TypeVar("ItemT")

# Chunks of a list are larger, because it is in memory anyway. PostgreSQL is idle for some milliseconds between chunks.
CHUNK_ROWS: Final = 20_000
LIST_CHUNK_ROWS: Final = 100_000


@dataclasses.dataclass(frozen=True, slots=True)
class InsertedRows:
    """The number of rows that were written, and the keys of all input rows in their order, if they were requested."""

    count: int
    keys: Sequence[Any]


def get_writable_names(model: type[Any]) -> tuple[str, ...]:
    """The attributes of `model` that can be assigned.

    These are columns, relationships, synonyms, composites, and hybrid properties with a setter. Computed columns and
    `viewonly` relationships can't be assigned.
    """
    mapper: Mapper[Any] = inspect(model)
    names = []
    for name, descriptor in mapper.all_orm_descriptors.items():
        prop = mapper.attrs.get(name)
        if isinstance(prop, ColumnProperty) and not _is_stored(prop):
            continue
        if isinstance(prop, RelationshipProperty) and prop.viewonly:
            continue
        if isinstance(descriptor, hybrid_method) or (isinstance(descriptor, hybrid_property) and not descriptor.fset):
            continue
        names.append(name)
    return tuple(names)


def reject_unknown_names(model: type[Any], names: Iterable[str]) -> None:
    """Raise `UnknownAttribute` for the first name that can't be assigned to."""
    _refuse_others(model, names, get_writable_names(model))


def get_column_names(model: type[Any]) -> frozenset[str]:
    """The attributes that are columns, which a bulk write can set."""
    mapper: Mapper[Any] = inspect(model)
    return frozenset(prop.key for prop in mapper.column_attrs if _is_stored(prop))


def reject_non_columns(model: type[Any], names: Iterable[str]) -> None:
    """Raise `UnknownAttribute` for the first name that a bulk write can't set."""
    _refuse_others(model, names, get_column_names(model))


def normalize_rows(model: type[DeclarativeBase], rows: Sequence[object], *, first: int) -> Sequence[dict[str, Any]]:
    """The rows as dictionaries of column attributes and values.

    Don't change them, because they may be the caller's. Attributes that aren't set in a Pydantic model or a mapped
    object are left out, so that defaults apply. Raises `UnknownAttribute` or `TypeError` with a note of the row's
    position, counted from `first`.
    """
    return _read(model, rows, first, get_insert_values)


def normalize_changes(model: type[DeclarativeBase], rows: Sequence[object], *, first: int) -> Sequence[dict[str, Any]]:
    """As `normalize_rows`, for a write of existing rows: of a mapped object only the attributes that the caller has set.

    In a new object these are the attributes that were passed. In a detached object they are the key, the version and
    the changed attributes. Raises `TypeError` for an object that doesn't show what was set.
    """
    return _read(model, rows, first, get_update_values)


def find_names_to_update(
    model: type[DeclarativeBase], rows: Sequence[object], values: Sequence[dict[str, Any]], *, first: int
) -> Sequence[str]:
    """The attributes that an upsert sets on existing rows. `values` is the result of `normalize_rows`.

    Raises `TypeError` for an object that doesn't show what was set.
    """
    every = frozenset(values[0])
    if values is rows:  # mappings
        return [*values[0]]
    common: frozenset[str] | None = None
    for place, row in enumerate(rows, start=first):
        try:
            names = get_set_names(model, row) & every if isinstance(row, model) else every
            if names != (common := names if common is None else common):
                raise TypeError(f"it sets other attributes than row {first}: {', '.join(sorted(names ^ common))}")
        except TypeError as error:
            _note_place(error, place)
            raise
    return [name for name in values[0] if common is None or name in common]


def _read(
    model: type[DeclarativeBase],
    rows: Sequence[object],
    first: int,
    read_object: Callable[[type[DeclarativeBase], DeclarativeBase, frozenset[str]], dict[str, Any]],
) -> Sequence[dict[str, Any]]:
    known = get_column_names(model)
    if {*map(type, rows)} == {dict}:  # the ordinary case, many times faster
        plain = cast("Sequence[dict[str, Any]]", rows)
        if known.issuperset(chain.from_iterable(plain)):
            return plain
    read = []
    for place, row in enumerate(rows, start=first):
        try:
            values = read_object(model, row, known) if isinstance(row, model) else _values_of(model, row)
            if not values.keys() <= known:
                _refuse_others(model, values, known)
        except (UnknownAttribute, TypeError) as error:
            _note_place(error, place)
            raise
        read.append(values)
    return read


def _note_place(error: Exception, place: int) -> None:
    error.add_note(f"in row {place} of the input, counted from 0")


def split_duplicate_keys(items: Sequence[ItemT], key: Callable[[ItemT], Hashable]) -> list[list[ItemT]]:
    """The items in rounds, so that no round has a key twice. The second item with a key is in the second round.

    Writing one round after the other has the same result as writing the items one by one.
    """
    rounds: list[list[ItemT]] = []
    seen: Counter[Hashable] = Counter()
    for item in items:
        number = seen[key(item)]
        seen[key(item)] += 1
        if number == len(rounds):
            rounds.append([])
        rounds[number].append(item)
    return rounds


async def split_into_chunks(
    items: Iterable[ItemT] | AsyncIterable[ItemT], size: int | None = None
) -> AsyncGenerator[list[ItemT], None]:
    """Lists of `size` items; the last one may be shorter. At most one list is read ahead.

    The default size is 20,000, and 100,000 for a list.
    """
    if size is None:
        size = LIST_CHUNK_ROWS if isinstance(items, Sequence) else CHUNK_ROWS
    if size < 1:
        raise ValueError(f"a chunk holds at least one row, not {size}")
    if isinstance(items, Mapping | str | bytes) or not isinstance(items, Iterable | AsyncIterable):
        raise TypeError(f"rows must be an iterable of rows, not a single {type(items).__name__}")
    if isinstance(items, AsyncIterable):
        chunk: list[ItemT] = []
        async for item in items:
            chunk.append(item)
            if len(chunk) == size:
                yield chunk
                chunk = []
        if chunk:
            yield chunk
    else:
        left = iter(items)
        while chunk := [*islice(left, size)]:
            yield chunk


def _is_stored(prop: ColumnProperty[Any]) -> bool:
    column = prop.columns[0]
    return isinstance(column, Column) and column.computed is None


def _refuse_others(model: type[Any], names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise UnknownAttribute(model, name, sorted(known))


def _values_of(model: type[DeclarativeBase], row: object) -> dict[str, Any]:
    if isinstance(row, Mapping):
        return dict(row)
    if isinstance(row, BaseModel):
        return {name: getattr(row, name) for name in row.model_fields_set}
    if dataclasses.is_dataclass(row) and not isinstance(row, type | DeclarativeBase):
        return {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    raise TypeError(f"a row is a mapping, a Pydantic model, a dataclass or a {model.__name__}, not a {type(row)}")
