"""Operations that Alembic doesn't have: run .sql files, and change tables without a long lock."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import text

from howdah.alembic.sql_files import read_statements
from howdah.errors import DatabaseError, HowdahError

_IDENTIFIER: Final = re.compile(r"[a-z_][a-z0-9_]*")
# The limit of the wait for the end of older transactions. During this wait other transactions aren't blocked.
_WAIT_SECONDS: Final = 600.0
# The option of Alembic's context that holds `lock_timeout` in milliseconds.
LOCK_TIMEOUT_OPTION: Final = "howdah_lock_timeout"


def run_sql_files(folder: Path, *names: str) -> None:
    """Execute the statements of the folder's .sql files, in the order of their names. With `names`, only these files.

    A migration that changes .sql files has copies of them, in a folder with the migration's name:
    `run_sql_files(Path(__file__).with_suffix(""))`.
    """
    from alembic import op

    for statement in read_statements(folder, *names):
        if op.get_context().as_sql:
            op.get_context().impl.static_output(f"{statement};")
        else:
            op.get_bind().exec_driver_sql(statement)


def create_index_concurrently(
    name: str,
    table: str,
    columns: Sequence[Any],
    *,
    unique: bool = False,
    schema: str | None = None,
    wait: float = _WAIT_SECONDS,
    **options: Any,
) -> None:
    """Create an index while others write to the table.

    The arguments are those of `op.create_index`. The earlier operations of the migration are committed first, because
    PostgreSQL can't build such an index in a transaction. It waits for the end of all older transactions, at most
    `wait` seconds for each. If the build fails, its invalid index is dropped. If the process was killed, the next run
    drops it. A valid index of this name is kept. So the migration can be run again after an error.
    """
    from alembic import op

    def drop_invalid() -> None:
        if not op.get_context().as_sql and _is_invalid_index(name, schema):
            op.drop_index(name, table_name=table, schema=schema, postgresql_concurrently=True)

    with _outside_transaction(wait):
        drop_invalid()
        try:
            op.create_index(
                name,
                table,
                columns,
                unique=unique,
                schema=schema,
                if_not_exists=True,
                postgresql_concurrently=True,
                **options,
            )
        except DatabaseError as error:
            try:
                drop_invalid()
            except HowdahError as second:
                error.add_note(f"The invalid index {name} remains, and makes writes slower: {second}")
            raise


def drop_index_concurrently(name: str, table: str, *, schema: str | None = None, wait: float = _WAIT_SECONDS) -> None:
    """Drop an index without blocking the table. The earlier operations of the migration are committed first.

    It waits for transactions that use the table, at most `wait` seconds for each.
    """
    from alembic import op

    with _outside_transaction(wait):
        op.drop_index(name, table_name=table, schema=schema, if_exists=True, postgresql_concurrently=True)


def add_constraint(
    name: str, table: str, definition: str, *, schema: str | None = None, wait: float = _WAIT_SECONDS
) -> None:
    """Add a CHECK or FOREIGN KEY constraint without a long lock: NOT VALID first, and then VALIDATE.

    `definition` is SQL, such as `CHECK (total >= 0)` or `FOREIGN KEY (user_id) REFERENCES users (id)`. The constraint
    is added and committed, together with the earlier operations of the migration. New rows must satisfy it from then
    on. The existing rows are checked while others write to the table. If a row violates the constraint, the migration
    fails. After the row is corrected, the migration can be run again: a constraint of this name is replaced. If another
    transaction alters the table, the validation waits for it, at most `wait` seconds.
    """
    from alembic import op

    quoted_table = f"{_quote(schema)}.{_quote(table)}" if schema else _quote(table)
    op.execute(text(f"ALTER TABLE {quoted_table} DROP CONSTRAINT IF EXISTS {_quote(name)}"))
    op.execute(escape_colons(f"ALTER TABLE {quoted_table} ADD CONSTRAINT {_quote(name)} {definition} NOT VALID"))
    with _outside_transaction(wait):
        op.execute(text(f"ALTER TABLE {quoted_table} VALIDATE CONSTRAINT {_quote(name)}"))


def set_not_null(table: str, column: str, *, schema: str | None = None) -> None:
    """Make a column NOT NULL without a long lock.

    A CHECK constraint is validated as in `add_constraint`. With it, PostgreSQL doesn't read the table again.
    """
    from alembic import op

    name = f"{table}_{column}_not_null"[:63]
    add_constraint(name, table, f"CHECK ({_quote(column)} IS NOT NULL)", schema=schema)
    op.alter_column(table, column, nullable=False, schema=schema)
    op.drop_constraint(op.f(name), table, schema=schema)


def escape_colons(sql: str) -> str:
    """SQL for `op.execute`, which takes `:name` as a parameter."""
    return re.sub(r"(?<![:\w\\]):(?=\w+(?!:))", r"\\:", sql)


@contextmanager
def _outside_transaction(wait: float) -> Iterator[None]:
    """Commit, and execute the block in autocommit mode. `wait` is its `lock_timeout` in seconds."""
    from alembic import op

    context = op.get_context()
    milliseconds = round(wait * 1000)
    with context.autocommit_block():
        if context.as_sql:
            op.execute(f"SET lock_timeout = '{milliseconds}ms'")
            yield
            op.execute(f"SET lock_timeout = '{context.opts[LOCK_TIMEOUT_OPTION]}ms'")
            return
        bind = op.get_bind()
        before = bind.scalar(text("SELECT current_setting('lock_timeout')"))
        change = text("SELECT set_config('lock_timeout', :setting, false)")
        bind.execute(change.bindparams(setting=f"{milliseconds}ms"))
        try:
            yield
        finally:
            bind.execute(change.bindparams(setting=before))


def _is_invalid_index(name: str, schema: str | None) -> bool:
    from alembic import op

    query = text(
        "SELECT true FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid WHERE relname = :name AND NOT indisvalid "
        "AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = coalesce(:schema, current_schema()))"
    )
    return bool(op.get_bind().scalar(query, {"name": name, "schema": schema}))


def _quote(name: str | None) -> str:
    """The name as an identifier of SQL."""
    assert name is not None
    return name if _IDENTIFIER.fullmatch(name) else '"' + name.replace('"', '""') + '"'
