"""Every table of Shop: importing this makes `howdah.Base.metadata` complete."""

from howdah import Base
from shop.accounts.models import Account, Entry
from shop.orders.models import Order, OrderItem
from shop.proof.models import Seal
from shop.transfers.models import IdempotencyKey, PendingTransfer, Transfer
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
