"""The values of a mapped object for a bulk write: all values for an INSERT, only those that were set for an UPDATE.

The values differ if a constructor sets defaults: that of a dataclass, of a Pydantic model, or of the class itself. In
an UPDATE such defaults would overwrite values that the caller didn't want to change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Final

from pydantic import BaseModel
from sqlalchemy import inspect
from sqlalchemy.orm import DeclarativeBase, InstanceState, LoaderCallableStatus, Mapper

from howdah._keys import get_key_names

# Since SQLAlchemy 2.1 a dataclass's constructor doesn't set an attribute that has this default.
_DONT_SET: Final = getattr(LoaderCallableStatus, "DONT_SET", dataclasses.MISSING)
_ALTERNATIVE: Final = "pass mappings or Pydantic models with the values to write"


def get_insert_values(model: type[DeclarativeBase], row: DeclarativeBase, known: frozenset[str]) -> dict[str, Any]:
    """All values of the object's `known` attributes, for an INSERT.

    An attribute that only the constructor has set to None is left out, so that the column's default applies. The ORM
    does the same.
    """
    state = _get_writable_state(model, row)
    if state.key is not None:
        return {name: value for name, value in state.dict.items() if name in known}
    values = {name: state.dict[name] for name in _find_new_names(state) if name in known}
    if None in values.values():
        passed = row.model_fields_set if isinstance(row, BaseModel) else values.keys() - {*_find_unclear_names(row)}
        values = {name: value for name, value in values.items() if value is not None or name in passed}
    return values


def get_update_values(model: type[DeclarativeBase], row: DeclarativeBase, known: frozenset[str]) -> dict[str, Any]:
    """The values to write to the object's existing row. Raises `TypeError` if it isn't known which values were set."""
    state = _get_writable_state(model, row)
    if state.key is None:
        names = get_set_names(model, row) & known
        return {name: value for name, value in state.dict.items() if name in names}
    if state.session is not None:
        raise TypeError(
            f"this {model.__name__} is in a session, which writes its changes on flush: leave it out of the input, or "
            f"{_ALTERNATIVE}"
        )
    keys = get_key_names(model)
    changed = [name for name in state.mapper.column_attrs.keys() if state.attrs[name].history.has_changes()]  # noqa: SIM118
    if not changed or not {*keys}.isdisjoint(changed):
        state_of_object = "not changed" if not changed else "then given another key"
        raise TypeError(f"this {model.__name__} was loaded from the database and {state_of_object}: {_ALTERNATIVE}")
    assert state.identity is not None
    values = dict(zip(keys, state.identity, strict=True))
    version = state.mapper.version_id_col
    if version is not None:
        changed.append(state.mapper.get_property_by_column(version).key)
    return values | {name: state.dict[name] for name in changed if name in state.dict and name in known}


def get_set_names(model: type[DeclarativeBase], row: DeclarativeBase) -> frozenset[str]:
    """The attributes of a new object that the caller has set. Raises `TypeError` if these aren't known."""
    state = _get_writable_state(model, row)
    if state.key is not None:
        raise TypeError(
            f"this {model.__name__} was loaded from the database, so it isn't known which attributes to update: pass "
            f"`update`, or {_ALTERNATIVE}"
        )
    if isinstance(row, BaseModel):
        return frozenset(row.model_fields_set)
    unclear = [*_find_unclear_names(row)]
    if not dataclasses.is_dataclass(row) and not _has_default_constructor(state.mapper):
        unclear = ["a value that its constructor sets"]
    if unclear:
        raise TypeError(
            f"a {model.__name__} doesn't show whether {', '.join(unclear)} was passed or is a default: {_ALTERNATIVE}"
        )
    return frozenset(_find_new_names(state))


def _find_new_names(state: InstanceState[Any]) -> Iterator[str]:
    """The attributes that a new object has, except the polymorphic identity that SQLAlchemy has set."""
    mapper = state.mapper
    kind = None if mapper.polymorphic_on is None else mapper.get_property_by_column(mapper.polymorphic_on).key
    return (name for name, value in state.dict.items() if name != kind or value != mapper.polymorphic_identity)


def _get_writable_state(model: type[DeclarativeBase], row: DeclarativeBase) -> InstanceState[Any]:
    """The object's state. Raises `TypeError` for another class, and for a new object with related objects."""
    if type(row) is not model:
        raise TypeError(
            f"a {type(row).__name__} can't be written as {model.__name__}: pass a {model.__name__} or a mapping"
        )
    state: InstanceState[Any] = inspect(row)
    for name in state.mapper.relationships.keys():  # noqa: SIM118  # not a mapping
        if state.transient and state.dict.get(name):
            raise TypeError(f"{model.__name__}.{name} is set: a bulk write writes columns, not related objects")
    return state


def _find_unclear_names(row: object) -> Iterator[str]:
    """The attributes of a mapped dataclass whose values may have been passed, or may be defaults.

    The key isn't one of them, because an update doesn't change it.
    """
    if not dataclasses.is_dataclass(row):
        return
    state: InstanceState[Any] = inspect(row)
    keys = get_key_names(type(row))
    for field in dataclasses.fields(row):
        if field.name not in state.dict or field.name in keys or field.name not in state.mapper.column_attrs:
            continue
        if field.default_factory is not dataclasses.MISSING:
            yield field.name
        elif field.default is not dataclasses.MISSING and field.default is not _DONT_SET:
            value = state.dict[field.name]
            if value is field.default or value == field.default:
                yield field.name


def _has_default_constructor(mapper: Mapper[Any]) -> bool:
    """Whether the constructor is SQLAlchemy's, which sets only the attributes that are passed."""
    for each in mapper.iterate_to_root():
        own = each.class_manager.original_init
        inherited = None if each.inherits is None else each.inherits.class_.__init__
        if own is not each.registry.constructor and own is not inherited:
            return False
    return True
