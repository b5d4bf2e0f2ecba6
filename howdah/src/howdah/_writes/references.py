"""Foreign keys between the rows of one table, such as a tree, and the order in which such rows can be inserted."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Column, Table, inspect
from sqlalchemy.exc import NoReferenceError
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.exc import UnmappedColumnError


class SelfReference(NamedTuple):
    """The attributes of a foreign key, and the attributes of the same model that it refers to, in the same order."""

    referring: tuple[str, ...]
    referred: tuple[str, ...]


def find_self_references(model: type[Any]) -> list[SelfReference]:
    """The foreign keys between rows of the model's tables, except those that join the tables for inheritance."""
    mapper: Mapper[Any] = inspect(model)
    found = []
    tables = [table for table in mapper.tables if isinstance(table, Table)]
    for constraint in (each for table in tables for each in table.foreign_key_constraints):
        try:
            if constraint.referred_table not in tables:
                continue
            reference = SelfReference(
                tuple(_get_attribute_name(mapper, element.parent) for element in constraint.elements),
                tuple(_get_attribute_name(mapper, element.column) for element in constraint.elements),
            )
        except (NoReferenceError, UnmappedColumnError):
            continue
        if reference.referring != reference.referred:
            found.append(reference)
    return found


def order_parents_first(references: Sequence[SelfReference], rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The positions of the rows in an order in which each row comes after the rows that it refers to.

    If the rows already are in such an order, it is kept. The rows of a cycle have no such order and come in any order.

    Python compares the values. If two values are equal only in PostgreSQL (citext), a row may come before a row that it
    refers to. PostgreSQL then rejects it.
    """
    parents: list[list[int]] = [[] for _ in rows]
    for reference in references:
        positions: dict[Hashable, int] = {}
        for position, row in enumerate(rows):
            positions.setdefault(_get_comparable_values(row, reference.referred), position)
        for position, row in enumerate(rows):
            values = _get_comparable_values(row, reference.referring)
            if values is not None and values in positions:
                parents[position].append(positions[values])
    if all(parent <= position for position, each in enumerate(parents) for parent in each):
        return [*range(len(rows))]
    return _sort_depth_first(parents)


def _sort_depth_first(parents: Sequence[Sequence[int]]) -> list[int]:
    """Sort positions so that each comes after its `parents`, by a depth-first search.

    The search isn't recursive, because one chain of references may contain all rows.
    """
    order: list[int] = []
    is_seen = [False] * len(parents)
    for start in range(len(parents)):
        path = [] if is_seen[start] else [(start, iter(parents[start]))]
        is_seen[start] = True
        while path:
            position, remaining = path[-1]
            parent = next((each for each in remaining if not is_seen[each]), None)
            if parent is None:
                order.append(position)
                path.pop()
            else:
                is_seen[parent] = True
                path.append((parent, iter(parents[parent])))
    return order


def _get_comparable_values(row: Mapping[str, Any], names: Sequence[str]) -> Hashable:
    """The values in a form that can be compared. None if one of them is NULL or isn't hashable."""
    # The driver's class for UUIDs and Python's can both occur, so their text is compared.
    values = tuple(str(value) if isinstance(value, UUID) else value for value in map(row.get, names))
    try:
        hash(values)
    except TypeError:
        return None
    return None if None in values else values


def _get_attribute_name(mapper: Mapper[Any], column: Column[Any]) -> str:
    return mapper.get_property_by_column(column).key
