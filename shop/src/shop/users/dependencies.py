"""FastAPI dependencies of the routes of users."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from shop.users.service import UserViews


# `async`, because FastAPI would call a plain function in a thread.
async def get_user_views(request: Request) -> UserViews:
    views: UserViews = request.state.users
    return views


CurrentUserViews = Annotated[UserViews, Depends(get_user_views)]
