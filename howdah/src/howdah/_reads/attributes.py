"""Attributes that a caller names as keyword arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, inspect
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import RelationshipProperty

from howdah.errors import UnknownAttribute


def build_equality_conditions(model: type[Any], values: Mapping[str, Any]) -> list[ColumnElement[bool]]:
    """For each attribute the condition that it equals the value, or IS NULL if the value is None.

    Raises `UnknownAttribute`. A collection can't be compared.
    """
    if not values:
        raise TypeError(f"name at least one attribute of {model.__name__}, with the value to search for")
    known = _get_comparable_names(model)
    conditions: list[ColumnElement[bool]] = []
    for name, value in values.items():
        condition: Any = getattr(model, name) == value if name in known else None
        if not isinstance(condition, ColumnElement):  # a hybrid property may have no SQL expression
            raise UnknownAttribute(model, name, sorted(known - {name}))
        conditions.append(condition)
    return conditions


def _get_comparable_names(model: type[Any]) -> set[str]:
    mapper = inspect(model)
    names = set()
    for name, descriptor in mapper.all_orm_descriptors.items():
        prop = mapper.attrs.get(name)
        if isinstance(prop, RelationshipProperty) and prop.uselist:
            continue
        if prop is not None or isinstance(descriptor, hybrid_property):
            names.add(name)
    return names


def reject_reserved_names(model: type[Any], **options: Any) -> None:
    """Raise `TypeError` if an option was passed whose name is also an attribute of the model."""
    for name, value in options.items():
        if value and name in inspect(model).all_orm_descriptors:
            raise TypeError(
                f"{model.__name__} has an attribute {name!r}, so this call can't take `{name}`: use the session for "
                f"this model, or rename the attribute and pass the column's name to mapped_column()"
            )
