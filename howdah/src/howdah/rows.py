"""What bulk writes take as a row: a mapping, a Pydantic model, a dataclass or a mapped object."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel
from sqlalchemy import inspect
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import ColumnProperty, DeclarativeBase, Mapper
from sqlalchemy.schema import Column

from howdah.errors import UnknownAttribute

ItemT = TypeVar("ItemT")

CHUNK_ROWS: Final = 1000


def writable_names(model: type[Any]) -> tuple[str, ...]:
    """The attributes of `model` that a value can be assigned to: columns, relationships, synonyms, composites, and
    hybrid properties with a setter."""
    mapper: Mapper[Any] = inspect(model)
    names = []
    for name, descriptor in mapper.all_orm_descriptors.items():
        prop = mapper.attrs.get(name)
        if isinstance(prop, ColumnProperty) and not isinstance(prop.columns[0], Column):
            continue  # computed by a column_property
        if isinstance(descriptor, hybrid_property) and descriptor.fset is None:
            continue
        names.append(name)
    return tuple(names)


def refuse_unknown(model: type[Any], names: Iterable[str]) -> None:
    """Raise `UnknownAttribute` for the first name that can't be assigned to."""
    known = writable_names(model)
    for name in names:
        if name not in known:
            raise UnknownAttribute(model, name, known)


def column_names(model: type[DeclarativeBase]) -> frozenset[str]:
    """The attributes that are columns: what a bulk write can set."""
    mapper: Mapper[Any] = inspect(model)
    return frozenset(prop.key for prop in mapper.column_attrs if isinstance(prop.columns[0], Column))


def values_of(model: type[DeclarativeBase], row: object, known: frozenset[str]) -> dict[str, Any]:
    """The row as attribute names and values. Unset fields of a Pydantic model or a mapped object are left out, so
    that defaults apply. Raises `UnknownAttribute` or `TypeError`."""
    values: dict[str, Any]
    if isinstance(row, Mapping):
        values = dict(row)
    elif isinstance(row, DeclarativeBase):
        values = {name: value for name, value in vars(row).items() if name in known}
    elif isinstance(row, BaseModel):
        values = {name: getattr(row, name) for name in row.model_fields_set}
    elif dataclasses.is_dataclass(row) and not isinstance(row, type):
        values = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    else:
        raise TypeError(f"a row is a mapping, a Pydantic model, a dataclass or a {model.__name__}, not {type(row)}")
    for name in values:
        if name not in known:
            raise UnknownAttribute(model, name, sorted(known))
    return values


async def in_chunks(
    items: Iterable[ItemT] | AsyncIterable[ItemT], size: int = CHUNK_ROWS
) -> AsyncIterator[list[ItemT]]:
    """Lists of `size` items, the last one shorter, reading no further ahead than that."""
    if size < 1:
        raise ValueError(f"a chunk holds at least one row, not {size}")
    chunk: list[ItemT] = []
    if isinstance(items, AsyncIterable):
        async for item in items:
            chunk.append(item)
            if len(chunk) == size:
                yield chunk
                chunk = []
    else:
        for item in items:
            chunk.append(item)
            if len(chunk) == size:
                yield chunk
                chunk = []
    if chunk:
        yield chunk
