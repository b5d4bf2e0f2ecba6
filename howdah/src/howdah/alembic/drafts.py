"""Complete the migration that Alembic's autogenerate proposes, by executing it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from howdah.alembic.differences import Schema, compare_schemas, read_schema
from howdah.alembic.environment import Environment
from howdah.alembic.rehearsals import FileCall, Rehearsal
from howdah.alembic.sql_files import read_statements

if TYPE_CHECKING:
    from alembic.operations.ops import MigrateOperation, MigrationScript
    from alembic.runtime.migration import MigrationContext


@dataclass(slots=True)
class Draft:
    """A draft of one migration, or of two if constraints or indexes of existing tables change.

    Alembic compares the models with the database, and proposes operations. `complete` executes their source in a
    transaction, compares the catalog with the `expected` schema, and adds the statements that are missing. Constraints
    and indexes of existing tables become a second migration, which takes no long locks. The same is done for the
    downgrades. Then everything is rolled back.

    `changed_files` are the .sql files that have changed, with the folder of the previous copy, or None for a new file.
    """

    environment: Environment
    expected: Schema
    changed_files: dict[str, Path | None]
    next_revision: str
    problems: list[str] = field(default_factory=list)
    downgrade_problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    is_empty: bool = False

    def complete(self, context: MigrationContext, _revision: Any, scripts: list[MigrationScript]) -> None:
        """Add the missing operations to the migration. Alembic calls this before it writes the file."""
        connection, (script,) = context.connection, scripts
        assert connection is not None
        assert script.upgrade_ops is not None
        assert script.downgrade_ops is not None

        def rehearsal() -> Rehearsal:
            assert isinstance(connection, Connection)
            return Rehearsal(connection, context, self.environment)

        before = read_schema(connection, self.environment)
        tables = {
            each.subject
            for name, each in before.items()
            if name.startswith("table ") and name in self.expected and not each.subject.startswith('"')
        }
        self.warnings += _find_required_columns(_flatten(script.upgrade_ops.ops), tables)
        first, second, back, back_first = rehearsal(), rehearsal(), rehearsal(), rehearsal()
        middle = first.run(_flatten(script.upgrade_ops.ops), before, self.expected, self._new_files(), tables)
        after = second.run_concurrently(middle, self.expected, tables)
        back_first.run(_flatten(script.downgrade_ops.ops), back.run([], after, middle, ()), before, self._old_files())
        restored = read_schema(connection, self.environment)
        connection.rollback()

        _fill(script, first, back_first)
        if second.operations:
            scripts.append(_new_script(f"{script.message} concurrently", self.next_revision))
            _fill(scripts[1], second, back)
            if not first.operations:  # one migration is enough
                scripts[1].rev_id, scripts[1].message = script.rev_id, script.message
                del scripts[0]
        self.is_empty = not (first.operations or second.operations)
        if compare_schemas(after, self.expected):
            self.problems += [*first.failures, *second.failures]
        self.downgrade_problems += compare_schemas(restored, before)

    def _new_files(self) -> Iterator[FileCall]:
        """The call that executes the changed files."""
        if self.changed_files and self.environment.sql is not None:
            statements = list(read_statements(self.environment.sql, *self.changed_files))
            yield FileCall('run_sql_files(Path(__file__).with_suffix(""))', statements)

    def _old_files(self) -> Iterator[FileCall]:
        """The calls that execute the previous copies of the changed files."""
        for name, folder in self.changed_files.items():
            if folder is not None:
                source = f"run_sql_files(Path(__file__).with_name({folder.name!r}), {name!r})"
                yield FileCall(source, list(read_statements(folder, name)))


def _fill(script: MigrationScript, upgrade: Rehearsal, downgrade: Rehearsal) -> None:
    """Set the operations and imports of a migration."""
    assert script.upgrade_ops is not None
    assert script.downgrade_ops is not None
    script.upgrade_ops.ops = upgrade.operations
    script.downgrade_ops.ops = downgrade.operations
    # a new set, because Alembic's default is shared by all scripts
    script.imports = {*script.imports, *upgrade.imports, *downgrade.imports}


def _new_script(message: str, revision: str) -> MigrationScript:
    from alembic.operations.ops import DowngradeOps, MigrationScript, UpgradeOps

    upgrade = UpgradeOps([], upgrade_token="upgrades")  # noqa: S106  # a name in the template
    downgrade = DowngradeOps([], downgrade_token="downgrades")  # noqa: S106
    return MigrationScript(revision, upgrade, downgrade, message=message, imports=set(), head="head")


def _find_required_columns(operations: Sequence[MigrateOperation], tables: Collection[str]) -> Iterator[str]:
    """A warning for each new column of an existing table that must have a value, and has no default."""
    from alembic.operations.ops import AddColumnOp

    for operation in operations:
        if not isinstance(operation, AddColumnOp):
            continue
        table = f"{operation.schema}.{operation.table_name}" if operation.schema else operation.table_name
        column = operation.column
        # `server_default` also has the expression of a generated column
        if table in tables and not column.nullable and column.server_default is None and column.identity is None:
            yield (
                f"the column {column.name} of {table} is NOT NULL and has no server default: the migration fails if "
                "the table has rows, and the release that still runs can't insert. Give it a server_default, or add it "
                "as nullable, fill it, and use set_not_null"
            )


def _flatten(operations: Sequence[MigrateOperation]) -> list[MigrateOperation]:
    """The operations as a flat list. Alembic groups the operations of a table."""
    from alembic.operations.ops import ModifyTableOps

    return [
        each
        for operation in operations
        for each in (operation.ops if isinstance(operation, ModifyTableOps) else [operation])
    ]
