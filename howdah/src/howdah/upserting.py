"""INSERT … ON CONFLICT of many rows: as arrays in one statement, or with VALUES where a column can't be an array."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from decimal import Decimal
from typing import Any, Final, NamedTuple

from sqlalchemy import JSON, Boolean, Table, TypeDecorator, and_, cast, func, inspect, literal_column, or_, select
from sqlalchemy.dialects.postgresql import JSONB, Insert
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapper

from howdah.arrays import fits_in_array, given
from howdah.columns import (
    OnlyByInsert,
    columns_of,
    inserted_columns,
    moving_version,
    new_keys,
    with_keys,
    with_made_keys,
    without_context,
)
from howdah.keys import key_attributes, key_in
from howdah.rows import column_names, in_rounds

_SAME_ROW_TWICE: Final = "21000"


class Written(NamedTuple):
    """How many rows were new, how many changed one that was there, and the keys of those, if they were wanted."""

    created: int
    updated: int
    changed: list[Any]


async def upsert_rows(
    session: AsyncSession,
    model: type[Any],
    target: Sequence[str],
    changed: Sequence[str],
    rows: Sequence[dict[str, Any]],
    *,
    keys: bool,
) -> Written:
    """Insert the rows, which name the same attributes, or set `changed` on those with the same `target`. Rows that meet
    each other there are written one after the other."""
    written = Written(0, 0, [])
    for once in _rounds(rows, target):
        try:
            async with session.begin_nested():
                done = await _upsert_once(session, model, target, changed, once, keys=keys)
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != _SAME_ROW_TWICE or len(once) == 1:
                raise
            # They differ in Python and not for PostgreSQL, as citext does.
            half = len(once) // 2
            for part in (once[:half], once[half:]):
                written = _sum(written, await upsert_rows(session, model, target, changed, part, keys=keys))
        else:
            written = _sum(written, done)
    return written


def _sum(one: Written, other: Written) -> Written:
    return Written(one.created + other.created, one.updated + other.updated, one.changed + other.changed)


def _rounds(rows: Sequence[dict[str, Any]], target: Sequence[str]) -> Sequence[Sequence[dict[str, Any]]]:
    columns = columns_of(rows)
    assert columns is not None
    meetings = [*map(_hashable, zip(*(columns[name] for name in target), strict=True))]
    if len({*meetings}) == len(rows):
        return [rows]

    def meeting(row: dict[str, Any]) -> Hashable:
        values = tuple(row[name] for name in target)
        return id(row) if None in values else _hashable(values)

    return in_rounds(rows, meeting)


def _hashable(values: tuple[Any, ...]) -> Hashable:
    try:
        hash(values)
    except TypeError:  # arrays and JSON
        return repr(values)
    return values


async def _upsert_once(
    session: AsyncSession,
    model: type[Any],
    target: Sequence[str],
    changed: Sequence[str],
    rows: Sequence[dict[str, Any]],
    *,
    keys: bool,
) -> Written:
    mapper: Mapper[Any] = inspect(model)
    dialect = (await session.connection(bind_arguments={"mapper": mapper})).dialect
    # Before 18 by xmax, which is 0 only in a row version that nobody has locked or replaced: one made new.
    has_old = _has_old(dialect) and mapper.local_table.description != "old"
    is_new = literal_column("(old.ctid IS NULL)" if has_old else "(xmax = 0)", Boolean).label("is_new")
    try:
        statement = _from_arrays(model, target, changed, rows)
    except OnlyByInsert:
        complete = with_keys(rows, new_keys(model, columns_of(rows) or {}, len(rows)))
        complete.sort(key=lambda row: [_rank(row[name]) for name in target])
        values = _on_conflict(model, pg_insert(model), target, changed).returning(is_new, *key_attributes(model))
        result = (await session.execute(values, complete, execution_options={"render_nulls": True})).all()
    else:
        returning = statement.returning(is_new, *mapper.primary_key)
        if not keys:
            done = returning.cte("written")
            count = select(func.count(), func.count().filter(done.c.is_new)).select_from(done)
            every, new = (await session.execute(count)).one()
            return Written(new, every - new, [])
        result = (await session.execute(returning)).all()
    old = [key_in(row[1:]) for row in result if not row[0]]
    return Written(len(result) - len(old), len(old), old)


def _has_old(dialect: Any) -> bool:
    version: tuple[int, ...] | None = dialect.server_version_info
    return version is not None and version >= (18,)


def _from_arrays(
    model: type[Any], target: Sequence[str], changed: Sequence[str], rows: Sequence[dict[str, Any]]
) -> Insert:
    """The statement that writes the rows in the order of the target, so that two of them wait for each other."""
    mapper: Mapper[Any] = inspect(model)
    table = mapper.local_table
    assert isinstance(table, Table)
    named = columns_of(rows) or {}
    complete = with_made_keys(named, new_keys(model, named, len(rows)))
    columns = inserted_columns(model, complete, len(rows))
    if not all(map(fits_in_array, columns)):
        raise OnlyByInsert
    source, values = given({column.key: (column, each) for column, each in columns.items()})
    order = (source.c[mapper.columns[name].key] for name in target)
    chosen = select(*values.values()).select_from(source).order_by(*order)
    statement = pg_insert(table).from_select(list(values), chosen, include_defaults=False)
    return _on_conflict(model, statement, target, changed)


def _on_conflict(model: type[Any], statement: Insert, target: Sequence[str], changed: Sequence[str]) -> Insert:
    mapper: Mapper[Any] = inspect(model)
    elements = [mapper.columns[name] for name in target]
    if not changed:
        return statement.on_conflict_do_nothing(index_elements=elements)
    columns = [mapper.columns[name] for name in changed]
    set_to: dict[Any, Any] = {each: statement.excluded[each.key] for each in columns}
    differs = or_(*(_comparable(old).is_distinct_from(_comparable(new)) for old, new in set_to.items()))
    for name in column_names(model):
        onupdate: Any = mapper.columns[name].onupdate
        if onupdate is not None and name not in changed:
            make = without_context(onupdate)
            if make is None and onupdate.is_callable:
                raise TypeError(f"upsert_many can't make {model.__name__}.{name}: its onupdate looks at other values")
            set_to[mapper.columns[name]] = onupdate.arg if make is None else make()
    for name, value in moving_version(model, {}).items():
        set_to[mapper.columns[name]] = value
    if mapper.single and mapper.polymorphic_on is not None:  # a row of another class is none of this one's
        identities = [each.polymorphic_identity for each in mapper.self_and_descendants]
        differs = and_(differs, mapper.polymorphic_on.in_(identities))
    return statement.on_conflict_do_update(index_elements=elements, set_=set_to, where=differs)


def _comparable(value: Any) -> Any:
    kind = value.type.impl_instance if isinstance(value.type, TypeDecorator) else value.type
    return cast(value, JSONB) if isinstance(kind, JSON) and not isinstance(kind, JSONB) else value


def _rank(value: object) -> tuple[int, Any]:
    """Where a value stands in an order that every process agrees on, whatever the types."""
    if value is None:
        return 2, 0
    if isinstance(value, int | float | Decimal):
        return 0, value
    return 1, str(value)
