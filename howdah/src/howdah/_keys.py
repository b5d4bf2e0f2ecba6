"""The primary key of a mapped class: its columns, its values, and sets of them of any size.

A key is the column's value, or for a composite key a tuple in the order of the mapper's primary key.
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
from howdah.errors import InvalidValue, RefusedValue

_INTEGERS: Final = frozenset({int})
_UUIDS: Final = frozenset({UUID, asyncpg.pgproto.pgproto.UUID})
_NO_TYPES: Final[frozenset[type]] = frozenset()


def get_key_attributes(model: type[Any]) -> tuple[QueryableAttribute[Any], ...]:
    """The mapped attributes of the primary key, in the mapper's order. `model` is a mapped class or an alias of one."""
    mapper = inspect(model).mapper
    return tuple(getattr(model, mapper.get_property_by_column(column).key) for column in mapper.primary_key)


def get_key_names(model: type[Any]) -> tuple[str, ...]:
    """The names of those attributes."""
    return tuple(attribute.key for attribute in get_key_attributes(model))


def get_key(instance: object) -> Any:
    """The key of an object, from its current attributes."""
    return build_key([getattr(instance, name) for name in get_key_names(type(instance))])


def build_key(values: Sequence[Any]) -> Any:
    """The key that these column values make."""
    return values[0] if len(values) == 1 else tuple(values)


def normalize_key(model: type[Any], given: Any) -> Any:
    """The key in the form that is sent to PostgreSQL.

    A UUID as text becomes a `UUID`. A list, a row, or a mapping of attribute names to values becomes a tuple, or the
    value itself if the key has one column.

    Raises `InvalidValue` for a value that the column can't have, such as a text that isn't a UUID or a fraction for an
    integer. Raises `ValueError` for the wrong number of values or the wrong names.
    """
    columns: tuple[Column[Any], ...] = inspect(model).primary_key
    if len(columns) == 1 and type(given) in _exact_types(columns[0].type):
        return given  # the ordinary case
    if isinstance(given, Mapping):
        values = _values_by_name(model, given)
    else:
        values = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str | bytes) else (given,)
    if len(values) != len(columns):
        raise ValueError(
            f"a key of {model.__name__} is {', '.join(get_key_names(model))}: one value each, not {given!r}"
        )
    return build_key([_read(model, column, value) for column, value in zip(columns, values, strict=True)])


def has_exact_keys(model: type[Any]) -> bool:
    """Whether two results of `normalize_key` are equal in Python if and only if they are equal in PostgreSQL.

    For all other types only PostgreSQL can decide which row a key belongs to. 'Abc' and 'ABC' are the same key in a
    citext column, and 'a' and 'a  ' in a CHAR column. The same holds for an enum member and its name, and for a UUID
    and its text in a custom type.
    """
    return all(_exact_types(column.type) for column in inspect(model).primary_key)


def collect_keys(model: type[Any], keys: Iterable[Any]) -> list[Any]:
    """The keys as a list. Raises `TypeError` for a single key."""
    is_single = isinstance(keys, str | bytes) or not isinstance(keys, Iterable)
    if is_single or (isinstance(keys, Mapping) and keys.keys() == {*get_key_names(model)}):
        raise TypeError(f"keys of {model.__name__} must be an iterable of keys, not a single {type(keys).__name__}")
    return list(keys)


def normalize_keys(model: type[Any], given: Sequence[Any], *, first: int = 0) -> Sequence[Any]:
    """The result of `normalize_key` for each key. An error has a note with the key's position, counted from `first`."""
    columns = inspect(model).primary_key
    if len(columns) == 1 and _exact_types(columns[0].type).issuperset(map(type, given)):
        return given  # the ordinary case, many times faster
    keys = []
    for place, key in enumerate(given, start=first):
        try:
            keys.append(normalize_key(model, key))
        except (ValueError, InvalidValue) as error:
            if isinstance(error, InvalidValue):
                error.row_index = place
            error.add_note(f"in row {place} of the input, counted from 0")
            raise
    return keys


def deduplicate(keys: Iterable[Any]) -> list[Any]:
    """Each key once, in the order of first appearance. Use it for exact keys, and to report keys without a row only."""
    return list(dict.fromkeys(keys))


def has_key_in(model: type[Any], keys: Sequence[Any]) -> ColumnElement[bool]:
    """True for the rows with one of these keys, which are results of `normalize_keys`.

    The keys are sent as one array for each key column. So there may be any number of keys; with a parameter for each
    key the limit would be 32,767. The text of the statement is always the same, so the caches of PostgreSQL and
    SQLAlchemy find it.
    """
    return _is_in(get_key_attributes(model), _key_arrays(model, keys))


def join_requested_keys(model: type[Any], keys: Sequence[Any]) -> tuple[ColumnElement[int], ColumnElement[bool]]:
    """The positions of the keys, counted from 1, and the condition that joins each key to its row.

    Both refer to a table of the keys. A statement that uses them selects from that table, too.
    """
    return _joined(model, _key_arrays(model, keys))


def build_key_list_condition(
    model: type[Any],
) -> tuple[ColumnElement[bool], Callable[[Sequence[Any]], dict[str, list[Any]]]]:
    """As `has_key_in` for keys that are bound at execution, and the function that makes the parameters."""
    arrays, bind = _bound_arrays(model)
    return _is_in(get_key_attributes(model), arrays), bind


def build_requested_keys_join(
    model: type[Any],
) -> tuple[ColumnElement[int], ColumnElement[bool], Callable[[Sequence[Any]], dict[str, list[Any]]]]:
    """As `join_requested_keys` for keys that are bound at execution, and the function that makes the parameters."""
    arrays, bind = _bound_arrays(model)
    return *_joined(model, arrays), bind


