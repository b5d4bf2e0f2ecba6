"""The version of a `Versioned` object whose collections are changed."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import inspect
from sqlalchemy.orm import RelationshipDirection
from sqlalchemy.orm.attributes import flag_modified


def count_collections_as_change(instance: object, names: Iterable[str]) -> None:
    """Let the next flush increment the version if one of these attributes is a changed collection.

    SQLAlchemy increments the version only if a column of the row changes. A collection is stored in other rows, so two
    writers could replace the same collection, and the second one would overwrite the first without `StaleRow`. One
    column is marked as changed, with the value that it has.
    """
    state = inspect(instance)
    mapper = state.mapper
    version = mapper.version_id_col
    if version is None:
        return
    relationships = mapper.relationships
    is_changed = any(
        name in relationships
        and relationships[name].direction is not RelationshipDirection.MANYTOONE
        and state.attrs[name].history.has_changes()
        for name in names
    )
    if not is_changed:
        return
    for attribute in mapper.column_attrs:
        column = attribute.columns[0]
        is_settable = column.table is version.table and not column.primary_key and column.computed is None
        if is_settable and column is not version and attribute.key in state.dict:
            flag_modified(instance, attribute.key)
            return
