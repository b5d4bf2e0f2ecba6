"""Every table of Shop. An import of this module makes `howdah.Base.metadata` complete."""

import asyncio

from howdah import Base, Database
from shop.audit.models import AuditEvent
from shop.identity.api_keys.models import ApiKey
from shop.identity.models import (
    Credential,
    OneTimeToken,
    RefreshToken,
    SignInSession,
    SignInThrottle,
    TotpDevice,
)
from shop.ledger.models import Account, Entry, IdempotencyKey, PendingTransfer, Transfer
from shop.ledger.seal_models import Seal
from shop.orders.models import Order, OrderItem
from shop.users.models import User
from shop.web.models import IdempotentRequest

__all__ = [
    "Account",
    "ApiKey",
    "AuditEvent",
    "Base",
    "Credential",
    "Entry",
    "IdempotencyKey",
    "IdempotentRequest",
    "OneTimeToken",
    "Order",
    "OrderItem",
    "PendingTransfer",
    "RefreshToken",
    "Seal",
    "SignInSession",
    "SignInThrottle",
    "TotpDevice",
    "Transfer",
    "User",
    "create_tables",
]


def create_tables(url: str) -> None:
    """Create every table with its triggers in the empty database at `url`, without Alembic. Blocks."""

    async def create() -> None:
        async with (
            Database(url, pool_size=1, application_name="shop") as database,
            database.engine.begin() as connection,
        ):
            await connection.run_sync(Base.metadata.create_all)

    asyncio.run(create())
