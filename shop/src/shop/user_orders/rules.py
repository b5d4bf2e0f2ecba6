"""Who may read users with their orders: the roles and API keys that may read both."""

from __future__ import annotations

from typing import Final

from shop.orders.rules import READ_ORDERS
from shop.users.rules import OWN_USERS, READ_USERS
from shop.web.access import SecondScope

READ_USERS_WITH_ORDERS: Final = READ_USERS
WITH_ORDERS: Final = SecondScope("orders:read")

READ_SUMMARIES: Final = READ_ORDERS
WITH_USER: Final = SecondScope("users:read")

# The orders of a user belong to the user, so the check of the user's id is enough.
OWN_USERS_WITH_ORDERS: Final = OWN_USERS
