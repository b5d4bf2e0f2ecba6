"""FastAPI dependencies of the routes of orders."""

# Without `from __future__ import annotations`, because FastAPI can't resolve the annotations of local names as texts.

from typing import Annotated, Final

from fastapi import Depends

from howdah import JsonViewReader
from howdah.fastapi import Resource
from shop.orders.models import Order
from shop.orders.service import ORDER_VIEW, ORDER_WITH_ITEMS_VIEW
from shop.web.dependencies import scoped_reader

order_reader: Final = Resource("order_list", ORDER_VIEW.open)
order_with_items_reader: Final = Resource("order", ORDER_WITH_ITEMS_VIEW.open)

OrderReader = Annotated[JsonViewReader[Order], Depends(scoped_reader(order_reader))]
OrderWithItemsReader = Annotated[JsonViewReader[Order], Depends(scoped_reader(order_with_items_reader))]
