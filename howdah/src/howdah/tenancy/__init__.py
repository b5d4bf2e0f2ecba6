"""Row-level security: policies next to the model, the application's role, and checks of both.

    class Order(Base):
        __tablename__ = "orders"
        __table_args__ = (TenantPolicy("tenant_id"),)
        id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
        tenant_id: Mapped[UUID] = mapped_column(index=True)

    async with database.with_settings({"app.tenant_id": tenant_id}).begin() as session:
        ...  # PostgreSQL shows the rows of this tenant, and rejects rows of another one

A transaction without the setting sees no row.
"""

from __future__ import annotations

from howdah.tenancy.checks import TenantTable, check_tenant_tables
from howdah.tenancy.grants import Right, TableGrant, grant_statements, grants_of
from howdah.tenancy.passwords import login_password_statement
from howdah.tenancy.policies import RowPolicy, TenantPolicy, policies_of, policy_statements
from howdah.tenancy.role_changes import role_in
from howdah.tenancy.role_checks import NotIsolated, check_role
from howdah.tenancy.roles import application_role_statements, create_application_role, login_role_statements

__all__ = [
    "NotIsolated",
    "Right",
    "RowPolicy",
    "TableGrant",
    "TenantPolicy",
    "TenantTable",
    "application_role_statements",
    "check_role",
    "check_tenant_tables",
    "create_application_role",
    "grant_statements",
    "grants_of",
    "login_password_statement",
    "login_role_statements",
    "policies_of",
    "policy_statements",
    "role_in",
]
