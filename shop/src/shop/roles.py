"""The roles of PostgreSQL. None of them owns a table, is a superuser, or bypasses row-level security."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from howdah.tenancy import login_role_statements

SERVICE_LOGIN: Final = "shop_service"
"""The service logs in as this role. It has no rights of its own, except to take the other three."""

CUSTOMER_ROLE: Final = "shop_customer"
"""The role of a customer's transactions. It sees the rows of the user in the setting `app.user_id`."""

STAFF_ROLE: Final = "shop_staff"
"""The role of the transactions of operators and admins. It sees the rows of every user, but no passwords and tokens."""

SYSTEM_ROLE: Final = "shop_system"
"""The role of the ledger, of sign-ins, API keys and periodic jobs."""

SERVICE_ROLES: Final = (CUSTOMER_ROLE, STAFF_ROLE, SYSTEM_ROLE)
"""The roles that `SERVICE_LOGIN` takes."""

USER_SETTING: Final = "app.user_id"
"""The setting that the policies of customers read."""


def role_statements() -> Sequence[str]:
    """The statements that create the roles, without rights and passwords. They can be executed again.

    Roles belong to the whole server, so other databases of the server may execute the statements at the same time.
    """
    return login_role_statements(SERVICE_LOGIN, roles=SERVICE_ROLES)
