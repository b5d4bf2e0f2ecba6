"""The table of idempotent requests, for the routes of every feature."""

from __future__ import annotations

import howdah
from howdah import Base


class IdempotentRequest(howdah.IdempotentRequest, Base):
    """The response to a request that created users or orders. `scope` is the `Caller`.

    It is stored in the transaction of the new rows. Requests that open accounts or move money have keys of their own:
    `shop.ledger.models.IdempotencyKey`. `shop.ledger.maintenance` deletes old rows of both tables.
    """

    __tablename__ = "idempotent_requests"
