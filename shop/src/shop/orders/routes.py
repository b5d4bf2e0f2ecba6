"""`/orders`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from howdah import NotFound, Page
from shop.orders.models import Order
from shop.orders.repository import OrderRepository, matching
from shop.orders.schemas import (
    OrderIn,
    OrderOut,
    OrderPageOut,
    OrderPageParameters,
    OrderWithItemsOut,
    PaymentIn,
    StatusChangeIn,
    StatusChangeOut,
)
from shop.orders.service import change_status, pay_order, place_order
from shop.web.dependencies import DbSession
from shop.web.errors import problems

router = APIRouter(prefix="/orders", tags=["orders"])


@router.post(
    "", status_code=HTTPStatus.CREATED, response_model=OrderWithItemsOut, responses=problems(HTTPStatus.CONFLICT)
)
async def create_order(body: OrderIn, db: DbSession, response: Response) -> Order:
    """Place an order; its total is computed from the items."""
    order = await place_order(db, body)
    response.headers["Location"] = f"/orders/{order.id}"
    return order


@router.get("", response_model=OrderPageOut, responses=problems(HTTPStatus.BAD_REQUEST))
async def list_orders(parameters: Annotated[OrderPageParameters, Query()], db: DbSession) -> Page[Order]:
    """Orders in the order of placing."""
    return await OrderRepository(db).page(
        matching(
            user_id=parameters.user_id,
            status=parameters.status,
            placed_from=parameters.placed_from,
            placed_before=parameters.placed_before,
        ),
        limit=parameters.limit,
        after=parameters.after,
        before=parameters.before,
    )


@router.patch("/status")
async def change_order_status(body: StatusChangeIn, db: DbSession) -> StatusChangeOut:
    """Set the status of many orders."""
    changed = await change_status(db, body.order_ids, body.status)
    return StatusChangeOut(updated=changed.count, missing=changed.missing)


@router.get("/{order_id}", response_model=OrderWithItemsOut, responses=problems(HTTPStatus.NOT_FOUND))
async def get_order(order_id: UUID, db: DbSession) -> Order:
    """The order with its items."""
    order = await OrderRepository(db).get_with_items(order_id)
    if order is None:
        raise NotFound(Order, [order_id])
    return order


@router.post("/{order_id}/pay", response_model=OrderOut, responses=problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT))
async def pay(order_id: UUID, body: PaymentIn, db: DbSession) -> Order:
    """Move the order's total between two accounts and mark it paid, both or neither."""
    return await pay_order(db, order_id, body.from_account_id, body.to_account_id)
