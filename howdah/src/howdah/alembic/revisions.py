"""The revisions that were applied to a database. They show whether a schema is newer, or of another project.

Alembic's table has only the current revision. If a release doesn't know it, the database may belong to a later release,
or to another project. So every migration also stores all revisions that it builds on, in a column of that table.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from sqlalchemy import Connection, text

from howdah.errors import DatabaseError

if TYPE_CHECKING:
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

RevisionState: TypeAlias = Literal["current", "behind", "newer", "unknown"]
"""How the revision of a database compares with the newest one of this release. See `Migrations.compare_revision`."""

_COLUMN: Final = "applied_revisions"
# The role may not change the table, or the server may be a standby.
_REFUSED: Final = ("42501", "25006")

# `to_jsonb` reads the column if it exists.
READ_REVISIONS: Final = "SELECT version_num, to_jsonb(found) -> 'applied_revisions' AS applied FROM {table} AS found"

_logger = logging.getLogger("howdah.alembic")


@dataclass(frozen=True, slots=True)
class FoundRevisions:
    """The current revisions of a database: one, or several if the history has branches.

    `applied` are the current revisions and all revisions that they build on. It is None if these weren't stored, or if
    another program has migrated the database since.
    """

    current: frozenset[str]
    applied: frozenset[str] | None

    @classmethod
    def of_rows(cls, rows: Iterable[tuple[str | None, list[str] | None]]) -> FoundRevisions:
        """The revisions in the rows of `READ_REVISIONS`."""
        found = [(revision, applied) for revision, applied in rows if revision is not None]
        current = frozenset(revision for revision, _ in found)
        applied = frozenset(name for _, stored in found for name in stored or ())
        return cls(current, applied if current and current <= applied else None)

    def compare(self, heads: Collection[str], known: Collection[str]) -> RevisionState:
        """The state, for a release whose newest revisions are `heads`, and all of whose revisions are `known`."""
        if self.current == set(heads):
            return "current"
        if self.current <= set(known):
            return "behind"
        return "newer" if self.applied is not None and self.applied >= set(heads) else "unknown"


def read_revisions(connection: Connection, context: MigrationContext) -> FoundRevisions:
    """The revisions of the database that Alembic migrates, whose table exists."""
    rows = connection.execute(text(READ_REVISIONS.format(table=_table_name(context))))
    return FoundRevisions.of_rows((row.version_num, row.applied) for row in rows)


def store_applied(context: MigrationContext, scripts: ScriptDirectory, heads: Collection[str]) -> None:
    """Store all revisions that `heads` build on, in the transaction of the migration."""
    table = _table_name(context)
    names = ", ".join("'" + name.replace("'", "''") + "'" for name in sorted(_ancestors(scripts, heads)))
    add = f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {_COLUMN} text[]"
    update = f"UPDATE {table} SET {_COLUMN} = ARRAY[{names}]::text[]"  # noqa: S608  # quoted, and offline SQL is text
    if context.as_sql:
        context.impl.static_output(f"{add};\n\n{update};\n")
        return
    assert context.connection is not None
    if not _has_column(context.connection, table):  # ALTER TABLE waits for readers, even if the column exists
        context.connection.exec_driver_sql(add)
    if heads:
        context.connection.exec_driver_sql(update)


def store_applied_if_missing(context: MigrationContext, scripts: ScriptDirectory) -> None:
    """Store the applied revisions of a database that an earlier version of this library, or another program, migrated.

    If this role may not change the table, or the server is a standby, that is logged, and they remain unknown.
    """
    connection = context.connection
    assert connection is not None
    heads = context.get_current_heads()
    if heads and read_revisions(connection, context).applied is None and _are_known(scripts, heads):
        try:
            store_applied(context, scripts, heads)
        except DatabaseError as error:
            if error.sqlstate not in _REFUSED:
                raise
            connection.rollback()
            _logger.info("the applied revisions can't be stored in %s: %s", context.version_table, error.orig)
    connection.commit()


def is_newer(context: MigrationContext, scripts: ScriptDirectory) -> bool:
    """Whether a later release has migrated the database."""
    assert context.connection is not None
    known = [script.revision for script in scripts.walk_revisions()]
    return read_revisions(context.connection, context).compare(scripts.get_heads(), known) == "newer"


def _are_known(scripts: ScriptDirectory, heads: Collection[str]) -> bool:
    return {script.revision for script in scripts.walk_revisions()} >= set(heads)


def _ancestors(scripts: ScriptDirectory, heads: Collection[str]) -> set[str]:
    """The revisions and all that they build on."""
    found: set[str] = set()
    waiting = [*heads]
    while waiting:
        script = scripts.get_revision(waiting.pop())
        if script is not None and script.revision not in found:
            found.add(script.revision)
            for names in (script.down_revision, script.dependencies):
                waiting += [names] if isinstance(names, str) else names or ()
    return found


def _has_column(connection: Connection, table: str) -> bool:
    query = text("SELECT true FROM pg_attribute WHERE attrelid = to_regclass(:table) AND attname = :column")
    return bool(connection.scalar(query, {"table": table, "column": _COLUMN}))


def _table_name(context: MigrationContext) -> str:
    """Alembic's table, as an identifier of SQL."""
    quote = context.dialect.identifier_preparer.quote
    schema = context.version_table_schema
    return f"{quote(schema)}.{quote(context.version_table)}" if schema else quote(context.version_table)
