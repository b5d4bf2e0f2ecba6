"""The primary key of a mapped class: its columns, its values, and conditions for any number of keys.

A key is the value of the primary key column. A composite key is a tuple in the order of the mapper's primary key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import asyncpg.pgproto.pgproto
from sqlalchemy import Column, ColumnElement, Integer, Uuid, and_, any_, bindparam, func, inspect, select, tuple_
from sqlalchemy.orm import Mapper, QueryableAttribute
from sqlalchemy.types import TypeEngine

from howdah._arrays import Array, build_array, resolve_postgresql_type
from howdah._rejected_values import RejectedValue
from howdah.errors import InvalidValue

_INTEGERS: Final = frozenset({int})
_UUIDS: Final = frozenset({UUID, asyncpg.pgproto.pgproto.UUID})
_NO_TYPES: Final[frozenset[type]] = frozenset()


def get_key_attributes(model: type[Any]) -> tuple[QueryableAttribute[Any], ...]:
    """The mapped attributes of the primary key, in the mapper's order. `model` is a mapped class or an alias of one."""
    mapper = inspect(model).mapper
    return tuple(getattr(model, mapper.get_property_by_column(column).key) for column in mapper.primary_key)


def get_key_names(model: type[Any]) -> tuple[str, ...]:
    """The names of the attributes of the primary key, in the mapper's order."""
    return tuple(attribute.key for attribute in get_key_attributes(model))


def get_key(instance: object) -> Any:
    """The key of an object, built from its current attributes."""
    return build_key([getattr(instance, name) for name in get_key_names(type(instance))])


def build_key(values: Sequence[Any]) -> Any:
    """Build a key from the values of its columns: for one column the value itself, otherwise a tuple."""
    return values[0] if len(values) == 1 else tuple(values)


def normalize_key(model: type[Any], key: Any) -> Any:
    """Convert a key to the form that is sent to PostgreSQL.

    A UUID as text becomes a `UUID`. A list, a row, or a mapping of attribute names to values becomes a tuple, or the
    value itself if the key has one column.

    Raises `InvalidValue` for a value that the column can't have, such as a text that isn't a UUID or a fraction for an
    integer. Raises `ValueError` for the wrong number of values or the wrong names.
    """
    columns: tuple[Column[Any], ...] = inspect(model).primary_key
    if type(key) in get_normal_key_types(model):
        return key  # the usual case
    if isinstance(key, Mapping):
        values = _get_values_by_name(model, key)
    else:
        values = tuple(key) if isinstance(key, Sequence) and not isinstance(key, str | bytes) else (key,)
    if len(values) != len(columns):
        names = ", ".join(get_key_names(model))
        raise ValueError(f"a key of {model.__name__} needs one value for each column ({names}), not {key!r}")
    return build_key([_normalize_value(model, column, value) for column, value in zip(columns, values, strict=True)])


def get_normal_key_types(model: type[Any]) -> frozenset[type]:
    """The types of the keys that `normalize_key` returns unchanged: `UUID` or int for a key of one such column."""
    columns = inspect(model).primary_key
    return _get_exact_types(columns[0].type) if len(columns) == 1 else _NO_TYPES


def has_exact_keys(model: type[Any]) -> bool:
    """Whether two results of `normalize_key` are equal in Python if and only if they are equal in PostgreSQL.

    This is so for integers and UUIDs. For other types only PostgreSQL can decide which row a key belongs to. 'Abc' and
    'ABC' are the same key in a citext column, and 'a' and 'a  ' in a CHAR column. An enum member and its name are the
    same key. In a custom type, a UUID and its text may be the same key.
    """
    return all(_get_exact_types(column.type) for column in inspect(model).primary_key)


def collect_keys(model: type[Any], keys: Iterable[Any]) -> list[Any]:
    """The keys as a list. Raises `TypeError` for a single key."""
    is_single = isinstance(keys, str | bytes) or not isinstance(keys, Iterable)
    if is_single or (isinstance(keys, Mapping) and keys.keys() == {*get_key_names(model)}):
        raise TypeError(f"keys of {model.__name__} must be an iterable of keys, not a single {type(keys).__name__}")
    return list(keys)


