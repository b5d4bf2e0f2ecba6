"""INSERT … ON CONFLICT of many rows: as arrays in one statement, or with VALUES if a column can't be an array.

A row is written only if its stored values change. PostgreSQL compares the binary images (`*<>`). So another case in a
citext column or another scale of a numeric is a change, and types without an operator `=` can be compared.

RETURNING tells whether a returned row is new: by `old` from PostgreSQL 18 on, before by `xmax`, which is 0 only in a
row version that nobody has locked or replaced. It doesn't return the other rows. These exist unchanged, or a BEFORE
INSERT trigger has suppressed them. If the table has such a trigger, the savepoint is rolled back and the rows are
written again. The condition of DO UPDATE then counts the conflicts in a setting of the transaction.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import count, groupby
from typing import Any, Final

from sqlalchemy import (
    CHAR,
    Boolean,
    ColumnElement,
    Date,
    Enum,
    Executable,
    Integer,
    LargeBinary,
    String,
    Table,
    Uuid,
    and_,
    case,
    func,
    inspect,
    literal_column,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import Insert
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Mapper

from howdah._arrays import fits_in_array, unnest_arrays
from howdah._keys import build_key, get_key_attributes, has_key_in
from howdah._writes.catalog import compares_bytes, has_before_insert_trigger, has_instead_of_trigger
from howdah._writes.columns import (
    ColumnarUnsupported,
    add_key_columns,
    add_keys_to_rows,
    build_insert_columns,
    find_partly_generated_keys,
    generate_keys,
    transpose_rows,
    with_version_increment,
    without_context,
)
from howdah._writes.conflicts import count_conflict, is_stored_differently, select_conflict_count
from howdah._writes.rows import get_column_names, split_duplicate_keys

_SAME_ROW_TWICE: Final = "21000"
# SQLSTATEs for a missing system column: a view has none, and a partitioned table has no `xmax`.
_NO_SYSTEM_COLUMN: Final = frozenset({"0A000", "XX000", "42703"})

# A statement can have at most 32,767 parameters. SQLAlchemy would split a larger one, but not tell where.
_VALUES_ROWS: Final = 1000
_VALUES_PARAMETERS: Final = 30_000

_statement_numbers: Final = count(1)


@dataclass
class UpsertCounts:
    """How many rows were inserted, how many changed an existing row, and how many a trigger suppressed.

    `changed` has the keys of the changed rows, if they were requested.
    """

    created: int = 0
    updated: int = 0
    suppressed: int = 0
    changed: list[Any] = field(default_factory=list)

    def __add__(self, other: UpsertCounts) -> UpsertCounts:
        return UpsertCounts(
            self.created + other.created,
            self.updated + other.updated,
            self.suppressed + other.suppressed,
            self.changed + other.changed,
        )


class _RowsMeet(Exception):
    """Rows of one statement differ in Python but conflict in PostgreSQL, for example in a citext column."""


class _NotCounted(Exception):
    """Some rows weren't written, either because they exist or because a trigger has suppressed them."""


