"""A `Table` that no class is mapped to, as that of a many-to-many relationship, for functions that take a class."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Column, Table, inspect
from sqlalchemy.orm import registry

_CLASS: Final = "howdah_class"


def class_of(table: Table) -> type[Any]:
    """A class that is mapped to the table, always the same one. Its attributes have the columns' keys.

    Raises `TypeError` for a table without a primary key in which every column has a default.
    """
    # With the table, for a dictionary by tables would keep them. A copy of the table copies it, too.
    known: type[Any] | None = table.info.get(_CLASS)
    if known is not None and inspect(known).local_table is table:
        return known
    made: type[Any] = type(table.name, (), {"__doc__": f"A row of {table.fullname}."})
    registry().map_imperatively(made, table, primary_key=_key_columns(table))
    table.info[_CLASS] = made
    return made


def _key_columns(table: Table) -> list[Column[Any]]:
    """The primary key. SQLAlchemy needs one. In its place another column, which must have no default: NULL in a key
    column means that the database is to make the value."""
    if table.primary_key.columns:
        return [*table.primary_key.columns]
    without_default = [each for each in table.columns if each.default is None and each.server_default is None]
    if not without_default:
        raise TypeError(f"{table.fullname} has no primary key, and a default for every column: give it a primary key")
    return [min(without_default, key=lambda column: bool(column.nullable))]
