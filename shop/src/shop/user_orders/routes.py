"""`/users/{user_id}` and `/users/{user_id}/order-summary`: a user with their orders.

The other routes of `/users` are in `shop.users.routes`.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response

from howdah import NotFound
from howdah.fastapi import NOT_MODIFIED, StrictJSONRoute, json_response
from shop.user_orders.dependencies import UserWithOrdersReader
from shop.user_orders.schemas import OrderSummaryOut, UserWithOrdersOut
from shop.user_orders.service import get_user_order_summary
from shop.users.models import User
from shop.web.dependencies import PrincipalSession

router = APIRouter(prefix="/users", tags=["users"], route_class=StrictJSONRoute)


@router.get("/{user_id}", response_model=UserWithOrdersOut, responses=NOT_MODIFIED)
async def get_user(user_id: UUID, request: Request, users: UserWithOrdersReader) -> Response:
    """The user with their orders. Send the `ETag` as `If-None-Match` of a later read, or as `If-Match` of a change. A
    change is checked against the user's version only, not against the orders."""
    return json_response(await users.get(user_id), request)


@router.get("/{user_id}/order-summary", response_model=OrderSummaryOut)
async def get_order_summary(user_id: UUID, db: PrincipalSession) -> dict[str, Any]:
    """The totals of a user's orders, by status and by month."""
    summary = await get_user_order_summary(db, user_id)
    if summary is None:
        raise NotFound(User, [user_id])
    return summary
