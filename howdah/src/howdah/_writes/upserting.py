"""INSERT … ON CONFLICT of many rows: as arrays in one statement, or with VALUES if a column can't be an array.

An existing row is updated only if its stored values change. PostgreSQL compares the binary images (`*<>`). So another
case in a citext column or another scale of a numeric is a change, and types without an operator `=` can be compared.

RETURNING shows whether a written row is new. From PostgreSQL 18 on, the expression uses `old`. Before that it uses
`xmax`, which is 0 only in a row version that no transaction has locked or replaced. Rows that weren't written aren't
returned. They exist unchanged, or a BEFORE INSERT trigger has suppressed them. If the table has such a trigger, the
savepoint is rolled back and the rows are written again. The condition of DO UPDATE then counts the conflicts in a
setting of the transaction.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, groupby
from typing import Any, Final

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Executable,
    Result,
    Table,
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
    get_context_free_function,
    transpose_rows,
    with_version_increment,
)
from howdah._writes.comparison import build_sort_key, is_exact, is_stored_unchanged, to_hashable
from howdah._writes.conflict_targets import ConflictTarget
from howdah._writes.conflicts import count_conflict, is_stored_differently, select_conflict_count
from howdah._writes.results import UpsertCounts
from howdah._writes.rows import get_column_names, split_duplicate_keys

# The SQLSTATE if two rows of one statement conflict with the same existing row (cardinality_violation).
_SAME_ROW_TWICE: Final = "21000"
# SQLSTATEs for a missing system column: a view has none, and a partitioned table has no `xmax`.
NO_SYSTEM_COLUMN: Final = frozenset({"0A000", "XX000", "42703"})

# A statement can have at most 32,767 parameters, and SQLAlchemy sends at most 1,000 rows in one statement. SQLAlchemy
# would split a larger statement, but doesn't report the rows of each part.
_VALUES_ROWS: Final = 1000
_VALUES_PARAMETERS: Final = 30_000

# Each statement that records its conflicts has its own number, because the record is a setting of the transaction.
statement_numbers: Final = count(1)


class _HiddenDuplicates(Exception):
    """Rows of one statement differ in Python but conflict in PostgreSQL, for example in a citext column."""


class _UncountedConflicts(Exception):
    """Rows weren't written, and it isn't known whether they exist or a trigger has suppressed them."""


@dataclass(frozen=True)
class Upsert:
    """An upsert of rows of a model: insert a row, or set `update_names` on the existing row with the same target.

    With `returns_keys` the result has the keys of changed rows. With `counts_conflicts` the condition of DO UPDATE
    counts the conflicts. With `locks_first` the first statement inserts the new rows, and locks and counts the existing
    ones. A second statement updates the existing rows. This is for tables without `xmax`, and to count conflicts if
    `update_names` is empty.
    """

    session: AsyncSession
    model: type[Any]
    target: ConflictTarget
    update_names: Sequence[str]
    returns_keys: bool
    counts_conflicts: bool = False
    locks_first: bool = False

    async def write(self, rows: Sequence[dict[str, Any]]) -> UpsertCounts:
        """Write the rows, which name the same attributes. Rows with the same target are written one after the other."""
        written = UpsertCounts()
        try:
            async with self.session.begin_nested():
                for part in await self._split_into_parts(rows):
                    written += await self._write_part(part)
        except _UncountedConflicts:
            counting = replace(self, counts_conflicts=bool(self.update_names), locks_first=not self.update_names)
            return await counting.write(rows)
        except _HiddenDuplicates:
            pass
        except DBAPIError as error:
            state = getattr(error.orig, "sqlstate", None)
            if state in NO_SYSTEM_COLUMN and not self.locks_first:
                return await replace(self, locks_first=True).write(rows)
            if state != _SAME_ROW_TWICE or len(rows) == 1:
                raise
        else:
            return written
        # Writing the halves one after the other has the same result as writing the rows one by one.
        half = len(rows) // 2
        return await self.write(rows[:half]) + await self.write(rows[half:])

    async def _split_into_parts(self, rows: Sequence[dict[str, Any]]) -> Iterable[Sequence[dict[str, Any]]]:
        """Split the rows into parts that can each be written by one statement.

        A part has no two rows with the same target. A key column that the database generates for some rows is None in
        all rows of a part or in none. With `locks_first` the same applies to the columns of the target.
        """
        columns = transpose_rows(rows)
        rounds = await self._split_into_rounds(rows, columns)
        partly_generated = find_partly_generated_keys(self.model, columns)
        separated = dict.fromkeys((*partly_generated, *self.target.names) if self.locks_first else partly_generated)
        if not separated:
            return rounds

        def get_none_pattern(row: dict[str, Any]) -> tuple[bool, ...]:
            return tuple(row[name] is None for name in separated)

        parts: list[Sequence[dict[str, Any]]] = []
        for distinct_rows in rounds:
            # A row with None in the target conflicts with no row, so it may be written before or after the others.
            is_sortable = self.target.is_plain and separated.keys() <= {*self.target.names}
            ordered = sorted(distinct_rows, key=get_none_pattern) if is_sortable else distinct_rows
            parts += ([*part] for _, part in groupby(ordered, get_none_pattern))
        return parts

    async def _split_into_rounds(
        self, rows: Sequence[dict[str, Any]], columns: Mapping[str, Sequence[Any]]
    ) -> Sequence[Sequence[dict[str, Any]]]:
        """Split the rows into rounds without two rows of the same target. The rounds are written one after the other.

        If the target isn't plain, PostgreSQL finds the equal targets.
        """
        if len(rows) == 1:
            return [rows]
        if self.target.is_plain:
            targets = [*map(to_hashable, zip(*(columns[name] for name in self.target.names), strict=True))]
            return [rows] if len({*targets}) == len(rows) else split_duplicate_keys(rows, self._get_target_values)
        # A trigger may change the values before they are compared.
        if not self.target.has_array_columns(self.model) or await self._has_trigger():
            return [[row] for row in rows]
        numbers = (await self._execute_select(self.target.select_occurrences(self.model, columns))).all()
        rounds: dict[int, list[int]] = {}
        for position, occurrence in sorted(tuple(each) for each in numbers):
            rounds.setdefault(occurrence, []).append(position)
        return [[rows[position] for position in rounds[occurrence]] for occurrence in sorted(rounds)]

    def _get_target_values(self, row: dict[str, Any]) -> Hashable:
        """The values of the target. A row with None in them gets a unique value, because it conflicts with no row."""
        values = tuple(row[name] for name in self.target.names)
        return id(row) if None in values else to_hashable(values)

    async def _write_part(self, rows: Sequence[dict[str, Any]]) -> UpsertCounts:
        columns = transpose_rows(rows)
        keys = generate_keys(self.model, columns, len(rows))
        complete = add_key_columns(columns, keys)
        try:
            statement = self._build_array_insert(complete, len(rows))
        except ColumnarUnsupported:
            return await self._write_values(add_keys_to_rows(rows, keys))
        return await self._write_statement(_InsertSource(statement, len(rows), complete))

    def _build_array_insert(self, complete: dict[str, Sequence[Any]], size: int) -> Insert:
        """An INSERT that writes the rows in the order of the target, so that two upserts can't deadlock."""
        mapper: Mapper[Any] = inspect(self.model)
        columns = build_insert_columns(self.model, complete, size)
        if not all(map(fits_in_array, columns)):
            raise ColumnarUnsupported
        source, values = unnest_arrays({column.key: (column, each) for column, each in columns.items()})
        order: Iterable[Any] = ()
        if self.target.is_plain:
            order = (source.c[mapper.columns[name].key] for name in self.target.names if name in complete)
        elif {*self.target.names} <= complete.keys():
            order = self.target.build_expressions(lambda column: values[column.key])
        ordered_rows = select(*values.values()).select_from(source).order_by(*order)
        return pg_insert(self._get_table()).from_select(list(values), ordered_rows, include_defaults=False)

    async def _write_values(self, rows: list[dict[str, Any]]) -> UpsertCounts:
        """Write the rows with VALUES, in as many statements as the limit of parameters requires."""
        # Two upserts can't deadlock if their rows are sorted. Without exact values, sorting might change the order of
        # rows that conflict with each other.
        if all(map(is_exact, self._get_target_columns())):
            rows.sort(key=lambda row: [build_sort_key(row.get(name)) for name in self.target.names])
        size = max(1, min(_VALUES_ROWS, _VALUES_PARAMETERS // max(1, len(get_column_names(self.model)))))
        written = UpsertCounts()
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            written += await self._write_statement(
                _InsertSource(pg_insert(self.model), len(part), transpose_rows(part), part)
            )
        return written

    async def _write_statement(self, source: _InsertSource) -> UpsertCounts:
        if self.locks_first:
            written = await self._lock_and_update(source)
        elif self.update_names:
            written = await self._insert_or_update(source)
        else:
            written = await self._insert_or_skip(source)
        is_complete = written.created + written.updated == source.size
        if not is_complete and await self._has_hidden_duplicates(source, written.suppressed):
            raise _HiddenDuplicates
        return written

    async def _insert_or_update(self, source: _InsertSource) -> UpsertCounts:
        number = next(statement_numbers)
        statement = self.add_on_conflict(source.statement, count_conflict(number) if self.counts_conflicts else None)
        written = await self._execute(source, statement, await self.build_is_new())
        if written.created + written.updated == source.size:
            return written
        if self.counts_conflicts:
            written.suppressed = source.size - written.created - await self._fetch_scalar(select_conflict_count(number))
        elif await self._has_trigger():
            raise _UncountedConflicts
        return written

    async def _insert_or_skip(self, source: _InsertSource) -> UpsertCounts:
        statement = source.statement.on_conflict_do_nothing(**self.target.get_arguments())
        # A view has no `tableoid`. The statement fails for it, and `write` runs again with `locks_first`.
        written = await self._execute(source, statement, literal_column("(tableoid IS NOT NULL)", Boolean))
        if written.created < source.size and await self._has_trigger():
            raise _UncountedConflicts
        return written

    async def _lock_and_update(self, source: _InsertSource) -> UpsertCounts:
        """Insert the new rows and lock the others by one statement, and update the others by a second one."""
        if await has_instead_of_trigger(await self._get_connection(), self._get_table()):
            raise TypeError(
                f"{self._get_table()} is a view with an INSTEAD OF trigger, for which PostgreSQL finds no conflicts: "
                "use upsert_many with the table behind it"
            )
        number = next(statement_numbers)
        element, *_ = self._get_target_columns()
        # The condition is never true: PostgreSQL locks a conflicting row to evaluate it, and doesn't update the row.
        statement = source.statement.on_conflict_do_update(
            **self.target.get_arguments(), set_={element: element}, where=count_conflict(number).is_(None)
        )
        new = await self._fetch_rows(source, statement.returning(*source.get_key_columns(self.model)))
        conflicts = await self._fetch_scalar(select_conflict_count(number))
        written = UpsertCounts(len(new), 0, source.size - len(new) - conflicts)
        if not self.update_names or not conflicts:
            return written
        number = next(statement_numbers)
        is_old = ~has_key_in(self.model, [build_key(row) for row in new])
        statement = self.add_on_conflict(source.statement, count_conflict(number), is_old)
        old = await self._fetch_rows(source, statement.returning(*source.get_key_columns(self.model)))
        if await self._fetch_scalar(select_conflict_count(number)) != len(new) + conflicts:
            raise RuntimeError(
                f"a trigger of {self._get_table()} treats the same rows differently a second time: upsert_many can't "
                "write to such a view, nor to such a partitioned table before PostgreSQL 18; write the rows one by one"
            )
        written.updated, written.changed_keys = len(old), [build_key(row) for row in old]
        return written

    async def _execute(self, source: _InsertSource, statement: Insert, is_new: ColumnElement[bool]) -> UpsertCounts:
        """Execute the statement and count its rows. If no keys are needed, PostgreSQL counts the rows."""
        if source.parameters is None and not self.returns_keys:
            done = statement.returning(is_new.label("is_new")).cte("howdah_written")
            counted = select(func.count(), func.count().filter(done.c.is_new)).select_from(done)
            every, new = (await self.session.execute(counted)).one()
            return UpsertCounts(new, every - new)
        rows = await self._fetch_rows(source, statement.returning(is_new, *source.get_key_columns(self.model)))
        old = [build_key(row[1:]) for row in rows if not row[0]]
        return UpsertCounts(len(rows) - len(old), len(old), 0, old)

    async def _fetch_rows(self, source: _InsertSource, statement: Any) -> Sequence[Any]:
        if source.parameters is None:
            return (await self.session.execute(statement)).all()
        options = {"render_nulls": True}  # otherwise a column with None is left out, and its default applies
        return (await self.session.execute(statement, source.parameters, execution_options=options)).all()

    def add_on_conflict(
        self, statement: Insert, counted: ColumnElement[Any] | None, *criteria: ColumnElement[bool]
    ) -> Insert:
        """Add ON CONFLICT DO UPDATE, which writes only rows whose stored values differ and that meet the `criteria`.

        `counted` is the expression that counts the conflicts.
        """
        mapper: Mapper[Any] = inspect(self.model)
        columns = [mapper.columns[name] for name in self.update_names]
        set_to: dict[Any, Any] = {each: statement.excluded[each.key] for each in columns}
        differs = is_stored_differently(set_to.keys(), set_to.values())
        for name in get_column_names(self.model):
            onupdate: Any = mapper.columns[name].onupdate
            if onupdate is not None and name not in self.update_names:
                make = get_context_free_function(onupdate)
                if make is None and onupdate.is_callable:
                    raise TypeError(
                        f"upsert_many can't call the onupdate of {self.model.__name__}.{name}, which takes a context: "
                        "pass the value in the rows"
                    )
                set_to[mapper.columns[name]] = onupdate.arg if make is None else make()
        for name, value in with_version_increment(self.model, {}).items():
            set_to[mapper.columns[name]] = value
        if mapper.single and mapper.polymorphic_on is not None:  # a row of another class isn't updated
            identities = [each.polymorphic_identity for each in mapper.self_and_descendants]
            criteria = (*criteria, mapper.polymorphic_on.in_(identities))
        where = and_(differs, *criteria)
        if counted is not None:
            where = case((counted.is_not(None), where))  # AND may skip the counter; CASE evaluates it first
        return statement.on_conflict_do_update(**self.target.get_arguments(), set_=set_to, where=where)

    async def build_is_new(self) -> ColumnElement[bool]:
        """The expression for RETURNING that is true for inserted rows. A table named `old` hides PostgreSQL's `old`."""
        version: Any = (await self._get_connection()).dialect.server_version_info
        has_old = version is not None and version >= (18,) and self._get_table().name != "old"
        return literal_column("(old.tableoid IS NULL)" if has_old else "(xmax = 0)", Boolean)

    async def quote_table_name(self) -> str:
        """The name of the table in the statement, without its schema."""
        return (await self._get_connection()).dialect.identifier_preparer.quote(self._get_table().name)

    async def _has_hidden_duplicates(self, source: _InsertSource, suppressed: int) -> bool:
        """Whether rows with different targets in Python may have conflicted with the same existing row.

        Then the order in which they were written isn't known, because the statement sorts by targets that are equal in
        PostgreSQL.
        """
        if source.size == 1 or not self.target.is_plain:
            return False
        values = [source.columns.get(name, [None] * source.size) for name in self.target.names]
        targets = [row for row in zip(*values, strict=True) if None not in row]
        columns = self._get_target_columns()
        if all(map(is_stored_unchanged, columns, zip(*targets, strict=True))) and await compares_bytes(
            await self._get_connection(), self._get_table(), [column.name for column in columns]
        ):
            return False
        wanted: Any = targets if len(columns) > 1 else [value for (value,) in targets]
        if targets and all(map(fits_in_array, columns)):
            arrays = zip(columns, map(list, zip(*targets, strict=True)), strict=True)
            table, _ = unnest_arrays({column.key: (column, each) for column, each in arrays})
            wanted = select(*(table.c[column.key] for column in columns))
        is_found = (tuple_(*columns) if len(columns) > 1 else columns[0]).in_(wanted)
        row_count: int = await self._fetch_scalar(select(func.count()).select_from(self._get_table()).where(is_found))
        return row_count + suppressed < len(targets)

    async def _has_trigger(self) -> bool:
        return await has_before_insert_trigger(await self._get_connection(), self._get_table())

    def _get_table(self) -> Table:
        table = inspect(self.model).local_table
        assert isinstance(table, Table)
        return table

    def _get_target_columns(self) -> list[Any]:
        return [inspect(self.model).columns[name] for name in self.target.names]

    async def _execute_select(self, statement: Executable) -> Result[Any]:
        return await self.session.execute(statement, bind_arguments={"mapper": inspect(self.model)})

    async def _fetch_scalar(self, statement: Executable) -> Any:
        return (await self._execute_select(statement)).scalar()

    async def _get_connection(self) -> AsyncConnection:
        return await self.session.connection(bind_arguments={"mapper": inspect(self.model)})


@dataclass(frozen=True)
class _InsertSource:
    """An INSERT without its ON CONFLICT, with the number of its rows and their values by attribute.

    `parameters` are the rows of a statement with VALUES. It is None for a statement with arrays, which contains them.
    """

    statement: Insert
    size: int
    columns: Mapping[str, Sequence[Any]]
    parameters: list[dict[str, Any]] | None = None

    def get_key_columns(self, model: type[Any]) -> Sequence[Any]:
        """The key columns for RETURNING: an INSERT into a table returns columns, one of a model returns attributes."""
        return inspect(model).primary_key if self.parameters is None else get_key_attributes(model)
