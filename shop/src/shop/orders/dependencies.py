"""What the routes of orders take from a request."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from shop.orders.service import OrderViews


# async, because FastAPI calls other functions in a thread
async def get_order_views(request: Request) -> OrderViews:
    views: OrderViews = request.state.orders
    return views


CurrentOrderViews = Annotated[OrderViews, Depends(get_order_views)]
