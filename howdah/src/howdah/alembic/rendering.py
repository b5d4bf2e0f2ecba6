"""Write the types of columns into migrations, so that a migration can import them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import ARRAY, Enum, TypeDecorator
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

from howdah.alembic._private_names import render_type_by_alembic

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext


def render_item(kind: str, item: Any, context: AutogenContext) -> str | Literal[False]:
    """The source of a type, or False if Alembic writes it.

    - A `TypeDecorator` is written as the type that it stores: a later change of its class, or its removal, doesn't
      change an old migration.
    - A type of another package is written with an import of its class.
    """
    if kind != "type":
        return False
    return render_type(item, context)


def render_type(type_: TypeEngine[Any], context: AutogenContext) -> str | Literal[False]:
    """The source of a type, or False if Alembic writes it."""
    if isinstance(type_, TypeDecorator):
        stored = type_.load_dialect_impl(context.dialect)
        return render_type_by_alembic(stored, context)
    if type(type_) is ARRAY or type(type_) is postgresql.ARRAY:
        return _render_array(type_, context)
    if type(type_) is postgresql.ENUM or (type(type_) is Enum and type_.native_enum):
        return _render_native_enum(type_, context)
    module = type(type_).__module__
    if not module.startswith("sqlalchemy."):
        name = type(type_).__qualname__
        context.imports.add(f"from {module} import {name.partition('.')[0]}")
        return f"{name.rpartition('.')[0]}{'.' if '.' in name else ''}{type_!r}"
    return False


def _render_array(type_: ARRAY[Any], context: AutogenContext) -> str:
    """The source of an array type. Alembic finds the item's type by a regular expression, which fails for some."""
    context.imports.add("from sqlalchemy.dialects import postgresql")
    dimensions = f", dimensions={type_.dimensions}" if type_.dimensions is not None else ""
    return f"postgresql.ARRAY({render_type_by_alembic(type_.item_type, context)}{dimensions})"


def _render_native_enum(type_: Enum, context: AutogenContext) -> str:
    """The source of a type of PostgreSQL, which a migration creates once."""
    context.imports.add("from sqlalchemy.dialects import postgresql")
    values = "".join(f"{value!r}, " for value in type_.enums)
    schema = f", schema={type_.schema!r}" if type_.schema else ""
    return f"postgresql.ENUM({values}name={type_.name!r}{schema}, create_type=False)"
