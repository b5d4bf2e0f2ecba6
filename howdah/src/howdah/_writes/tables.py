"""Mapped classes for tables that have none, such as association tables. Other functions take a mapped class."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Column, Table, inspect
from sqlalchemy.orm import registry

_CLASS: Final = "howdah_class"


def map_table(table: Table) -> type[Any]:
    """A class that is mapped to the table; for one table it is always the same class.

    Its attributes are named by the `key` of the columns.

    Raises `TypeError` for a table without a primary key in which every column has a default.
    """
    # The class is stored in the table's `info`, because a global dictionary would keep tables alive. A copy of a table
    # has the same `info`, so the class may be mapped to the original.
    known: type[Any] | None = table.info.get(_CLASS)
    if known is not None and inspect(known).local_table is table:
        return known
    mapped: type[Any] = type(table.name, (), {"__doc__": f"A row of {table.fullname}."})
    registry().map_imperatively(mapped, table, primary_key=_choose_key_columns(table))
    table.info[_CLASS] = mapped
    return mapped


def _choose_key_columns(table: Table) -> list[Column[Any]]:
    """The primary key, or a column in its place, because SQLAlchemy needs a key.

    None in a key column means that the default generates the value. So the chosen column must have no default.
    """
    if table.primary_key.columns:
        return [*table.primary_key.columns]
    without_default = [each for each in table.columns if each.default is None and each.server_default is None]
    if not without_default:
        raise TypeError(
            f"{table.fullname} has no primary key, and each of its columns has a default: give it a primary key"
        )
    return [min(without_default, key=lambda column: bool(column.nullable))]
