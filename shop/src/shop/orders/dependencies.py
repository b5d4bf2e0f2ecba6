"""FastAPI dependencies of the routes of orders."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from shop.orders.service import OrderViews


# `async`, because FastAPI would call a plain function in a thread.
async def get_order_views(request: Request) -> OrderViews:
    views: OrderViews = request.state.orders
    return views


CurrentOrderViews = Annotated[OrderViews, Depends(get_order_views)]