def normalize_keys(model: type[Any], keys: Sequence[Any], *, first: int = 0) -> Sequence[Any]:
    """Convert each key as `normalize_key` does. An error has a note with the key's position, counted from `first`."""
    columns = inspect(model).primary_key
    if len(columns) == 1 and _get_exact_types(columns[0].type).issuperset(map(type, keys)):
        return keys  # the usual case, many times faster
    normalized = []
    for position, key in enumerate(keys, start=first):
        try:
            normalized.append(normalize_key(model, key))
        except (ValueError, InvalidValue) as error:
            if isinstance(error, InvalidValue):
                error.row_index = position
            error.add_note(f"in row {position} of the input, counted from 0")
            raise
    return normalized


def deduplicate(keys: Iterable[Any]) -> list[Any]:
    """Each key once, in the order of first appearance.

    Python compares the keys. So use this only for exact keys (see `has_exact_keys`), and to report keys without a row.
    """
    return list(dict.fromkeys(keys))


def has_key_in(model: type[Any], keys: Sequence[Any]) -> ColumnElement[bool]:
    """An SQL condition that is true for the rows with one of these keys. The keys are results of `normalize_keys`.

    Each key column is sent as one array, so there may be any number of keys. (A statement can have at most 32,767
    parameters.) The text of the statement doesn't depend on the number of keys, so the statement caches of PostgreSQL
    and SQLAlchemy can be used.
    """
    return _is_in(get_key_attributes(model), _build_key_arrays(model, keys))


def join_requested_keys(model: type[Any], keys: Sequence[Any]) -> tuple[ColumnElement[int], ColumnElement[bool]]:
    """The positions of the keys, counted from 1, and the condition that joins each key to its row.

    Both refer to a table of the keys. A statement that uses one of them also selects from that table.
    """
    return _join_key_table(model, _build_key_arrays(model, keys))


def build_key_list_condition(
    model: type[Any],
) -> tuple[ColumnElement[bool], Callable[[Sequence[Any]], dict[str, list[Any]]]]:
    """`has_key_in` for keys that are bound at execution, and the function that makes the parameters from the keys."""
    arrays, bind = _build_bound_arrays(model)
    return _is_in(get_key_attributes(model), arrays), bind


def build_requested_keys_join(
    model: type[Any], columns: Mapping[str, TypeEngine[Any]] | None = None
) -> tuple[ColumnElement[int], ColumnElement[bool], Callable[[Sequence[Any]], dict[str, list[Any]]]]:
    """`join_requested_keys` for keys that are bound at execution, and the function that makes the parameters.

    The table of the keys is called `get_requested_keys_name(model)`. It may have further `columns`. Each is the
    parameter `howdah_<column>`, an array of the column's type.
    """
    arrays, bind = _build_bound_arrays(model)
    further = {name: bindparam(f"howdah_{name}", type_=Array(kind)) for name, kind in (columns or {}).items()}
    return *_join_key_table(model, arrays, further), bind


def build_key_condition(model: type[Any]) -> tuple[ColumnElement[bool], Callable[[Any], dict[str, Any]]]:
    """The condition for one key that is bound at execution, and the function that makes the parameters from the key.

    It is faster than `build_key_list_condition` with one key: PostgreSQL caches the plan of this comparison, but it
    plans a comparison with an array again at each execution.
    """
    columns = get_key_attributes(model)
    names = [f"key_{position}" for position in range(len(columns))]

    def bind(key: Any) -> dict[str, Any]:
        return dict(zip(names, key if len(names) > 1 else [key], strict=True))

    return and_(*(each == bindparam(name, type_=each.type) for name, each in zip(names, columns, strict=True))), bind


def find_free_name(model: type[Any], name: str) -> str:
    """Add underscores to the name until no attribute or table of the model, and no table of its metadata, has it."""
    mapper: Mapper[Any] = inspect(model).mapper
    tables = [table.name for table in mapper.tables]
    while name in tables or name in mapper.column_attrs or name in mapper.registry.metadata.tables:
        name += "_"
    return name


def _build_key_arrays(model: type[Any], keys: Sequence[Any]) -> list[ColumnElement[Any]]:
    columns = get_key_attributes(model)
    if len(columns) == 1:
        return [build_array(keys, columns[0].type)]
    return [build_array([key[position] for key in keys], each.type) for position, each in enumerate(columns)]


