"""The input rows of bulk writes: mappings, Pydantic models, dataclasses and mapped objects, and chunks of them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Hashable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager
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

# A chunk is held in memory. Chunks of a list are larger, because its rows are in memory anyway, and because PostgreSQL
# is idle for some milliseconds between two chunks.
CHUNK_ROWS: Final = 20_000
LIST_CHUNK_ROWS: Final = 100_000


@dataclasses.dataclass(frozen=True, slots=True)
class InsertedRows:
    """The number of rows that were written, and the keys of the rows in the order of the input, if they were requested.

    If a trigger has suppressed rows, there may be more keys than written rows.
    """

    count: int
    keys: Sequence[Any]


def get_writable_names(model: type[Any]) -> tuple[str, ...]:
    """The attributes of `model` that can be assigned.

    These are columns, relationships, synonyms, composites, and hybrid properties with a setter. Computed columns and
    `viewonly` relationships aren't included.
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
    """Raise `UnknownAttribute` for the first name that can't be assigned."""
    _reject_others(model, names, get_writable_names(model))


def get_column_names(model: type[Any]) -> frozenset[str]:
    """The attributes that a bulk write can set: the columns, except computed ones."""
    mapper: Mapper[Any] = inspect(model)
    return frozenset(prop.key for prop in mapper.column_attrs if _is_stored(prop))


def reject_non_columns(model: type[Any], names: Iterable[str]) -> None:
    """Raise `UnknownAttribute` for the first name that a bulk write can't set."""
    _reject_others(model, names, get_column_names(model))


def normalize_rows(model: type[DeclarativeBase], rows: Sequence[object], *, first: int) -> Sequence[dict[str, Any]]:
    """The rows as dictionaries of column attributes and values.

    Don't change them: they may be the caller's own dictionaries. Attributes that aren't set in a Pydantic model or a
    mapped object are left out, so that defaults apply. Raises `UnknownAttribute` or `TypeError`, with a note of the
    row's position, counted from `first`.
    """
    return _normalize(model, rows, first, get_insert_values)


def normalize_changes(model: type[DeclarativeBase], rows: Sequence[object], *, first: int) -> Sequence[dict[str, Any]]:
    """As `normalize_rows`, but for an update of existing rows: only the attributes that were set in a mapped object.

    For a new object these are the attributes that were passed to it. For a detached object they are the key, the
    version and the changed attributes. Raises `TypeError` if it isn't known which attributes of an object were set.
    """
    return _normalize(model, rows, first, get_update_values)


def find_names_to_update(
    model: type[DeclarativeBase], rows: Sequence[object], values: Sequence[dict[str, Any]], *, first: int
) -> Sequence[str]:
    """The attributes that an upsert sets on existing rows. `values` is the result of `normalize_rows` for `rows`.

    Raises `TypeError` if it isn't known which attributes of an object were set, or if these differ between objects.
    """
    every = frozenset(values[0])
    if values is rows:  # all rows are mappings, which are returned as they are
        return [*values[0]]
    common: frozenset[str] | None = None
    for position, row in enumerate(rows, start=first):
        try:
            names = get_set_names(model, row) & every if isinstance(row, model) else every
            if names != (common := names if common is None else common):
                raise TypeError(
                    f"it sets other attributes than row {first}: pass `update`, or set the same ones (the difference "
                    f"is {', '.join(sorted(names ^ common))})"
                )
        except TypeError as error:
            _note_position(error, position)
            raise
    return [name for name in values[0] if common is None or name in common]


def _normalize(
    model: type[DeclarativeBase],
    rows: Sequence[object],
    first: int,
    get_values: Callable[[type[DeclarativeBase], DeclarativeBase, frozenset[str]], dict[str, Any]],
) -> Sequence[dict[str, Any]]:
    """Convert the rows to dictionaries, with `get_values` for mapped objects, and check the names of the attributes."""
    known = get_column_names(model)
    if {*map(type, rows)} == {dict}:  # the usual case, many times faster
        plain = cast("Sequence[dict[str, Any]]", rows)
        if known.issuperset(chain.from_iterable(plain)):
            return plain
    normalized = []
    for position, row in enumerate(rows, start=first):
        try:
            values = get_values(model, row, known) if isinstance(row, model) else _get_values(model, row)
            if not values.keys() <= known:
                _reject_others(model, values, known)
        except (UnknownAttribute, TypeError) as error:
            _note_position(error, position)
            raise
        normalized.append(values)
    return normalized


def _note_position(error: Exception, position: int) -> None:
    error.add_note(f"in row {position} of the input, counted from 0")


def split_duplicate_keys(items: Sequence[ItemT], key: Callable[[ItemT], Hashable]) -> list[list[ItemT]]:
    """Split the items into rounds, so that no round has two items with the same key.

    The first item with a key is in the first round, the second one in the second round. So writing one round after the
    other has the same result as writing the items one by one.
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
    """Split the items into lists of `size` items; the last one may be shorter. No list is empty.

    The default size is 20,000, or 100,000 for a list. The items of the next list are read only when it is requested.
    """
    if size is None:
        size = LIST_CHUNK_ROWS if isinstance(items, Sequence) else CHUNK_ROWS
    if size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {size}")
    if isinstance(items, Mapping | str | bytes) or not isinstance(items, Iterable | AsyncIterable):
        raise TypeError(f"rows must be an iterable of rows, not one {type(items).__name__}: pass a list of rows")
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
        remaining = iter(items)
        while chunk := [*islice(remaining, size)]:
            yield chunk


@asynccontextmanager
async def open_chunks(
    items: Iterable[ItemT] | AsyncIterable[ItemT], size: int | None = None
) -> AsyncIterator[AsyncIterator[list[ItemT]]]:
    """The lists of `split_into_chunks`. The first one is read before the block begins.

    So a transaction that begins in the block doesn't wait for the first rows of the input.
    """
    async with aclosing(split_into_chunks(items, size)) as chunks:
        chunk = await anext(chunks, None)
        first = [] if chunk is None else [chunk]
        del chunk

        async def iterate() -> AsyncIterator[list[ItemT]]:
            while first:
                yield first.pop()  # keeps no reference, because a chunk is large
            async for chunk in chunks:
                yield chunk

        yield iterate()


def _is_stored(prop: ColumnProperty[Any]) -> bool:
    column = prop.columns[0]
    return isinstance(column, Column) and column.computed is None


def _reject_others(model: type[Any], names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise UnknownAttribute(model, name, sorted(known))


def _get_values(model: type[DeclarativeBase], row: object) -> dict[str, Any]:
    if isinstance(row, Mapping):
        return dict(row)
    if isinstance(row, BaseModel):
        return {name: getattr(row, name) for name in row.model_fields_set}
    if dataclasses.is_dataclass(row) and not isinstance(row, type | DeclarativeBase):
        return {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    raise TypeError(f"a row must be a mapping, a Pydantic model, a dataclass or a {model.__name__}, not {type(row)}")
