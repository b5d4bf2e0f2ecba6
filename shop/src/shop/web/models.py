"""The table of idempotent requests, for the routes of every feature."""

from __future__ import annotations

from typing import Final

import howdah
from howdah import Base
from howdah.tenancy import TableGrant
from shop.policies import OWN_SCOPE, customers_insert, customers_read, customers_update, staff_and_system
from shop.roles import CUSTOMER_ROLE, STAFF_ROLE, SYSTEM_ROLE

# the columns that are set when the response is stored
_RESPONSE_COLUMNS: Final = ("fingerprint", "status", "headers", "body")


class IdempotentRequest(howdah.IdempotentRequest, Base):
    """The response to a request that created users or orders. `scope` is the key of the principal.

    It is stored in the transaction of the new rows. Requests that open accounts or move money have other keys:
    `shop.ledger.models.IdempotencyKey`. `shop.ledger.maintenance` deletes old rows of both tables.
    """

    __tablename__ = "idempotent_requests"
    __table_args__ = (
        customers_read(f"scope = {OWN_SCOPE}"),
        customers_insert(f"scope = {OWN_SCOPE}"),
        customers_update(f"scope = {OWN_SCOPE}"),
        *staff_and_system(),
        TableGrant(CUSTOMER_ROLE, "SELECT", "INSERT"),
        TableGrant(CUSTOMER_ROLE, "UPDATE", columns=_RESPONSE_COLUMNS),
        TableGrant(STAFF_ROLE, "SELECT", "INSERT"),
        TableGrant(STAFF_ROLE, "UPDATE", columns=_RESPONSE_COLUMNS),
        TableGrant(SYSTEM_ROLE, "SELECT", "INSERT", "DELETE"),
        TableGrant(SYSTEM_ROLE, "UPDATE", columns=_RESPONSE_COLUMNS),
    )
