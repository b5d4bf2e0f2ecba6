"""Row-level security: policies and grants for `__table_args__`, for the three roles of the service.

The service can't use a table without a policy and a grant. Operators, admins and the system see all rows: their
policies add no condition to a statement, so they don't prevent the use of an index. A customer sees the rows that
belong to the user in the setting `app.user_id`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import Connection, MetaData, Table, event

from howdah import Base
from howdah.tenancy import RowPolicy, TableGrant, grants_of
from shop.roles import CUSTOMER_ROLE, SERVICE_ROLES, STAFF_ROLE, SYSTEM_ROLE, USER_SETTING, role_statements

# After a transaction with the setting, PostgreSQL returns '' for it in the same session.
_SETTING: Final = f"NULLIF(current_setting('{USER_SETTING}', true), '')"

OWN_ID: Final = f"CAST({_SETTING} AS uuid)"
"""The id of the customer. NULL, which equals nothing, if the setting isn't set."""

OWN_SCOPE: Final = f"'user:' || {_SETTING}"
"""The scope of the customer's idempotency keys: `Principal.key`."""

# PostgreSQL computes the array once for each statement, by an index, because it doesn't depend on a row.
_OWN_ACCOUNTS: Final = f"ARRAY(SELECT id FROM accounts WHERE user_id = {OWN_ID})"  # noqa: S608  # built from constants


def own_account(*columns: str) -> str:
    """The condition that one of the columns is the id of an account of the customer."""
    return " OR ".join(f"{column} = ANY ({_OWN_ACCOUNTS})" for column in columns)


def staff_and_system() -> tuple[RowPolicy, RowPolicy]:
    """Operators, admins and the system see all rows. The grants decide what they may do."""
    return (
        RowPolicy("staff", using="true", roles=[STAFF_ROLE]),
        RowPolicy("system", using="true", roles=[SYSTEM_ROLE]),
    )


def system_only() -> tuple[RowPolicy, TableGrant]:
    """Only the system reads and writes the table: passwords, sessions, tokens."""
    return (
        RowPolicy("system", using="true", roles=[SYSTEM_ROLE]),
        TableGrant(SYSTEM_ROLE, "SELECT", "INSERT", "UPDATE", "DELETE"),
    )


def customers_read(own: str) -> RowPolicy:
    """Customers see the rows for which the SQL condition is true."""
    return RowPolicy("customers_read", using=own, command="SELECT", roles=[CUSTOMER_ROLE])


def customers_insert(own: str) -> RowPolicy:
    """Customers may insert rows for which the SQL condition is true."""
    return RowPolicy("customers_insert", with_check=own, command="INSERT", roles=[CUSTOMER_ROLE])


def customers_update(own: str) -> RowPolicy:
    """Customers may change rows for which the SQL condition is true, before and after the change."""
    return RowPolicy("customers_update", using=own, command="UPDATE", roles=[CUSTOMER_ROLE])


def customers_delete(own: str) -> RowPolicy:
    """Customers may delete rows for which the SQL condition is true."""
    return RowPolicy("customers_delete", using=own, command="DELETE", roles=[CUSTOMER_ROLE])


# The roles may use the schema, and create nothing, not even temporary tables. The owner's functions and commands read
# and write the rows of all users, but forced policies also apply to the owner, unless it is a superuser or has
# BYPASSRLS. So the owner gets the rights of the system.
_SCHEMA_RIGHTS: Final = f"""
DO $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO {", ".join(SERVICE_ROLES)}', current_schema());
    EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', current_schema());
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
        AND NOT pg_has_role(current_user, '{SYSTEM_ROLE}', 'USAGE')
    THEN
        EXECUTE format('GRANT {SYSTEM_ROLE} TO %I', current_user);
    END IF;
END
$$
"""  # noqa: S608  # built from constants


@event.listens_for(Base.metadata, "before_create")
def _create_roles(_metadata: MetaData, connection: Connection, *, tables: Iterable[Table], **_: Any) -> None:
    """Create the roles before `Base.metadata.create_all` creates policies and grants for them."""
    if any(grant.role in SERVICE_ROLES for table in tables for grant in grants_of(table)):
        for statement in (*role_statements(), _SCHEMA_RIGHTS):
            connection.exec_driver_sql(statement)
