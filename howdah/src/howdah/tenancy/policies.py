"""Policies of row-level security that are declared in `__table_args__`, and created with the table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, TypeAlias

from sqlalchemy import DDL, Column, Connection, Table, event
from sqlalchemy.dialects import postgresql

from howdah._connections.names import check_setting_name, quote_literal
from howdah._sqlalchemy import TableItem

Command: TypeAlias = Literal["ALL", "SELECT", "INSERT", "UPDATE", "DELETE"]

_DIALECT: Final = postgresql.dialect()  # type: ignore[no-untyped-call]

# The types of a tenant column, and the types that the setting is cast to. The cast must not change the value:
# VARCHAR(3) would cut it off, and another tenant's rows would match.
_CASTS: Final = {
    "UUID": "uuid",
    "SMALLINT": "smallint",
    "INTEGER": "integer",
    "BIGINT": "bigint",
    "TEXT": "text",
    "VARCHAR": "text",
}


class RowPolicy(TableItem):
    """A policy of row-level security, declared in `__table_args__`.

        __table_args__ = (RowPolicy("readers", using="is_public", command="SELECT", roles=["web"]),)

    `using` decides which rows are visible, and `with_check` which rows may be written; both are SQL. Without
    `with_check`, PostgreSQL uses `using` for written rows, too. Without `roles` the policy is for all roles. A row must
    satisfy at least one permissive policy, and every policy with `permissive=False`.

    `create_all` enables and forces row-level security for the table, and creates the policies. So they apply to the
    table's owner, too. They never apply to a superuser, nor to a role with BYPASSRLS.
    """

    def __init__(
        self,
        name: str,
        *,
        using: str | None = None,
        with_check: str | None = None,
        command: Command = "ALL",
        roles: Iterable[str] = (),
        permissive: bool = True,
    ) -> None:
        if command not in ("ALL", "SELECT", "INSERT", "UPDATE", "DELETE"):
            raise ValueError(f"command must be ALL, SELECT, INSERT, UPDATE or DELETE, not {command!r}")
        if using is None and with_check is None:
            raise ValueError(f"the policy {name!r} needs using=, with_check= or both")
        if using is not None and command == "INSERT":
            raise ValueError(f"the policy {name!r} is for INSERT, which has with_check= only")
        if with_check is not None and command in ("SELECT", "DELETE"):
            raise ValueError(f"the policy {name!r} is for {command}, which has using= only")
        if isinstance(roles, str):
            raise TypeError(f"roles must be a list of names, not the text {roles!r}")
        self.name, self.command, self.permissive = name, command, permissive
        self.using, self.with_check, self.roles = using, with_check, tuple(roles)

    def attach(self, table: Table) -> None:
        _add(table, self)

    def resolve(self, table: Table) -> RowPolicy:
        """The policy for this table."""
        return self

    def __repr__(self) -> str:
        return f"RowPolicy({self.name!r})"


class TenantPolicy(TableItem):
    """The policy that shows and accepts only the rows of one tenant.

    The tenant is the value of `setting` (see `Database.with_settings`). If it isn't set, no row is visible and none can
    be written. The column must be a UUID, an integer or a text (without a collation of its own); for another type,
    declare a `RowPolicy`.
    """

    def __init__(
        self,
        column: str,
        *,
        setting: str = "app.tenant_id",
        name: str = "tenant_isolation",
        roles: Iterable[str] = (),
    ) -> None:
        if "." not in check_setting_name(setting):
            raise ValueError(f"{setting!r} is a setting of PostgreSQL: use one with a prefix, such as 'app.tenant_id'")
        self.column, self.setting, self.name, self.roles = column, setting, name, tuple(roles)

    def attach(self, table: Table) -> None:
        _add(table, self)

    def resolve(self, table: Table) -> RowPolicy:
        """The policy for this table. Raises `ValueError` for a missing column or an unsupported type."""
        if self.column not in table.columns:
            raise ValueError(f"TenantPolicy({self.column!r}): the table {table.fullname} has no such column")
        column = table.columns[self.column]
        return RowPolicy(self.name, using=_compare(column, self.setting), roles=self.roles)

    def __repr__(self) -> str:
        return f"TenantPolicy({self.column!r})"


def policies_of(table: Table) -> Sequence[RowPolicy]:
    """The policies that are declared for the table. Raises `ValueError` if two have the same name."""
    found = [policy.resolve(table) for listener in _listeners(table) for policy in listener.policies]
    names = [policy.name for policy in found]
    if len({*names}) < len(names):
        raise ValueError(f"two policies of the table {table.fullname} have the same name: {', '.join(sorted(names))}")
    return found


def policy_statements(table: Table, *, schema: str | None = None) -> Sequence[str]:
    """The statements that enable and force row-level security and create the policies. Empty without a policy.

    `schema` replaces the schema of the table.
    """
    policies = policies_of(table)
    if not policies:
        return ()
    name = quote_table(table.name, table.schema if schema is None else schema)
    return [
        f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {name} FORCE ROW LEVEL SECURITY",
        *(create_policy(policy, name) for policy in policies),
    ]


def create_policy(policy: RowPolicy, table: str) -> str:
    """The statement CREATE POLICY. `table` is quoted."""
    parts = [f"CREATE POLICY {quote_name(policy.name)} ON {table}"]
    if not policy.permissive:
        parts.append("AS RESTRICTIVE")
    if policy.command != "ALL":
        parts.append(f"FOR {policy.command}")
    if policy.roles:
        parts.append(f"TO {', '.join(map(quote_name, policy.roles))}")
    if policy.using is not None:
        parts.append(f"USING ({policy.using})")
    if policy.with_check is not None:
        parts.append(f"WITH CHECK ({policy.with_check})")
    return " ".join(parts)


def quote_name(name: str) -> str:
    """The name for SQL, quoted if it must be."""
    quoted: str = _DIALECT.identifier_preparer.quote(name)
    return quoted


def quote_table(name: str, schema: str | None) -> str:
    return quote_name(name) if schema is None else f"{quote_name(schema)}.{quote_name(name)}"


class _PolicyCreation:
    """Creates the policies after the table: a listener for the table's event `after_create`.

    It also stores the policies of the table. A copy of the table (`to_metadata`) has the same listener. `Table.info`
    can't store them, because Alembic writes it into migrations.
    """

    def __init__(self) -> None:
        self.policies: tuple[RowPolicy | TenantPolicy, ...] = ()

    def __call__(self, table: Table, connection: Connection, **_options: Any) -> None:
        if connection.dialect.name != "postgresql":
            return
        for statement in policy_statements(table, schema=connection.schema_for_object(table)):
            connection.execute(DDL(statement.replace("%", "%%")))  # type: ignore[no-untyped-call]


def _listeners(table: Table) -> Sequence[_PolicyCreation]:
    return [listener for listener in table.dispatch.after_create if isinstance(listener, _PolicyCreation)]


def _add(table: Table, policy: RowPolicy | TenantPolicy) -> None:
    if not _listeners(table):
        event.listen(table, "after_create", _PolicyCreation(), propagate=True)
    (listener,) = _listeners(table)
    listener.policies += (policy,)


def _compare(column: Column[Any], setting: str) -> str:
    """The comparison of the column with the setting.

    After a transaction with the setting, PostgreSQL returns '' for it in the same session. A cast of '' to most types
    fails, so '' becomes NULL, which equals nothing.
    """
    written = column.type.compile(dialect=_DIALECT)
    cast_to = _CASTS.get(written.partition("(")[0] if written.endswith(")") else written)
    if cast_to is None:
        raise ValueError(
            f"TenantPolicy({column.name!r}): {written} of {column.table.name} can't be compared with a setting. "
            "Use a UUID, an integer or a text without a collation, or declare a RowPolicy"
        )
    value = f"NULLIF(current_setting({quote_literal(setting)}, true), '')"
    return f"{quote_name(column.name)} = {value if cast_to == 'text' else f'CAST({value} AS {cast_to})'}"
