"""Rows of one table that refer to each other, such as those of a tree."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Column, Table, inspect
from sqlalchemy.exc import NoReferenceError
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.exc import UnmappedColumnError


class SelfReference(NamedTuple):
    """The attributes of a foreign key, and the attributes of the same model that they refer to, in the same order."""

    referring: tuple[str, ...]
    referred: tuple[str, ...]


def find_self_references(model: type[Any]) -> list[SelfReference]:
    """The foreign keys between rows of the model's tables, without those that join the tables for inheritance."""
    mapper: Mapper[Any] = inspect(model)
    found = []
    tables = [table for table in mapper.tables if isinstance(table, Table)]
    for constraint in (each for table in tables for each in table.foreign_key_constraints):
        try:
            if constraint.referred_table not in tables:
                continue
            reference = SelfReference(
                tuple(_name(mapper, element.parent) for element in constraint.elements),
                tuple(_name(mapper, element.column) for element in constraint.elements),
            )
        except (NoReferenceError, UnmappedColumnError):
            continue
        if reference.referring != reference.referred:
            found.append(reference)
    return found


def order_parents_first(references: Sequence[SelfReference], rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The positions of the rows, in an order in which each row comes after the rows that it refers to.

    If the rows are already in such an order, it doesn't change. A cycle has no such order; its rows come in any.

    Values are compared in Python. If only PostgreSQL finds two values equal, a row may come too early, and PostgreSQL
    rejects it.
    """
    parents: list[list[int]] = [[] for _ in rows]
    for reference in references:
        places: dict[Hashable, int] = {}
        for place, row in enumerate(rows):
            places.setdefault(_values(row, reference.referred), place)
        for place, row in enumerate(rows):
            values = _values(row, reference.referring)
            if values is not None and values in places:
                parents[place].append(places[values])
    if all(parent <= place for place, each in enumerate(parents) for parent in each):
        return [*range(len(rows))]
    return _after_their_parents(parents)


def _after_their_parents(parents: Sequence[Sequence[int]]) -> list[int]:
    """A depth-first search. It isn't recursive, because a chain may contain all rows."""
    order: list[int] = []
    is_seen = [False] * len(parents)
    for start in range(len(parents)):
        path = [] if is_seen[start] else [(start, iter(parents[start]))]
        is_seen[start] = True
        while path:
            place, left = path[-1]
            parent = next((each for each in left if not is_seen[each]), None)
            if parent is None:
                order.append(place)
                path.pop()
            else:
                is_seen[parent] = True
                path.append((parent, iter(parents[parent])))
    return order


def _values(row: Mapping[str, Any], names: Sequence[str]) -> Hashable:
    """The values in a form that can be compared; None if one is NULL or isn't hashable."""
    values = tuple(str(value) if isinstance(value, UUID) else value for value in map(row.get, names))
    try:
        hash(values)
    except TypeError:
        return None
    return None if None in values else values


def _name(mapper: Mapper[Any], column: Column[Any]) -> str:
    return mapper.get_property_by_column(column).key
