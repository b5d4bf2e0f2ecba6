"""Check that row-level security separates the tenants. All tables are checked, and the application's role."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah.database import Database
from howdah.errors import DatabaseError, InvalidStatement
from howdah.tenancy.policies import quote_table
from howdah.tenancy.role_checks import NotIsolated, check_role

_NO_RIGHTS: Final = "42501"

# What a policy raises that requires a setting which isn't set, or that compares it with a value of another type.
# A statement that fails shows no row.
_REJECTED_SETTING: Final = ("42704", "22P02", "22003")

_OWNERS_RIGHTS: Final = {
    "v": "the view reads with its owner's rights: WITH (security_invoker = true)",
    "m": "the materialized view has rows of all tenants: revoke the role's right to read it, or exempt it",
}

_TABLES: Final = text(
    """
    SELECT nspname, relname, relkind::text AS kind, relrowsecurity AS is_enabled, relforcerowsecurity AS is_forced,
        coalesce(reloptions, '{}') && ARRAY['security_invoker=true', 'security_invoker=on', 'security_invoker=1',
            'security_invoker=yes'] AS is_invoker,
        EXISTS (SELECT FROM pg_policy WHERE polrelid = pg_class.oid) AS has_policy,
        ARRAY(
            SELECT CAST(polname AS text) FROM pg_policy
            WHERE polrelid = pg_class.oid AND polpermissive AND polcmd IN ('w', 'd')
              AND pg_get_expr(polqual, polrelid) = 'true'
              AND NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = pg_class.oid AND NOT polpermissive)
            ORDER BY 1
        ) AS open_policies,
        (SELECT format_type(coalesce(nullif(typbasetype, 0), oid), NULL) FROM pg_type WHERE oid = atttypid) AS type
    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE attname = :column AND NOT attisdropped AND relkind IN ('r', 'p', 'v', 'm', 'f') AND relpersistence <> 't'
      AND nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema'
    ORDER BY 1, 2
    """
)


# Views without the column that read a table with it, or read such a view, with the rights of their owner
_VIEWS: Final = text(
    """
    WITH RECURSIVE readers(oid) AS (
        SELECT attrelid FROM pg_attribute WHERE attname = :column AND NOT attisdropped
        UNION
        SELECT ev_class FROM readers
        JOIN pg_depend ON refclassid = CAST('pg_class' AS regclass) AND refobjid = readers.oid
        JOIN pg_rewrite ON classid = CAST('pg_rewrite' AS regclass) AND objid = pg_rewrite.oid
    )
    SELECT nspname || '.' || relname AS name, relkind::text AS kind
    FROM readers JOIN pg_class USING (oid) JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relkind IN ('v', 'm') AND has_any_column_privilege(CAST(:role AS name), pg_class.oid, 'SELECT')
      AND NOT coalesce(reloptions, '{}') && ARRAY['security_invoker=true', 'security_invoker=on',
          'security_invoker=1', 'security_invoker=yes']
      AND NOT EXISTS (
          SELECT FROM pg_attribute WHERE attrelid = pg_class.oid AND attname = :column AND NOT attisdropped
      )
    ORDER BY 1
    """
)


@dataclass(frozen=True, slots=True)
class TenantTable:
    """A table that was checked."""

    name: str
    """With its schema."""
    is_probed: bool
    """Whether it has rows that a query of another tenant could have shown. An empty table proves nothing."""


async def check_tenant_tables(
    database: Database,
    *,
    role: str | None = None,
    column: str = "tenant_id",
    setting: str = "app.tenant_id",
    exempt: Collection[str] = (),
) -> Sequence[TenantTable]:
    """Check that no table with a tenant column shows rows of another tenant. Use it in a test. It writes nothing.

    It checks every table, partition and view of the database that has `column`: row-level security is enabled and
    forced, there is a policy, no policy lets all rows be changed, and a view is a `security_invoker`. Then it reads
    each of them as `role` without a filter: without the setting, for a tenant without rows, and for two tenants that
    have rows. Views without `column` that read such tables, and that the role may read, must be `security_invoker`.

    The database may log in as any role that may use `role`; a superuser also finds the tenants to probe. Without `role`
    the login itself is the application's role. `exempt` has the names of tables (`schema.table`) that aren't checked.
    Raises `NotIsolated` with everything that was found.
    """
    as_role = database if role is None else database.with_settings(role=role)
    used = await check_role(as_role)
    async with database.session(read_only=True) as session:
        tables = (await session.execute(_TABLES, {"column": column})).all()
        views = (await session.execute(_VIEWS, {"column": column, "role": used})).all()
    if not tables:
        raise NotIsolated(f"no table has a column {column!r}: pass the name of the tenants' column")
    faults = [f"{view.name}: {_OWNERS_RIGHTS[view.kind]}" for view in views if view.name not in exempt]
    checked: list[TenantTable] = []
    for table in tables:
        name = f"{table.nspname}.{table.relname}"
        if name in exempt:
            continue
        found = _find_missing_parts(table)
        probe = _Probe(quote_table(table.relname, table.nspname), quote_table(column, None), setting)
        async with database.session(read_only=True) as session:
            tenants = await probe.tenants(session)
        found += await probe.find_leaks(as_role, [*tenants, _other_tenant(table.type)])
        faults += [f"{name}: {each}" for each in found]
        checked.append(TenantTable(name, bool(tenants)))
    if faults:
        raise NotIsolated("tenants aren't separated:\n" + "\n".join(faults))
    return checked


def _find_missing_parts(table: Any) -> list[str]:
    """The parts of row-level security that this table lacks in the catalog."""
    if table.kind == "v":
        return [] if table.is_invoker else [_OWNERS_RIGHTS["v"]]
    if table.kind in ("m", "f"):
        return ["PostgreSQL has no policies for a materialized view or a foreign table: exempt it or revoke its rights"]
    missing = []
    if not table.is_enabled:
        missing.append("row-level security isn't enabled: declare a TenantPolicy")
    elif not table.has_policy:
        missing.append("there is no policy: declare a TenantPolicy")
    if table.open_policies:  # reading doesn't show that
        missing.append(f"every tenant may change all rows by the policy {', '.join(table.open_policies)}: USING (true)")
    if not table.is_forced:
        missing.append("row-level security isn't forced, so it doesn't apply to the owner")
    return missing


@dataclass(frozen=True, slots=True)
class _Probe:
    """The queries of one table. `table` and `column` are quoted."""

    table: str
    column: str
    setting: str

    async def tenants(self, session: AsyncSession) -> list[str]:
        """Two tenants with rows, as far as the login of the session can see them."""
        statement = f"SELECT DISTINCT {self.column}::text FROM {self.table} WHERE {self.column}::text <> '' LIMIT 2"  # noqa: S608
        try:
            return [*await session.scalars(text(statement.replace(":", "\\:")))]
        except InvalidStatement as error:
            if error.sqlstate != _NO_RIGHTS:
                raise
            return []

    async def find_leaks(self, as_role: Database, tenants: Sequence[str]) -> list[str]:
        """Read the table as the application's role. Returns a text for each leak."""
        anything = f"SELECT EXISTS (SELECT FROM {self.table})"  # noqa: S608
        foreign = f"SELECT EXISTS (SELECT FROM {self.table} WHERE {self.column}::text IS DISTINCT FROM $1)"  # noqa: S608
        leaks = []
        try:
            if await _ask(as_role, anything):
                leaks.append(f"a transaction without {self.setting} sees rows")
            for tenant in tenants:
                if await _ask(as_role.with_settings({self.setting: tenant}), foreign, tenant):
                    leaks.append(f"the tenant {tenant!r} sees rows of others")
        except InvalidStatement as error:
            if error.sqlstate != _NO_RIGHTS:  # a role that may not read the table sees nothing of it
                raise
        return leaks


async def _ask(database: Database, statement: str, *parameters: str) -> bool:
    """The answer of the statement. False if a policy rejects the setting."""
    try:
        async with database.session(read_only=True) as session:
            found = await (await session.connection()).exec_driver_sql(statement, parameters or None)
            return bool(found.scalar_one())
    except DatabaseError as error:
        if error.sqlstate not in _REJECTED_SETTING:
            raise
        return False


def _other_tenant(type_name: str) -> str:
    """A tenant that has no rows."""
    return "-31999" if type_name in ("smallint", "integer", "bigint") else str(uuid4())
