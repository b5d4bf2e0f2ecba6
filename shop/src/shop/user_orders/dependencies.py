"""FastAPI dependencies of the routes of users with their orders."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from shop.user_orders.service import UserOrderViews


# `async`, because FastAPI would call a plain function in a thread.
async def get_user_order_views(request: Request) -> UserOrderViews:
    views: UserOrderViews = request.state.user_orders
    return views


CurrentUserOrderViews = Annotated[UserOrderViews, Depends(get_user_order_views)]