def _build_bound_arrays(
    model: type[Any],
) -> tuple[list[ColumnElement[Any]], Callable[[Sequence[Any]], dict[str, list[Any]]]]:
    columns = get_key_attributes(model)
    names = [f"key_{position}" for position in range(len(columns))]

    def bind(keys: Sequence[Any]) -> dict[str, list[Any]]:
        if len(names) == 1:
            return {names[0]: [*keys]}
        return {name: [key[position] for key in keys] for position, name in enumerate(names)}

    return [bindparam(name, type_=Array(each.type)) for name, each in zip(names, columns, strict=True)], bind


def _is_in(columns: Sequence[QueryableAttribute[Any]], arrays: Sequence[ColumnElement[Any]]) -> ColumnElement[bool]:
    if len(columns) == 1 and columns[0].type.bind_expression(bindparam(None)) is None:
        return columns[0] == any_(arrays[0])
    rows = func.unnest(*arrays).table_valued(*(f"key{i}" for i in range(len(columns)))).render_derived()
    return tuple_(*columns).in_(select(*map(_apply_bind_expression, columns, rows.c)))


def get_requested_keys_name(model: type[Any]) -> str:
    """The name of the table of the requested keys."""
    return find_free_name(model, "howdah_requested")


def _join_key_table(
    model: type[Any], arrays: Sequence[ColumnElement[Any]], further: Mapping[str, ColumnElement[Any]] | None = None
) -> tuple[ColumnElement[int], ColumnElement[bool]]:
    columns, further = get_key_attributes(model), further or {}
    names = [f"key{position}" for position in range(len(columns))]
    table = func.unnest(*arrays, *further.values()).table_valued(*names, *further, with_ordinality="position")
    table = table.render_derived(name=get_requested_keys_name(model))
    position: ColumnElement[int] = table.c.position
    return position, and_(
        *(each == _apply_bind_expression(each, table.c[name]) for each, name in zip(columns, names, strict=True))
    )


def _apply_bind_expression(attribute: QueryableAttribute[Any], value: Any) -> Any:
    """The value in the SQL expression of the column's type, or the value itself if the type has no such expression."""
    expression = attribute.type.bind_expression(value)
    return value if expression is None else expression


def _get_exact_types(kind: TypeEngine[Any]) -> frozenset[type]:
    """The Python types whose values are equal in Python if and only if they are equal in a column of this type.

    The result is empty if no such Python type is known.
    """
    if not type(kind).__module__.startswith("sqlalchemy."):
        return _NO_TYPES  # a custom type may convert values in any way
    if isinstance(kind, Integer):
        return _INTEGERS if isinstance(resolve_postgresql_type(kind), Integer) else _NO_TYPES
    if isinstance(kind, Uuid) and kind.as_uuid and kind.native_uuid:
        return _UUIDS if isinstance(resolve_postgresql_type(kind), Uuid) else _NO_TYPES
    return _NO_TYPES


def _get_values_by_name(model: type[Any], key: Mapping[Any, Any]) -> tuple[Any, ...]:
    names = get_key_names(model)
    if key.keys() != {*names}:
        shown = ", ".join(map(str, key)) or "nothing"
        raise ValueError(f"a key of {model.__name__} as a mapping must name {', '.join(names)}, not {shown}")
    return tuple(key[name] for name in names)


def _normalize_value(model: type[Any], column: Column[Any], value: Any) -> Any:
    """Convert the value of one key column, or raise `InvalidValue`."""
    if isinstance(value, str) and isinstance(column.type, Uuid) and column.type.as_uuid:
        try:
            return UUID(value)
        except ValueError as error:
            raise _build_error(model, column, "isn't a UUID") from error
    if isinstance(column.type, Uuid) and column.type.as_uuid and not isinstance(value, UUID):
        octets = getattr(value, "bytes", None)  # a UUID of another library, which is never equal to a `UUID`
        if isinstance(octets, bytes) and len(octets) == 16:
            return UUID(bytes=octets)
    if _get_exact_types(column.type) is _INTEGERS and type(value) is not int and hasattr(value, "__int__"):
        # The driver would send 1.5 as 1, which may be the key of another row.
        try:
            whole = int(value)
        except (ValueError, OverflowError) as error:  # NaN or infinity
            raise _build_error(model, column, "isn't an integer") from error
        if whole != value:
            raise _build_error(model, column, "isn't an integer")
        return whole
    return value


def _build_error(model: type[Any], column: Column[Any], reason: str) -> InvalidValue:
    name = inspect(model).get_property_by_column(column).key
    return InvalidValue(
        None, None, RejectedValue(f"a key was rejected: its value for {model.__name__}.{name} {reason}")
    )
