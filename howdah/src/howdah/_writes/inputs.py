"""Check the arguments of a bulk write, and collect their keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ARRAY, inspect

from howdah._arrays import resolve_postgresql_type
from howdah._keys import collect_keys, get_key_names, has_exact_keys, normalize_keys
from howdah._writes.columns import extract_keys, get_version_name, transpose_input_rows
from howdah._writes.conflict_targets import ConflictOn, ConflictTarget, resolve_conflict_target
from howdah._writes.rows import normalize_changes, reject_non_columns


def reject_joined_tables(model: type[Any]) -> None:
    """Raise `TypeError` for a model with joined-table inheritance."""
    tables = [str(table) for table in inspect(model).tables]
    if len(tables) > 1:
        raise TypeError(
            f"{model.__name__} is stored in several tables ({', '.join(tables)}), which only insert_many can write: "
            "change its rows one by one, through the session"
        )


def check_update_values(model: type[Any], values: Mapping[str, Any]) -> None:
    """Raise an error if an UPDATE of many rows can't set these values."""
    reject_joined_tables(model)
    reject_non_columns(model, values)
    fixed = {*get_key_names(model), get_version_name(model)}
    if rejected := [name for name in values if name in fixed]:
        raise ValueError(
            f"the key and the version of {model.__name__} rows can't be set, so leave them out: {', '.join(rejected)}"
        )


def reject_array_keys(model: type[Any]) -> None:
    """Raise `TypeError` for a model with an array in its key: many such keys can't be sent as an array."""
    if any(isinstance(resolve_postgresql_type(column.type), ARRAY) for column in inspect(model).primary_key):
        raise TypeError(f"the key of {model.__name__} has an array, so update_many can't be used: update each row")


def check_upsert(model: type[Any], on: ConflictOn | None, update: Sequence[str] | None) -> ConflictTarget:
    """Raise an error if an upsert can't use these arguments, and return the target that `on` names."""
    reject_joined_tables(model)
    if isinstance(update, str):
        raise TypeError("`update` must be a list of attribute names, not one name")
    if inspect(model).local_table.description == "excluded":
        raise TypeError("an upsert can't write to a table named `excluded`: PostgreSQL uses that name for the new row")
    target = resolve_conflict_target(model, on)
    reject_non_columns(model, update or ())
    fixed = {*get_key_names(model), get_version_name(model), *(target.names if target.is_plain else ())}
    if rejected := [name for name in update or () if name in fixed]:
        raise ValueError(f"`update` can't name the key, the version or an attribute of `on`: {', '.join(rejected)}")
    return target


def collect_keys_of_rows(model: type[Any], rows: Sequence[object], chunk_size: int) -> list[Any]:
    """The keys of all rows of the input. The rows are normalized chunk by chunk, to bound the memory."""
    keys: list[Any] = []
    for first in range(0, len(rows), chunk_size):
        part = normalize_changes(model, rows[first : first + chunk_size], first=first)
        keys += extract_keys(model, transpose_input_rows(part, get_key_names(model), first=first), first=first)
    return keys


def prepare_keys(model: type[Any], ids: Iterable[Any]) -> tuple[Sequence[Any], Sequence[int]]:
    """The keys to write, and the position of each in the input.

    If the model has exact keys (see `has_exact_keys`), a key that occurs several times is returned once, with its first
    position. Otherwise all keys are returned, because only PostgreSQL knows which of them are equal.
    """
    keys = normalize_keys(model, collect_keys(model, ids))
    if not has_exact_keys(model) or len({*keys}) == len(keys):
        return keys, range(len(keys))
    positions: dict[Any, int] = {}
    for position, key in enumerate(keys):
        positions.setdefault(key, position)
    return list(positions), list(positions.values())
