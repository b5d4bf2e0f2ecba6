"""Complete the migration that Alembic's autogenerate proposes, by executing it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from howdah.alembic.differences import Schema, compare_schemas, read_schema, statements_after, statements_before
from howdah.alembic.environment import Environment
from howdah.alembic.operations import escape_colons
from howdah.alembic.sql_files import read_statements

if TYPE_CHECKING:
    from alembic.operations.ops import MigrateOperation, MigrationScript
    from alembic.runtime.migration import MigrationContext


@dataclass(slots=True)
class Draft:
    """A new migration.

    Alembic compares the models with the database, and proposes operations. `complete` executes their source in a
    transaction, compares the catalog with the `expected` schema, and adds the statements that are missing. The same is
    done for the downgrade. Then everything is rolled back.

    `changed_files` are the .sql files that have changed, with the folder of the previous copy, or None for a new file.
    """

    environment: Environment
    expected: Schema
    changed_files: dict[str, Path | None]
    problems: list[str] = field(default_factory=list)
    downgrade_problems: list[str] = field(default_factory=list)
    is_empty: bool = False

    def complete(self, context: MigrationContext, _revision: Any, scripts: list[MigrationScript]) -> None:
        """Add the missing operations to the migration. Alembic calls this before it writes the file."""
        connection, (script,) = context.connection, scripts
        assert connection is not None
        assert script.upgrade_ops is not None
        assert script.downgrade_ops is not None
        before = read_schema(connection, self.environment)
        upgrade = _Rehearsal(connection, context, self.environment)
        upgrade.run(_flatten(script.upgrade_ops.ops), before, self.expected, self._new_files())
        downgrade = _Rehearsal(connection, context, self.environment)
        downgrade.run(_flatten(script.downgrade_ops.ops), upgrade.found, before, self._previous_files())
        connection.rollback()
        script.upgrade_ops.ops = upgrade.operations
        script.downgrade_ops.ops = downgrade.operations
        # a new set, because Alembic's default is shared by all scripts
        script.imports = {*script.imports, *upgrade.imports, *downgrade.imports}
        self.is_empty = not upgrade.operations
        if compare_schemas(upgrade.found, self.expected):
            self.problems += upgrade.failures
        self.downgrade_problems += compare_schemas(downgrade.found, before)

    def _new_files(self) -> Iterator[tuple[str, str, list[str]]]:
        """The source that executes the changed files, the import that it needs, and the files' statements."""
        if self.changed_files and self.environment.sql is not None:
            statements = list(read_statements(self.environment.sql, *self.changed_files))
            yield 'run_sql_files(Path(__file__).with_suffix(""))', "run_sql_files", statements

    def _previous_files(self) -> Iterator[tuple[str, str, list[str]]]:
        """The same for the previous copies of the changed files."""
        for name, folder in self.changed_files.items():
            if folder is not None:
                source = f"run_sql_files(Path(__file__).with_name({folder.name!r}), {name!r})"
                yield source, "run_sql_files", list(read_statements(folder, name))


class _Rehearsal:
    """Executes the operations of a migration, one by one, and collects those that work and those that are missing."""

    def __init__(self, connection: Connection, context: MigrationContext, environment: Environment) -> None:
        self._connection = connection
        self._context = context
        self._environment = environment
        self.failures: list[str] = []
        self.operations: list[MigrateOperation] = []
        self.imports: set[str] = set()
        self.found: Schema = {}

    def run(
        self,
        proposed: Sequence[MigrateOperation],
        before: Schema,
        expected: Schema,
        files: Iterator[tuple[str, str, list[str]]],
    ) -> None:
        """Execute the proposed operations, the files, and the statements that are still missing after them."""
        for sql in statements_before(before, expected):
            self._execute(sql)
        for operation in proposed:
            self._invoke(operation)
        for source, name, statements in files:
            self._execute_file(source, name, statements)
        for sql in statements_after(read_schema(self._connection, self._environment), expected):
            self._execute(sql)
        self.found = read_schema(self._connection, self._environment)

    def _execute(self, sql: str) -> None:
        """Execute a statement, and add it. A statement that fails is left out; the comparison at the end reports it."""
        from alembic.operations.ops import ExecuteSQLOp

        try:
            with self._connection.begin_nested():
                self._connection.exec_driver_sql(sql)
        except SQLAlchemyError:
            return
        self.operations.append(ExecuteSQLOp(escape_colons(sql)))

    def _execute_file(self, source: str, name: str, statements: list[str]) -> None:
        try:
            with self._connection.begin_nested():
                for sql in statements:
                    self._connection.exec_driver_sql(sql)
        except SQLAlchemyError as error:
            self.failures.append(f"{source} fails: {error}")
        self.imports.update({"from pathlib import Path", f"from howdah.alembic import {name}"})
        self.operations.append(source_operation(source))

    def _invoke(self, operation: MigrateOperation) -> None:
        """Execute the source of an operation, as the migration will, and add it.

        An operation that fails is left out. The statements that are added later may make up for it.
        """
        from alembic.autogenerate import render_op_text
        from alembic.autogenerate.api import AutogenContext

        context = AutogenContext(self._context)
        context.imports = set()
        source = render_op_text(context, operation)
        self.imports |= context.imports
        try:
            with self._connection.begin_nested():
                exec(_importable(source, self.imports), {})  # noqa: S102  # Alembic has just written it
        except Exception as error:  # whatever a type of the user raises
            self.failures.append(f"an operation fails: {_first_line(error)}: {' '.join(source.split())}")
        else:
            self.operations.append(operation)


def _first_line(error: Exception) -> str:
    """The message of an error without the statement and the link that SQLAlchemy adds."""
    return str(error).partition("\n")[0]


def _importable(source: str, imports: set[str]) -> str:
    head = ["import sqlalchemy as sa", "from alembic import op", "from sqlalchemy.dialects import postgresql"]
    return "\n".join([*head, *sorted(imports), source])


def _flatten(operations: Sequence[MigrateOperation]) -> list[MigrateOperation]:
    """The operations, with those of each table one by one."""
    from alembic.operations.ops import ModifyTableOps

    return [
        each
        for operation in operations
        for each in (operation.ops if isinstance(operation, ModifyTableOps) else [operation])
    ]


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
