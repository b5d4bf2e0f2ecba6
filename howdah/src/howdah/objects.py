"""What a mapped object contributes to a bulk write: all its values to an INSERT, what was set to an UPDATE.

A constructor that fills in attributes (a dataclass's, a Pydantic model's, one of the user's own) makes the two differ:
written to a row that exists, its defaults would overwrite what nobody wanted to change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Final

from pydantic import BaseModel
from sqlalchemy import inspect
from sqlalchemy.orm import DeclarativeBase, InstanceState, LoaderCallableStatus, Mapper

from howdah.keys import key_names

# Since SQLAlchemy 2.1 a dataclass's constructor leaves an attribute with this default alone.
_DONT_SET: Final = getattr(LoaderCallableStatus, "DONT_SET", dataclasses.MISSING)
_TAKE_INSTEAD: Final = "pass mappings or Pydantic models with what is to be written"


def values_of_object(model: type[DeclarativeBase], row: DeclarativeBase, known: frozenset[str]) -> dict[str, Any]:
    """All values that the object has of the `known` attributes, for an INSERT. A None that only its constructor has set
    is left out, as the ORM leaves it out, so that the column's default applies."""
    state = _state_of(model, row)
    if state.key is not None:
        return {name: value for name, value in state.dict.items() if name in known}
    values = {name: state.dict[name] for name in _names_of_new(state) if name in known}
    if None in values.values():
        passed = row.model_fields_set if isinstance(row, BaseModel) else values.keys() - {*_defaulted(row)}
        values = {name: value for name, value in values.items() if value is not None or name in passed}
    return values


def changes_of_object(model: type[DeclarativeBase], row: DeclarativeBase, known: frozenset[str]) -> dict[str, Any]:
    """What is to be written to the object's row, which exists. Raises `TypeError` if the object doesn't show it."""
    state = _state_of(model, row)
    if state.key is None:
        names = names_set_in(model, row) & known
        return {name: value for name, value in state.dict.items() if name in names}
    if state.session is not None:
        raise TypeError(
            f"this {model.__name__} is in a session, which writes its changes itself when it is flushed: leave it to "
            f"that, or {_TAKE_INSTEAD}"
        )
    keys = key_names(model)
    changed = [name for name in state.mapper.column_attrs.keys() if state.attrs[name].history.has_changes()]  # noqa: SIM118
    if not changed or not {*keys}.isdisjoint(changed):
        what = "not changed since" if not changed else "got another key"
        raise TypeError(f"this {model.__name__} was loaded from the database and {what}: {_TAKE_INSTEAD}")
    assert state.identity is not None
    values = dict(zip(keys, state.identity, strict=True))
    version = state.mapper.version_id_col
    if version is not None:
        changed.append(state.mapper.get_property_by_column(version).key)
    return values | {name: state.dict[name] for name in changed if name in state.dict and name in known}


def names_set_in(model: type[DeclarativeBase], row: DeclarativeBase) -> frozenset[str]:
    """The attributes of a new object that its user has set. Raises `TypeError` if the object doesn't show it."""
    state = _state_of(model, row)
    if state.key is not None:
        raise TypeError(
            f"this {model.__name__} was loaded from the database, and what was changed since is less than a new row "
            f"needs: name `update`, or {_TAKE_INSTEAD}"
        )
    if isinstance(row, BaseModel):
        return frozenset(row.model_fields_set)
    unclear = [*_defaulted(row)]
    if not dataclasses.is_dataclass(row) and not _has_default_constructor(state.mapper):
        unclear = ["what its own constructor sets"]
    if unclear:
        raise TypeError(
            f"a {model.__name__} doesn't show whether {', '.join(unclear)} was passed or is a default: {_TAKE_INSTEAD}"
        )
    return frozenset(_names_of_new(state))


def _names_of_new(state: InstanceState[Any]) -> Iterator[str]:
    """What a new object has; not what SQLAlchemy itself has set to tell its class."""
    mapper = state.mapper
    kind = None if mapper.polymorphic_on is None else mapper.get_property_by_column(mapper.polymorphic_on).key
    return (name for name, value in state.dict.items() if name != kind or value != mapper.polymorphic_identity)


def _state_of(model: type[DeclarativeBase], row: DeclarativeBase) -> InstanceState[Any]:
    if type(row) is not model:
        raise TypeError(f"a {type(row).__name__} can't be written as {model.__name__}: what it has more would be lost")
    state: InstanceState[Any] = inspect(row)
    for name in state.mapper.relationships.keys():  # noqa: SIM118  # not a mapping
        if state.transient and state.dict.get(name):
            raise TypeError(f"{model.__name__}.{name} is set: a bulk write writes columns, not related objects")
    return state


def _defaulted(row: object) -> Iterator[str]:
    """The attributes of a mapped dataclass that have a value which can be the class's as well as the user's. The key is
    never one of them: it isn't overwritten."""
    if not dataclasses.is_dataclass(row):
        return
    state: InstanceState[Any] = inspect(row)
    keys = key_names(type(row))
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
    """Whether a new object has nothing but what was passed."""
    for each in mapper.iterate_to_root():
        own = each.class_manager.original_init
        inherited = None if each.inherits is None else each.inherits.class_.__init__
        if own is not each.registry.constructor and own is not inherited:
            return False
    return True
