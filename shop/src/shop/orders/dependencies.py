"""FastAPI dependencies of the routes of orders."""

# Without `from __future__ import annotations`, because FastAPI can't resolve the annotations of local names as texts.

from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import Depends

from howdah import JsonViewReader
from howdah.fastapi import Resource
from shop.orders.models import Order
from shop.orders.rules import OWN_ORDERS
from shop.orders.schemas import OrderIn
from shop.orders.service import ORDER_VIEW, ORDER_WITH_ITEMS_VIEW
from shop.users.models import User
from shop.web.access import Viewer
from shop.web.dependencies import CurrentPrincipal, principal_reader

order_reader: Final = Resource("order_list", ORDER_VIEW.open)
order_with_items_reader: Final = Resource("order", ORDER_WITH_ITEMS_VIEW.open)

OrderReader = Annotated[JsonViewReader[Order], principal_reader(order_reader)]
OrderWithItemsReader = Annotated[JsonViewReader[Order, Viewer], principal_reader(order_with_items_reader)]


async def get_buyer_id(body: OrderIn, principal: CurrentPrincipal) -> UUID:
    """The user of a new order: that of the body, or else the principal.

    A dependency, so that the rule also applies to a replay: the principal's role may have changed.
    """
    user_id = principal.user_id if body.user_id is None else body.user_id
    OWN_ORDERS.check(principal, user_id, User, user_id)
    return user_id


buyer_id: Final[Any] = Depends(get_buyer_id)
BuyerId = Annotated[UUID, buyer_id]
