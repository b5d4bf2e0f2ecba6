"""What the routes of users take from a request."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from shop.users.service import UserViews


# async, because FastAPI calls other functions in a thread
async def get_user_views(request: Request) -> UserViews:
    views: UserViews = request.state.users
    return views


CurrentUserViews = Annotated[UserViews, Depends(get_user_views)]