def build_key_condition(model: type[Any]) -> tuple[ColumnElement[bool], Callable[[Any], dict[str, Any]]]:
    """As `build_key_list_condition`, for a single key.

    PostgreSQL caches the plan of such a comparison, but plans a comparison with an array at each execution.
    """
    columns = get_key_attributes(model)
    names = [f"key_{place}" for place in range(len(columns))]

    def bind(key: Any) -> dict[str, Any]:
        return dict(zip(names, key if len(names) > 1 else [key], strict=True))

    return and_(*(each == bindparam(name, type_=each.type) for name, each in zip(names, columns, strict=True))), bind


def find_free_name(model: type[Any], name: str) -> str:
    """The name, with underscores added if an attribute or a table of the model or of its metadata has that name."""
    mapper: Mapper[Any] = inspect(model).mapper
    tables = [table.name for table in mapper.tables]
    while name in tables or name in mapper.column_attrs or name in mapper.registry.metadata.tables:
        name += "_"
    return name


def _key_arrays(model: type[Any], keys: Sequence[Any]) -> list[ColumnElement[Any]]:
    columns = get_key_attributes(model)
    if len(columns) == 1:
        return [build_array(keys, columns[0].type)]
    return [build_array([key[place] for key in keys], each.type) for place, each in enumerate(columns)]


def _bound_arrays(model: type[Any]) -> tuple[list[ColumnElement[Any]], Callable[[Sequence[Any]], dict[str, list[Any]]]]:
    columns = get_key_attributes(model)
    names = [f"key_{place}" for place in range(len(columns))]

    def bind(keys: Sequence[Any]) -> dict[str, list[Any]]:
        if len(names) == 1:
            return {names[0]: [*keys]}
        return {name: [key[place] for key in keys] for place, name in enumerate(names)}

    return [bindparam(name, type_=Array(each.type)) for name, each in zip(names, columns, strict=True)], bind


def _is_in(columns: Sequence[QueryableAttribute[Any]], arrays: Sequence[ColumnElement[Any]]) -> ColumnElement[bool]:
    if len(columns) == 1 and columns[0].type.bind_expression(bindparam(None)) is None:
        return columns[0] == any_(arrays[0])
    rows = func.unnest(*arrays).table_valued(*(f"key{i}" for i in range(len(columns)))).render_derived()
    return tuple_(*columns).in_(select(*map(_as_written, columns, rows.c)))


def _joined(model: type[Any], arrays: Sequence[ColumnElement[Any]]) -> tuple[ColumnElement[int], ColumnElement[bool]]:
    columns = get_key_attributes(model)
    names = [f"key{place}" for place in range(len(columns))]
    table = func.unnest(*arrays).table_valued(*names, with_ordinality="position")
    table = table.render_derived(name=find_free_name(model, "howdah_requested"))
    position: ColumnElement[int] = table.c.position
    return position, and_(
        *(each == _as_written(each, table.c[name]) for each, name in zip(columns, names, strict=True))
    )


def _as_written(attribute: QueryableAttribute[Any], value: Any) -> Any:
    """The SQL expression with which the column's type writes the value, or the value if the type has none."""
    expression = attribute.type.bind_expression(value)
    return value if expression is None else expression


def _exact_types(kind: TypeEngine[Any]) -> frozenset[type]:
    """The Python types of a column's values, if these are equal in Python if and only if they are in PostgreSQL.

    Empty if that isn't known.
    """
    if not type(kind).__module__.startswith("sqlalchemy."):
        return _NO_TYPES  # a custom type may convert values in any way
    if isinstance(kind, Integer):
        return _INTEGERS if isinstance(resolve_postgresql_type(kind), Integer) else _NO_TYPES
    if isinstance(kind, Uuid) and kind.as_uuid and kind.native_uuid:
        return _UUIDS if isinstance(resolve_postgresql_type(kind), Uuid) else _NO_TYPES
    return _NO_TYPES


def _values_by_name(model: type[Any], given: Mapping[Any, Any]) -> tuple[Any, ...]:
    names = get_key_names(model)
    if given.keys() != {*names}:
        shown = ", ".join(map(str, given)) or "nothing"
        raise ValueError(f"a key of {model.__name__} as a mapping names {', '.join(names)}, not {shown}")
    return tuple(given[name] for name in names)


def _read(model: type[Any], column: Column[Any], value: Any) -> Any:
    if isinstance(value, str) and isinstance(column.type, Uuid) and column.type.as_uuid:
        try:
            return UUID(value)
        except ValueError as error:
            raise _refused(model, column, "isn't a UUID") from error
    if isinstance(column.type, Uuid) and column.type.as_uuid and not isinstance(value, UUID):
        octets = getattr(value, "bytes", None)  # a UUID of another library, which equals none of Python's
        if isinstance(octets, bytes) and len(octets) == 16:
            return UUID(bytes=octets)
    if _exact_types(column.type) is _INTEGERS and type(value) is not int and hasattr(value, "__int__"):
        # The driver would send 1.5 as 1, which is the key of another row.
        try:
            whole = int(value)
        except (ValueError, OverflowError) as error:  # infinite, or not a number
            raise _refused(model, column, "isn't an integer") from error
        if whole != value:
            raise _refused(model, column, "isn't an integer")
        return whole
    return value


def _refused(model: type[Any], column: Column[Any], what: str) -> InvalidValue:
    name = inspect(model).get_property_by_column(column).key
    return InvalidValue(None, None, RefusedValue(f"a key was refused: its value for {model.__name__}.{name} {what}"))
