"""What the routes of users with their orders take from a request."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from shop.user_orders.service import UserOrderViews


# async, because FastAPI calls other functions in a thread
async def get_user_order_views(request: Request) -> UserOrderViews:
    views: UserOrderViews = request.state.user_orders
    return views


CurrentUserOrderViews = Annotated[UserOrderViews, Depends(get_user_order_views)]
