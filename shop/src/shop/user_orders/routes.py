"""`/users/{user_id}` and `/users/{user_id}/order-summary`: a user with their orders.

The other routes of `/users` are in `shop.users.routes`.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response

from howdah import NotFound
from howdah.fastapi import NOT_MODIFIED, StrictJSONRoute, direct, json_response
from shop.user_orders.dependencies import UserWithOrdersReader
from shop.user_orders.rules import (
    OWN_USERS_WITH_ORDERS,
    READ_SUMMARIES,
    READ_USERS_WITH_ORDERS,
    WITH_ORDERS,
    WITH_USER,
)
from shop.user_orders.schemas import OrderSummaryOut, UserWithOrdersOut
from shop.user_orders.service import get_user_order_summary
from shop.users.models import User
from shop.web.dependencies import CurrentPrincipal, PrincipalSession

router = APIRouter(prefix="/users", tags=["users"], route_class=StrictJSONRoute)


@router.get(
    "/{user_id}",
    response_model=UserWithOrdersOut,
    responses=NOT_MODIFIED,
    dependencies=[READ_USERS_WITH_ORDERS],
)
@direct
async def get_user(
    user_id: UUID, request: Request, users: UserWithOrdersReader, principal: CurrentPrincipal
) -> Response:
    """The user with their orders. An API key needs the scopes `users:read` and `orders:read`.

    Send the `ETag` as `If-None-Match` of a later read, or as `If-Match` of a change. A change is checked against the
    user's version only, not against the orders.
    """
    WITH_ORDERS.check(principal)
    OWN_USERS_WITH_ORDERS.check(principal, user_id, User, user_id)
    return json_response(await users.get(user_id), request)


@router.get("/{user_id}/order-summary", response_model=OrderSummaryOut, dependencies=[READ_SUMMARIES])
async def get_order_summary(user_id: UUID, db: PrincipalSession, principal: CurrentPrincipal) -> dict[str, Any]:
    """The totals of a user's orders, by status and by month. An API key needs `orders:read` and `users:read`."""
    WITH_USER.check(principal)
    OWN_USERS_WITH_ORDERS.check(principal, user_id, User, user_id)
    summary = await get_user_order_summary(db, user_id)
    if summary is None:
        raise NotFound(User, [user_id])
    return summary
