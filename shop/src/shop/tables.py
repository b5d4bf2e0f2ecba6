"""Every table of Shop: importing this makes `howdah.Base.metadata` complete."""

from howdah import Base
from shop.ledger.models import Account, Entry, IdempotencyKey, PendingTransfer, Seal, Transfer
from shop.orders.models import Order, OrderItem
from shop.users.models import User

__all__ = [
    "Account",
    "Base",
    "Entry",
    "IdempotencyKey",
    "Order",
    "OrderItem",
    "PendingTransfer",
    "Seal",
    "Transfer",
    "User",
]
