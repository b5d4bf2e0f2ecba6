"""Who may do what with orders.

A customer places, reads and pays only their own orders. Operators read all orders and set their statuses. Admins also
place and pay orders of others.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import ColumnElement, or_

from howdah.fastapi import allow
from shop.identity.principals import Role
from shop.ledger.models import Account
from shop.orders.models import Order
from shop.web.access import OwnRows, SecondScope, everyone, staff

READ_ORDERS: Final = everyone("orders:read")
PLACE_ORDERS: Final = allow(Role.CUSTOMER, Role.ADMIN, scope="orders:write")
# Operators may not: a payment moves money.
PAY_ORDERS: Final = allow(Role.CUSTOMER, Role.ADMIN, scope="orders:write")
WITH_TRANSFER: Final = SecondScope("transfers:write")
SET_STATUSES: Final = staff("orders:write")

OWN_ORDERS: Final = OwnRows(Order.user_id)

# The accounts from which a customer may pay an order.
OWN_PAYING_ACCOUNTS: Final = OwnRows(Account.user_id)


def is_visible(order: Any, viewer: Any) -> ColumnElement[bool]:
    """The row filter of a view of orders. The viewer is that of `OWN_ORDERS`."""
    return or_(viewer.sees_all, order.user_id == viewer.customer_id)
