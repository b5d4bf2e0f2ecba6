"""Who may read users with their orders: the rules of users, and of orders for the order summary."""

from __future__ import annotations

from typing import Final

from shop.orders.rules import READ_ORDERS
from shop.users.rules import OWN_USERS, READ_USERS

READ_USERS_WITH_ORDERS: Final = READ_USERS
READ_SUMMARIES: Final = READ_ORDERS

# The orders of a user belong to the user, so the check of the user's id is enough.
OWN_USERS_WITH_ORDERS: Final = OWN_USERS