@dataclass(frozen=True)
class Upsert:
    """An upsert of rows of a model: insert a row, or set `changed` on the existing row with the same `target`.

    With `keys` the result has the keys of changed rows. With `counting` the condition of DO UPDATE counts conflicts.
    With `locking` a first statement inserts the new rows and locks and counts the others, and a second one updates
    these. It works without `xmax`, and also counts if nothing is to be updated.
    """

    session: AsyncSession
    model: type[Any]
    target: Sequence[str]
    changed: Sequence[str]
    keys: bool
    counting: bool = False
    locking: bool = False

    async def write(self, rows: Sequence[dict[str, Any]]) -> UpsertCounts:
        """Write the rows, which name the same attributes. Rows with the same target are written one after the other."""
        written = UpsertCounts()
        try:
            async with self.session.begin_nested():
                for part in self._parts(rows):
                    written += await self._write_part(part)
        except _NotCounted:
            again = replace(self, counting=True) if self.changed else replace(self, locking=True)
            return await again.write(rows)
        except _RowsMeet:
            pass
        except DBAPIError as error:
            state = getattr(error.orig, "sqlstate", None)
            if state in _NO_SYSTEM_COLUMN and not self.locking:
                return await replace(self, locking=True).write(rows)
            if state != _SAME_ROW_TWICE or len(rows) == 1:
                raise
        else:
            return written
        # Writing the halves one after the other has the same result as writing the rows one by one.
        half = len(rows) // 2
        return await self.write(rows[:half]) + await self.write(rows[half:])

    def _parts(self, rows: Sequence[dict[str, Any]]) -> Iterable[Sequence[dict[str, Any]]]:
        """The rows in parts. Each part can be written by one statement."""
        columns = transpose_rows(rows)
        assert columns is not None
        meetings = [*map(_hashable, zip(*(columns[name] for name in self.target), strict=True))]
        rounds = [rows] if len({*meetings}) == len(rows) else split_duplicate_keys(rows, self._meeting)
        made = find_partly_generated_keys(self.model, columns)
        apart = {*made, *self.target} if self.locking else made

        def shape(row: dict[str, Any]) -> tuple[bool, ...]:
            return tuple(row[name] is None for name in apart)

        for once in rounds:
            # A row with None in the target conflicts with no row, so it may be written before or after the others.
            ordered = sorted(once, key=shape) if apart and {*apart} <= {*self.target} else once
            yield from ([*part] for _, part in groupby(ordered, shape)) if apart else [once]

    def _meeting(self, row: dict[str, Any]) -> Hashable:
        values = tuple(row[name] for name in self.target)
        return id(row) if None in values else _hashable(values)

    async def _write_part(self, rows: Sequence[dict[str, Any]]) -> UpsertCounts:
        named = transpose_rows(rows) or {}
        new = generate_keys(self.model, named, len(rows))
        complete = add_key_columns(named, new)
        try:
            statement = self._from_arrays(complete, len(rows))
        except ColumnarUnsupported:
            return await self._write_values(add_keys_to_rows(rows, new))
        return await self._write_statement(_Source(statement, len(rows), complete))

    def _from_arrays(self, complete: dict[str, Sequence[Any]], size: int) -> Insert:
        """The statement that writes the rows in the order of the target, so that two upserts can't deadlock."""
        mapper: Mapper[Any] = inspect(self.model)
        columns = build_insert_columns(self.model, complete, size)
        if not all(map(fits_in_array, columns)):
            raise ColumnarUnsupported
        source, values = unnest_arrays({column.key: (column, each) for column, each in columns.items()})
        keys = (mapper.columns[name].key for name in self.target if name in complete)
        chosen = select(*values.values()).select_from(source).order_by(*(source.c[key] for key in keys))
        return pg_insert(self._table()).from_select(list(values), chosen, include_defaults=False)

    async def _write_values(self, rows: list[dict[str, Any]]) -> UpsertCounts:
        if all(map(_is_exact, self._elements())):  # otherwise conflicting rows might lose the order of the input
            rows.sort(key=lambda row: [_rank(row.get(name)) for name in self.target])
        size = max(1, min(_VALUES_ROWS, _VALUES_PARAMETERS // max(1, len(get_column_names(self.model)))))
        written = UpsertCounts()
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            written += await self._write_statement(
                _Source(pg_insert(self.model), len(part), transpose_rows(part) or {}, part)
            )
        return written

    async def _write_statement(self, source: _Source) -> UpsertCounts:
        if self.locking:
            written = await self._lock_and_update(source)
        elif self.changed:
            written = await self._insert_or_update(source)
        else:
            written = await self._insert_or_leave(source)
        if written.created + written.updated < source.size and await self._do_rows_meet(source, written.suppressed):
            raise _RowsMeet
        return written

    async def _insert_or_update(self, source: _Source) -> UpsertCounts:
        number = next(_statement_numbers)
        statement = self._on_conflict(source.statement, count_conflict(number) if self.counting else None)
        written = await self._execute(source, statement, await self._is_new())
        if written.created + written.updated == source.size:
            return written
        if self.counting:
            written.suppressed = source.size - written.created - await self._scalar(select_conflict_count(number))
        elif await has_before_insert_trigger(await self._connection(), self._table()):
            raise _NotCounted
        return written

    async def _insert_or_leave(self, source: _Source) -> UpsertCounts:
        statement = source.statement.on_conflict_do_nothing(index_elements=self._elements())
        # A view has no `tableoid`, so the statement fails for it, and `write` tries again with `locking`.
        written = await self._execute(source, statement, literal_column("(tableoid IS NOT NULL)", Boolean))
        if written.created < source.size and await has_before_insert_trigger(await self._connection(), self._table()):
            raise _NotCounted
        return written

    async def _lock_and_update(self, source: _Source) -> UpsertCounts:
        if await has_instead_of_trigger(await self._connection(), self._table()):
            raise TypeError(
                f"{self._table()} is a view with an INSTEAD OF trigger, for which PostgreSQL finds no conflicts: "
                "write to the table behind it"
            )
        number = next(_statement_numbers)
        element, *_ = self._elements()
        statement = source.statement.on_conflict_do_update(
            index_elements=self._elements(), set_={element: element}, where=count_conflict(number).is_(None)
        )
        new = await self._rows_of(source, statement.returning(*source.key_columns(self.model)))
        conflicts = await self._scalar(select_conflict_count(number))
        written = UpsertCounts(len(new), 0, source.size - len(new) - conflicts)
        if not self.changed or not conflicts:
            return written
        number = next(_statement_numbers)
        is_old = ~has_key_in(self.model, [build_key(row) for row in new])
        statement = self._on_conflict(source.statement, count_conflict(number), is_old)
        old = await self._rows_of(source, statement.returning(*source.key_columns(self.model)))
        if await self._scalar(select_conflict_count(number)) != len(new) + conflicts:
            raise RuntimeError(
                f"a trigger of {self._table()} treats the same rows differently a second time: upsert_many can't write "
                "to such a view, nor before PostgreSQL 18 to such a partitioned table"
            )
        written.updated, written.changed = len(old), [build_key(row) for row in old]
        return written

    async def _execute(self, source: _Source, statement: Insert, is_new: ColumnElement[bool]) -> UpsertCounts:
        if source.parameters is None and not self.keys:
            done = statement.returning(is_new.label("is_new")).cte("howdah_written")
            counted = select(func.count(), func.count().filter(done.c.is_new)).select_from(done)
            every, new = (await self.session.execute(counted)).one()
            return UpsertCounts(new, every - new)
        rows = await self._rows_of(source, statement.returning(is_new, *source.key_columns(self.model)))
        old = [build_key(row[1:]) for row in rows if not row[0]]
        return UpsertCounts(len(rows) - len(old), len(old), 0, old)

    async def _rows_of(self, source: _Source, statement: Any) -> Sequence[Any]:
        if source.parameters is None:
            return (await self.session.execute(statement)).all()
        options = {"render_nulls": True}
        return (await self.session.execute(statement, source.parameters, execution_options=options)).all()

    def _on_conflict(
        self, statement: Insert, counted: ColumnElement[Any] | None, *criteria: ColumnElement[bool]
    ) -> Insert:
        mapper: Mapper[Any] = inspect(self.model)
        columns = [mapper.columns[name] for name in self.changed]
        set_to: dict[Any, Any] = {each: statement.excluded[each.key] for each in columns}
        differs = is_stored_differently(set_to.keys(), set_to.values())
        for name in get_column_names(self.model):
            onupdate: Any = mapper.columns[name].onupdate
            if onupdate is not None and name not in self.changed:
                make = without_context(onupdate)
                if make is None and onupdate.is_callable:
                    raise TypeError(f"upsert_many can't set {self.model.__name__}.{name}: its onupdate takes a context")
                set_to[mapper.columns[name]] = onupdate.arg if make is None else make()
        for name, value in with_version_increment(self.model, {}).items():
            set_to[mapper.columns[name]] = value
        if mapper.single and mapper.polymorphic_on is not None:  # don't update a row of another class
            identities = [each.polymorphic_identity for each in mapper.self_and_descendants]
            criteria = (*criteria, mapper.polymorphic_on.in_(identities))
        where = and_(differs, *criteria)
        if counted is not None:
            where = case((counted.is_not(None), where))  # CASE evaluates the counter first
        return statement.on_conflict_do_update(index_elements=self._elements(), set_=set_to, where=where)

    async def _is_new(self) -> ColumnElement[bool]:
        version: Any = (await self._connection()).dialect.server_version_info
        has_old = version is not None and version >= (18,) and self._table().name != "old"
        return literal_column("(old.tableoid IS NULL)" if has_old else "(xmax = 0)", Boolean)

    async def _do_rows_meet(self, source: _Source, suppressed: int) -> bool:
        """Whether several rows of the statement may have conflicted with the same existing row.

        If so, the order in which they were written is unknown: the statement sorts by the target, in which they are
        equal.
        """
        if source.size == 1:
            return False
        values = [source.columns.get(name, [None] * source.size) for name in self.target]
        found = [row for row in zip(*values, strict=True) if None not in row]
        columns = self._elements()
        if all(map(_is_stored_as_given, columns, zip(*found, strict=True))) and await compares_bytes(
            await self._connection(), self._table(), [column.name for column in columns]
        ):
            return False
        wanted: Any = found if len(columns) > 1 else [value for (value,) in found]
        if found and all(map(fits_in_array, columns)):
            arrays = zip(columns, map(list, zip(*found, strict=True)), strict=True)
            table, _ = unnest_arrays({column.key: (column, each) for column, each in arrays})
            wanted = select(*(table.c[column.key] for column in columns))
        is_found = (tuple_(*columns) if len(columns) > 1 else columns[0]).in_(wanted)
        there: int = await self._scalar(select(func.count()).select_from(self._table()).where(is_found))
        return there + suppressed < len(found)

    def _table(self) -> Table:
        table = inspect(self.model).local_table
        assert isinstance(table, Table)
        return table

    def _elements(self) -> list[Any]:
        return [inspect(self.model).columns[name] for name in self.target]

    async def _scalar(self, statement: Executable) -> Any:
        return await self.session.scalar(statement, bind_arguments={"mapper": inspect(self.model)})

    async def _connection(self) -> AsyncConnection:
        return await self.session.connection(bind_arguments={"mapper": inspect(self.model)})


@dataclass(frozen=True)
class _Source:
    """An INSERT without its ON CONFLICT, with the number of its rows and their values by attribute.

    `parameters` are those of a statement with VALUES.
    """

    statement: Insert
    size: int
    columns: Mapping[str, Sequence[Any]]
    parameters: list[dict[str, Any]] | None = None

    def key_columns(self, model: type[Any]) -> Sequence[Any]:
        return inspect(model).primary_key if self.parameters is None else get_key_attributes(model)


def _is_exact(column: Any) -> bool:
    """Whether values that differ in Python also differ in PostgreSQL."""
    kind = column.type
    return isinstance(kind, Integer | Date | LargeBinary) or (isinstance(kind, Uuid) and kind.as_uuid)


def _is_stored_as_given(column: Any, values: Sequence[Any]) -> bool:
    """Whether values that differ in Python are stored as different values."""
    kind = column.type
    if not isinstance(kind, String) or isinstance(kind, Enum | CHAR):
        return _is_exact(column)
    # VARCHAR(n) removes trailing blanks beyond its length.
    return {str}.issuperset(map(type, values)) and (kind.length is None or max(map(len, values)) <= kind.length)


def _hashable(values: tuple[Any, ...]) -> Hashable:
    try:
        hash(values)
    except TypeError:  # arrays and JSON
        return repr(values)
    return values


def _rank(value: object) -> tuple[int, Any]:
    """A sort key for values of any type. The order is the same in every process."""
    if value is None:
        return 2, 0
    if isinstance(value, int | float | Decimal):
        return 0, value
    return 1, str(value)
