"""Execute the operations of a new migration before it is written, and find those that are missing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from howdah.alembic.differences import Change, Schema, changes_after, changes_before, read_schema
from howdah.alembic.environment import Environment
from howdah.alembic.operations import escape_colons

if TYPE_CHECKING:
    from alembic.operations.ops import MigrateOperation
    from alembic.runtime.migration import MigrationContext

_HEAD: Final = ("import sqlalchemy as sa", "from alembic import op", "from sqlalchemy.dialects import postgresql")


@dataclass(frozen=True, slots=True)
class FileCall:
    """The source of a call that executes .sql files, and their statements."""

    source: str
    statements: list[str]


class Rehearsal:
    """Executes the operations of a migration, one by one.

    `operations` are those that have worked, `imports` is what their source needs, and `failures` says why others have
    failed.
    """

    def __init__(self, connection: Connection, context: MigrationContext, environment: Environment) -> None:
        self._connection = connection
        self._context = context
        self._environment = environment
        self.failures: list[str] = []
        self.operations: list[MigrateOperation] = []
        self.imports: set[str] = set()

    def run(
        self,
        proposed: Sequence[MigrateOperation],
        before: Schema,
        expected: Schema,
        files: Iterable[FileCall],
        concurrent_tables: Collection[str] = (),
    ) -> Schema:
        """Execute the proposed operations, the files, and the statements that are still missing after them.

        Returns the schema after that. For `concurrent_tables`, changes that can be made concurrently are left out.
        """
        for change in changes_before(before, expected):
            self._execute(change)
        for operation in proposed:
            if not _is_concurrent_operation(operation, concurrent_tables):
                self._invoke(operation, concurrent_tables)
        for call in files:
            self._execute_files(call)
        for change in changes_after(self._read(), expected):
            if not is_concurrent(change, expected, concurrent_tables):
                self._execute(change)
        return self._read()

    def run_concurrently(self, found: Schema, expected: Schema, tables: Collection[str]) -> Schema:
        """Execute the changes that `run` has left out, and add operations that make them without a long lock."""
        for change in changes_after(found, expected):
            if is_concurrent(change, expected, tables) and self._try_statements(change.sql):
                source = self._concurrent_source(change)
                if source is not None:
                    self.imports.add(f"from howdah.alembic import {source.partition('(')[0]}")
                    self.operations.append(source_operation(source))
        return self._read()

    def _read(self) -> Schema:
        return read_schema(self._connection, self._environment)

    def _execute(self, change: Change) -> None:
        """Execute a statement, and add it. A statement that fails is left out; the comparison at the end reports it."""
        from alembic.operations.ops import ExecuteSQLOp

        if self._try_statements(change.sql):
            self.operations.append(ExecuteSQLOp(escape_colons(change.sql)))

    def _try_statements(self, *statements: str) -> bool:
        try:
            with self._connection.begin_nested():
                for sql in statements:
                    self._connection.exec_driver_sql(sql)
        except SQLAlchemyError as error:
            self.failures.append(f"a statement fails: {_first_line(error)}")
            return False
        return True

    def _execute_files(self, call: FileCall) -> None:
        self._try_statements(*call.statements)
        self.imports |= {"from pathlib import Path", "from howdah.alembic import run_sql_files"}
        self.operations.append(source_operation(call.source))

    def _invoke(self, operation: MigrateOperation, concurrent_tables: Collection[str]) -> None:
        """Execute the source of an operation, as the migration will, and add it.

        An operation that fails is left out. The statements that are added later may make up for it.
        """
        from alembic.operations.ops import AddColumnOp

        source = self._render(operation)
        if isinstance(operation, AddColumnOp) and _label(operation) in concurrent_tables:
            # the constraint of a `text_enum` is added later, without a long lock
            written = source.replace("create_constraint=True", "create_constraint=False")
            operation, source = source_operation(written) if written != source else operation, written
        try:
            with self._connection.begin_nested():
                exec("\n".join([*_HEAD, *sorted(self.imports), source]), {})  # noqa: S102  # Alembic has just written it
        except Exception as error:  # a custom type may raise anything
            self.failures.append(f"an operation fails: {_first_line(error)}: {' '.join(source.split())}")
        else:
            self.operations.append(operation)

    def _render(self, operation: MigrateOperation) -> str:
        from alembic.autogenerate import render_op_text
        from alembic.autogenerate.api import AutogenContext

        context = AutogenContext(self._context)
        context.imports = set()
        source = render_op_text(context, operation)
        self.imports |= context.imports
        return source

    def _concurrent_source(self, change: Change) -> str | None:
        """The call that makes the change without a long lock. None if the next change includes it."""
        schema, _, table = change.subject.rpartition(".")
        place = f", schema={schema!r}" if schema else ""
        if change.kind == "constraint":
            if change.definition is None:
                return None  # `add_constraint` replaces it
            return f"add_constraint({change.own_name!r}, {table!r}, {change.definition!r}{place})"
        if change.definition is None:
            return f"drop_index_concurrently({change.own_name!r}, {table!r}{place})"
        return self._index_source(change.own_name)

    def _index_source(self, name: str) -> str:
        from alembic.operations.ops import CreateIndexOp

        (index,) = (
            index
            for table in self._environment.metadata.tables.values()
            for index in table.indexes
            if index.name == name
        )
        source = self._render(CreateIndexOp.from_index(index))
        return source.replace("op.create_index(", "create_index_concurrently(", 1)


def is_concurrent(change: Change, expected: Schema, tables: Collection[str]) -> bool:
    """Whether the change can be made without a long lock, in a transaction of its own, on one of these tables."""
    if change.subject not in tables:
        return False
    if change.kind == "index":
        return True
    definition = expected[change.name].entry.definition if change.name in expected else ""
    return change.kind == "constraint" and definition.startswith(("CHECK", "FOREIGN KEY"))


def _is_concurrent_operation(operation: MigrateOperation, tables: Collection[str]) -> bool:
    """Whether `run_concurrently` makes the change of this operation."""
    from alembic.operations.ops import CreateForeignKeyOp, CreateIndexOp, DropIndexOp

    return isinstance(operation, CreateForeignKeyOp | CreateIndexOp | DropIndexOp) and _label(operation) in tables


def _label(operation: MigrateOperation) -> str:
    """The name of the operation's table as in the catalog."""
    schema = getattr(operation, "schema", None) or getattr(operation, "source_schema", None)
    table = getattr(operation, "table_name", None) or getattr(operation, "source_table", None)
    return f"{schema}.{table}" if schema else str(table)


def _first_line(error: Exception) -> str:
    """The message of an error without the statement and the link that SQLAlchemy adds."""
    return str(error).partition("\n")[0]


def source_operation(source: str) -> MigrateOperation:
    """An operation that is written into the migration as this source."""
    from alembic.autogenerate import renderers
    from alembic.operations.ops import MigrateOperation

    class SourceOp(MigrateOperation):
        def reverse(self) -> MigrateOperation:
            return self

        def to_diff_tuple(self) -> tuple[str, str]:
            return ("source", source)

    renderers.dispatch_for(SourceOp)(lambda _context, _operation: source)
    return SourceOp()
