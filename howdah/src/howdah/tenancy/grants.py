"""Rights of roles that are declared in `__table_args__`, and granted with the table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, TypeAlias, get_args

from sqlalchemy import DDL, Connection, Table, event

from howdah._connections.names import check_identifier
from howdah._sqlalchemy import TableItem
from howdah.tenancy.policies import quote_name, quote_table

Right: TypeAlias = Literal["SELECT", "INSERT", "UPDATE", "DELETE"]

_RIGHTS: Final = frozenset(get_args(Right))


class TableGrant(TableItem):
    """Rights of a role on the table, declared in `__table_args__`.

        __table_args__ = (
            TableGrant("web", "SELECT", "INSERT"),
            TableGrant("web", "UPDATE", columns=["status", "updated_at"]),
        )

    With `columns`, the rights are for these columns only; DELETE can't be limited to columns. `create_all` grants the
    rights after it has created the table. A role without a grant has no rights, unless it owns the table or the owner
    has changed the default privileges. PostgreSQL needs a right to UPDATE at least one column for
    `SELECT … FOR UPDATE`, too.
    """

    def __init__(self, role: str, *rights: Right, columns: Iterable[str] = ()) -> None:
        check_identifier("the role", role)
        if isinstance(columns, str):
            raise TypeError(f"columns must be a list of names, not the text {columns!r}")
        if not rights or not _RIGHTS.issuperset(rights):
            raise ValueError(f"the rights must be SELECT, INSERT, UPDATE or DELETE, not {rights!r}")
        self.role, self.rights, self.columns = role, rights, tuple(columns)
        if self.columns and "DELETE" in rights:
            raise ValueError("DELETE can't be limited to columns: declare it in a TableGrant without columns")

    def attach(self, table: Table) -> None:
        if not _listeners(table):
            event.listen(table, "after_create", _Granting(), propagate=True)
        (listener,) = _listeners(table)
        listener.grants += (self,)

    def __repr__(self) -> str:
        return f"TableGrant({self.role!r}, {', '.join(map(repr, self.rights))})"


def grants_of(table: Table) -> Sequence[TableGrant]:
    """The grants that are declared for the table."""
    return [grant for listener in _listeners(table) for grant in listener.grants]


def grant_statements(table: Table, *, schema: str | None = None) -> Sequence[str]:
    """The statements that grant the declared rights. Empty without a `TableGrant`. They can be executed again.

    `schema` replaces the schema of the table. Raises `ValueError` for a column that the table doesn't have.
    """
    name = quote_table(table.name, table.schema if schema is None else schema)
    statements = []
    for grant in grants_of(table):
        if missing := [each for each in grant.columns if each not in table.columns]:
            raise ValueError(f"{grant!r}: the table {table.fullname} has no column {', '.join(missing)}")
        columns = f" ({', '.join(map(quote_name, grant.columns))})" if grant.columns else ""
        rights = ", ".join(f"{right}{columns}" for right in grant.rights)
        statements.append(f"GRANT {rights} ON {name} TO {quote_name(grant.role)}")
    return statements


class _Granting:
    """Grants the rights after the table was created: a listener for the table's event `after_create`."""

    def __init__(self) -> None:
        self.grants: tuple[TableGrant, ...] = ()

    def __call__(self, table: Table, connection: Connection, **_options: Any) -> None:
        if connection.dialect.name != "postgresql":
            return
        for statement in grant_statements(table, schema=connection.schema_for_object(table)):
            connection.execute(DDL(statement.replace("%", "%%")))  # type: ignore[no-untyped-call]


def _listeners(table: Table) -> Sequence[_Granting]:
    return [listener for listener in table.dispatch.after_create if isinstance(listener, _Granting)]
