"""INSERT … ON CONFLICT of one row, which returns its object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from sqlalchemy import Column, ColumnElement, and_, bindparam, inspect, or_, select, true
from sqlalchemy.dialects.postgresql import Insert
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase

from howdah._keys import get_key, get_key_attributes, get_key_names, has_exact_keys
from howdah._writes.columns import get_version_name
from howdah._writes.conflict_targets import ConflictOn, ConflictTarget, explain_missing_index, has_unique_constraint
from howdah._writes.inputs import check_upsert, reject_joined_tables
from howdah._writes.rows import find_names_to_update, normalize_rows, reject_non_columns
from howdah._writes.session_objects import refresh_objects
from howdah._writes.upserting import NO_SYSTEM_COLUMN, Upsert
from howdah.errors import NotFound
from howdah.locking import depends_on_own_row_only

ModelT = TypeVar("ModelT", bound=DeclarativeBase)

_REFRESH: Final = {"populate_existing": True}

# The row may be deleted between the INSERT, which finds it, and the SELECT. Then the INSERT is tried again.
_MAX_ATTEMPTS: Final = 5


async def upsert_row(
    session: AsyncSession, model: type[ModelT], row: object, on: ConflictOn | None, update: Sequence[str] | None
) -> tuple[ModelT, bool]:
    """Insert the row, or set the `update` attributes on the existing one. Returns its object, and whether it is new."""
    target = check_upsert(model, on, update)
    rows = [row]
    normalized = normalize_rows(model, rows, first=0)
    values = normalized[0]
    missing = [name for name in (*target.names, *(update or ())) if name not in values]
    if missing:
        raise ValueError(f"the row has no value for {', '.join(missing)}")
    version = get_version_name(model)
    if version in values:
        raise ValueError(f"an upsert can't check a version: leave {version} out of the row")
    if update is None:
        set_names = find_names_to_update(model, rows, normalized, first=0)
        update = [name for name in set_names if name not in (*target.names, *get_key_names(model))]
    return await _insert_or_find(session, Upsert(session, model, target, update, returns_keys=True), values)


async def insert_or_find(
    session: AsyncSession, model: type[ModelT], attributes: Mapping[str, Any], defaults: Mapping[str, Any]
) -> tuple[ModelT, bool]:
    """Insert a row, unless a row has the same `attributes`. Returns its object, and whether it is new.

    Call `check_unique_attributes` first.
    """
    target = ConflictTarget(tuple(attributes), tuple(inspect(model).columns[name] for name in attributes))
    upsert = Upsert(session, model, target, (), returns_keys=True)
    return await _insert_or_find(session, upsert, {**defaults, **attributes})


def check_unique_attributes(model: type[Any], attributes: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise an error unless PostgreSQL can guarantee that at most one row has these attributes."""
    reject_joined_tables(model)
    reject_non_columns(model, (*attributes, *defaults))
    both = attributes.keys() & defaults.keys()
    if both:
        raise ValueError(f"{', '.join(sorted(both))} can't be in `defaults` too: pass it once")
    empty = [name for name, value in attributes.items() if value is None]
    if empty:
        raise ValueError(
            f"{', '.join(empty)} must not be None: NULLs are distinct in a unique constraint, so two calls at once "
            "would create two rows"
        )
    if not attributes or not has_unique_constraint(model, attributes):
        raise ValueError(
            f"{model.__name__} declares no unique constraint on exactly ({', '.join(attributes)}), so two calls at "
            "once would create two rows: declare one, or move attributes that don't identify the row to `defaults`"
        )


async def _insert_or_find(session: AsyncSession, upsert: Upsert, values: dict[str, Any]) -> tuple[Any, bool]:
    """Write the row, or read the row that it conflicts with. Returns its object, and whether it is new."""
    await session.flush()
    statement = _build_statement(upsert)
    keys = get_key_names(upsert.model)
    row = {name: value for name, value in values.items() if value is not None or name not in keys}
    for _ in range(_MAX_ATTEMPTS):
        returned = await _write(session, upsert, statement, row)
        instance = await _find(session, upsert, values) if returned is None else returned[0]
        if instance is not None:
            await _refresh_other_objects(session, upsert.model, instance)
            return instance, returned is not None and bool(returned[1])
        if upsert.update_names:
            break
    error = NotFound(upsert.model, [{name: values[name] for name in upsert.target.names}])
    error.add_note("the row wasn't written: a trigger has suppressed it, or the existing row is of another class")
    raise error


def _build_statement(upsert: Upsert) -> Insert:
    statement = pg_insert(upsert.model)
    if upsert.update_names:
        return upsert.add_on_conflict(statement, None)
    return statement.on_conflict_do_nothing(**upsert.target.get_arguments())


async def _write(
    session: AsyncSession, upsert: Upsert, statement: Insert, values: dict[str, Any]
) -> tuple[Any, bool] | None:
    """Write the row. Returns its object and whether it is new, or None if nothing was written."""
    model = upsert.model
    mapper = inspect(model)
    # SQLAlchemy leaves SQL expressions out of RETURNING.
    has_expressions = any(not isinstance(each.columns[0], Column) for each in mapper.column_attrs)
    is_complete = depends_on_own_row_only(mapper) and not has_expressions
    returned = (model,) if is_complete else get_key_attributes(model)
    # ON CONFLICT DO NOTHING returns only new rows.
    is_new = await upsert.build_is_new() if upsert.update_names else true().label("is_new")
    options = {**_REFRESH, "render_nulls": True}
    try:
        with explain_missing_index(model, upsert.target):
            result = await session.execute(statement.returning(*returned, is_new), [values], execution_options=options)
            row = result.one_or_none()
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) in NO_SYSTEM_COLUMN:
            error.add_note(
                f"{mapper.local_table} is a view or a partitioned table, for which this version of PostgreSQL "
                "doesn't tell whether a row is new: use upsert_many"
            )
        raise
    if row is None:
        return None
    if is_complete:
        return row[0], row[1]
    conditions = (each == value for each, value in zip(get_key_attributes(model), row[:-1], strict=True))
    return await _read(session, model, conditions), row[-1]


async def _find(session: AsyncSession, upsert: Upsert, values: dict[str, Any]) -> Any:
    """The existing row that the values conflict with. A new statement sees rows that were committed just now."""
    mapper = inspect(upsert.model)

    def bind(column: Any) -> ColumnElement[Any]:
        return bindparam(None, values[mapper.get_property_by_column(column).key], column.type, unique=True)

    wanted: list[Any] = upsert.target.build_expressions(bind)
    conditions: list[ColumnElement[bool]] = []
    for element, value in zip(upsert.target.elements, wanted, strict=True):
        if isinstance(element, Column):
            conditions.append(element == value if value.value is not None else element.is_(None))
        else:  # two NULLs are equal in an index with NULLS NOT DISTINCT
            conditions.append(or_(element == value, and_(element.is_(None), value.is_(None))))
    if upsert.target.predicate is not None:
        conditions.append(upsert.target.predicate)
    return await _read(session, upsert.model, conditions)


async def _read(session: AsyncSession, model: type[Any], conditions: Any) -> Any:
    result = await session.scalars(select(model).where(*conditions), execution_options=_REFRESH)
    return result.unique().one_or_none()


async def _refresh_other_objects(session: AsyncSession, model: type[Any], instance: Any) -> None:
    """Refresh an object that the session has under another spelling of the row's key."""
    if has_exact_keys(model):
        return
    if any(isinstance(each, model) and each is not instance for each in session.identity_map.values()):
        await refresh_objects(session, model, [get_key(instance)])
