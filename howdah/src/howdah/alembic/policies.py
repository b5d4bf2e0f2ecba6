"""Policies of row-level security in Alembic's autogenerate, for an `env.py` of your own.

    from howdah.alembic.policies import register

    register()  # in env.py, before context.configure

`howdah migrate` doesn't need it: it compares the whole catalog, policies included.

A table that declares policies declares all of them: another policy of that table is dropped. Tables without a declared
policy are left alone. The migration gets `op.execute` calls, which need no imports.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from alembic.autogenerate import comparators, renderers
from alembic.operations.ops import MigrateOperation
from sqlalchemy import Connection, Row, Table, text
from sqlalchemy.exc import DBAPIError

from howdah.tenancy.policies import RowPolicy, create_policy, policies_of, quote_name, quote_table

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.operations.ops import UpgradeOps

_CATALOG: Final = text(
    """
    SELECT relrowsecurity, relforcerowsecurity, polname, polpermissive, polcmd::text,
        ARRAY(SELECT rolname::text FROM pg_roles WHERE oid = ANY(polroles) ORDER BY 1) AS roles,
        pg_get_expr(polqual, polrelid) AS qual, pg_get_expr(polwithcheck, polrelid) AS with_check
    FROM pg_class LEFT JOIN pg_policy ON polrelid = pg_class.oid
    WHERE pg_class.oid = to_regclass(:name)
    ORDER BY polname
    """
)
_COMMANDS: Final = {"*": "ALL", "r": "SELECT", "a": "INSERT", "w": "UPDATE", "d": "DELETE"}

# A colon that SQLAlchemy's text() would read as the start of a parameter.
_PARAMETER: Final = re.compile(r"(?<![:\w\\]):(?=\w+(?!:))")

_is_registered = False


def register() -> None:
    """Add the comparison of policies to autogenerate, once per process."""
    global _is_registered  # noqa: PLW0603
    if _is_registered:
        return
    _is_registered = True
    renderers.dispatch_for(AlterPoliciesOp)(_render)
    try:
        from alembic.util import DispatchPriority
    except ImportError:  # before 1.18, comparisons run in the order of their registration
        comparators.dispatch_for("schema")(_compare)
    else:
        # after the comparison of tables, because a new table must exist before its policies
        comparators.dispatch_for("schema", priority=DispatchPriority.LAST)(_compare)


class AlterPoliciesOp(MigrateOperation):
    """The statements that change the policies of one table, and those that undo the change."""

    def __init__(self, table: str, statements: Sequence[str], undo: Sequence[str]) -> None:
        self.table, self.statements, self.undo = table, tuple(statements), tuple(undo)

    def reverse(self) -> AlterPoliciesOp:
        return AlterPoliciesOp(self.table, self.undo, self.statements)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("alter_policies", self.table, self.statements)


@dataclass(frozen=True, slots=True)
class _Security:
    """The row-level security of one table, as PostgreSQL stores it."""

    is_enabled: bool = False
    is_forced: bool = False
    policies: Mapping[str, RowPolicy] | None = None

    def policy(self, name: str) -> RowPolicy | None:
        return (self.policies or {}).get(name)


def _compare(context: AutogenContext, upgrade_ops: UpgradeOps, schemas: set[str | None]) -> None:
    """Add the operations for tables whose policies differ from the declared ones: a comparator for schemas."""
    connection = context.connection
    if connection is None or connection.dialect.name != "postgresql":
        return
    default = connection.dialect.default_schema_name
    for table in context.sorted_tables:
        schema = None if table.schema == default else table.schema
        is_included = (
            schema in schemas
            and context.run_name_filters(table.name, "table", {"schema_name": schema})
            and context.run_object_filters(table, table.name, "table", False, None)
        )
        if is_included and policies_of(table):
            operation = _compare_table(connection, table)
            if operation is not None:
                upgrade_ops.ops.append(operation)


def _compare_table(connection: Connection, table: Table) -> AlterPoliciesOp | None:
    """The operation for one table, or None if its policies are those that are declared."""
    name = quote_table(table.name, table.schema)
    found = _read(connection, name)
    statements, undo = [], []
    for flag, word in ((found.is_enabled, "ENABLE"), (found.is_forced, "FORCE")):
        if not flag:
            statements.append(f"ALTER TABLE {name} {word} ROW LEVEL SECURITY")
            undo.append(f"ALTER TABLE {name} {'DISABLE' if word == 'ENABLE' else 'NO FORCE'} ROW LEVEL SECURITY")
    declared = {policy.name: policy for policy in policies_of(table)}
    for each in sorted({*declared, *(found.policies or {})}):
        new, old = declared.get(each), found.policy(each)
        if new is not None and old is not None and _is_equal(connection, table, new, old):
            continue
        drop = f"DROP POLICY {quote_name(each)} ON {name}"
        statements += [*([drop] if old else []), *([create_policy(new, name)] if new else [])]
        undo += [*([create_policy(old, name)] if old else []), *([drop] if new else [])]
    return AlterPoliciesOp(name, statements, undo[::-1]) if statements else None


def _read(connection: Connection, name: str) -> _Security:
    """The policies of a table. A table that doesn't exist has none."""
    rows = connection.execute(_CATALOG, {"name": name}).all()
    if not rows:
        return _Security()
    policies = {row.polname: _policy(row) for row in rows if row.polname is not None}
    return _Security(rows[0].relrowsecurity, rows[0].relforcerowsecurity, policies)


def _policy(row: Row[Any]) -> RowPolicy:
    return RowPolicy(
        row.polname,
        using=row.qual,
        with_check=row.with_check,
        command=_COMMANDS[row.polcmd],  # type: ignore[arg-type]
        roles=row.roles,
        permissive=row.polpermissive,
    )


def _is_equal(connection: Connection, table: Table, declared: RowPolicy, found: RowPolicy) -> bool:
    """Whether the policies are equal. Texts are compared as PostgreSQL writes them."""
    if (declared.command, declared.permissive, sorted(declared.roles)) != (
        found.command,
        found.permissive,
        sorted(found.roles),
    ):
        return False
    if (declared.using, declared.with_check) == (found.using, found.with_check):
        return True
    written = _write_by_postgres(connection, table, declared)
    return written is not None and (written.using, written.with_check) == (found.using, found.with_check)


def _write_by_postgres(connection: Connection, table: Table, policy: RowPolicy) -> RowPolicy | None:
    """The policy with the texts that PostgreSQL would store. None if the present table doesn't allow the policy.

    It is created on an empty temporary copy of the table, which needs no lock of the table, and is rolled back.
    """
    temporary = quote_table(table.name, "pg_temp")
    # without roles, which may not exist yet
    plain = RowPolicy(
        policy.name,
        using=policy.using,
        with_check=policy.with_check,
        command=policy.command,
        permissive=policy.permissive,
    )
    savepoint = connection.begin_nested()
    try:
        copied = quote_table(table.name, table.schema)
        connection.execute(text(f"CREATE TEMPORARY TABLE {quote_name(table.name)} (LIKE {copied})"))
        connection.execute(text(_escape(create_policy(plain, temporary))))
        return _read(connection, temporary).policy(policy.name)
    except DBAPIError:  # for example, a column that this migration adds
        return None
    finally:
        savepoint.rollback()


def _render(_context: AutogenContext, operation: AlterPoliciesOp) -> list[str]:
    """The lines of the migration."""
    return [f"op.execute({_escape(statement)!r})" for statement in operation.statements]


def _escape(statement: str) -> str:
    r"""Write `\:` for a colon that `text()` would take for the start of a parameter."""
    return _PARAMETER.sub(r"\\:", statement)
