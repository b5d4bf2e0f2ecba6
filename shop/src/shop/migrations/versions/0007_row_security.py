"""Row-level security: the roles of the service, their policies and their rights.

`policies.sql` has a policy and the rights for each table. The other files in the folder `0007_row_security` replace
functions: those that write entries, balances and seals get the rights of their owner, so that no role needs them.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

from howdah.alembic import run_sql_files
from shop.roles import role_statements

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_TABLES = (
    "accounts",
    "api_keys",
    "audit_events",
    "credentials",
    "entries",
    "idempotency_keys",
    "idempotent_requests",
    "one_time_tokens",
    "order_items",
    "orders",
    "pending_transfers",
    "refresh_tokens",
    "seals",
    "sign_in_sessions",
    "sign_in_throttles",
    "totp_devices",
    "transfers",
    "users",
)
_OWNERS_FUNCTIONS = (
    "link_seals",
    "post_transfers",
    "seal_accounts",
    "seal_changed_account",
    "seal_idempotency_keys",
    "seal_pending_transfers",
    "seal_settled_transfers",
    "seal_transfers",
)
_ROLES = "shop_customer, shop_staff, shop_system"

# The owner gets the rights of the system: forced policies apply to it, too, unless it has BYPASSRLS.
_SCHEMA_RIGHTS = """
DO $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO shop_customer, shop_staff, shop_system', current_schema());
    EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', current_schema());
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
        AND NOT pg_has_role(current_user, 'shop_system', 'USAGE')
    THEN
        EXECUTE format('GRANT shop_system TO %I', current_user);
    END IF;
END
$$
"""

_DROP_POLICIES = """
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT polname FROM pg_policy WHERE polrelid = '{table}'::regclass LOOP
        EXECUTE format('DROP POLICY %I ON {table}', name);
    END LOOP;
END
$$
"""


def upgrade() -> None:
    # Not a copy of the statements: the roles belong to the whole server, and the statements can be repeated.
    for statement in role_statements():
        op.execute(sa.text(statement.replace(":", "\\:")))
    op.execute(_SCHEMA_RIGHTS)
    op.execute("GRANT SELECT ON alembic_version TO shop_system")  # for /readyz
    run_sql_files(Path(__file__).with_suffix(""))


def downgrade() -> None:
    for table in _TABLES:
        op.execute(_DROP_POLICIES.format(table=table))
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
        op.execute(f"REVOKE ALL ON {table} FROM {_ROLES}")
    op.execute("REVOKE ALL ON alembic_version FROM shop_system")
    op.execute("REVOKE ALL ON FUNCTION link_seals FROM shop_system")
    for function in _OWNERS_FUNCTIONS:
        op.execute(f"GRANT EXECUTE ON FUNCTION {function} TO PUBLIC")
    run_sql_files(Path(__file__).with_name("0005_posted_by"), "post_transfers.sql")
    run_sql_files(Path(__file__).with_name("0001_initial"), "seals.sql")
    op.execute(
        "DO $$ BEGIN EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO PUBLIC', current_database()); "
        "EXECUTE format('REVOKE USAGE ON SCHEMA %I FROM shop_customer, shop_staff, shop_system', current_schema()); END $$"
    )
