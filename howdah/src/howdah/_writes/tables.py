"""Mapped classes for a `Table` without one, such as an association table, for functions that take a class."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Column, Table, inspect
from sqlalchemy.orm import registry

_CLASS: Final = "howdah_class"


def map_table(table: Table) -> type[Any]:
    """A class that is mapped to the table, always the same one. Its attributes have the columns' keys.

    Raises `TypeError` for a table without a primary key in which every column has a default.
    """
    # Stored on the table, because a global dictionary would keep tables alive. A copy of the table copies `info`, too.
    known: type[Any] | None = table.info.get(_CLASS)
    if known is not None and inspect(known).local_table is table:
        return known
    made: type[Any] = type(table.name, (), {"__doc__": f"A row of {table.fullname}."})
    registry().map_imperatively(made, table, primary_key=_key_columns(table))
    table.info[_CLASS] = made
    return made


def _key_columns(table: Table) -> list[Column[Any]]:
    """The primary key, or a column in its place, because SQLAlchemy needs a key.

    That column must have no default: None in a key column would mean that the default makes the value.
    """
    if table.primary_key.columns:
        return [*table.primary_key.columns]
    without_default = [each for each in table.columns if each.default is None and each.server_default is None]
    if not without_default:
        raise TypeError(
            f"{table.fullname} has no primary key, and each of its columns has a default: give it a primary key"
        )
    return [min(without_default, key=lambda column: bool(column.nullable))]
