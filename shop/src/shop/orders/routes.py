"""`/orders`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import Select

from howdah.fastapi import PageOut, StrictJSONRoute, describe_problems, get_schema_ref, json_response, page_response
from shop.ledger.http.transfer_schemas import Key
from shop.ledger.writing import KeyInUse
from shop.orders.models import Order
from shop.orders.repository import matching
from shop.orders.schemas import (
    OrderExportParameters,
    OrderFilters,
    OrderIn,
    OrderOut,
    OrderPageParameters,
    OrderWithItemsOut,
    PaymentIn,
    StatusChangeIn,
    StatusChangeOut,
)
from shop.orders.service import change_status, pay_order, place_order
from shop.web.dependencies import Caller, CurrentOrders, DbSession, ReadDbSession
from shop.web.errors import key_missing, refusal_response
from shop.web.exports import CSV, exported
from shop.web.lines import NDJSON
from shop.web.preconditions import CACHED

router = APIRouter(prefix="/orders", tags=["orders"], route_class=StrictJSONRoute)


@router.post("", status_code=HTTPStatus.CREATED, response_model=OrderWithItemsOut)
async def create_order(body: OrderIn, db: DbSession, response: Response) -> Order:
    """Place an order; its total is computed from the items."""
    order = await place_order(db, body)
    response.headers["Location"] = f"/orders/{order.id}"
    return order


@router.get("", response_model=PageOut[OrderOut])
async def list_orders(parameters: Annotated[OrderPageParameters, Query()], orders: CurrentOrders) -> Response:
    """Orders in the order of placing."""
    page = await orders.listed.page(
        _matching(parameters), limit=parameters.limit, after=parameters.after, before=parameters.before
    )
    return page_response(page)


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={
        int(HTTPStatus.OK): {
            "description": "An order a line",
            "content": {
                NDJSON: {"schema": get_schema_ref(OrderOut)},
                CSV: {"schema": {"type": "string"}},
            },
        }
    },
)
async def export_orders(parameters: Annotated[OrderExportParameters, Query()], db: ReadDbSession) -> StreamingResponse:
    """All orders that the filters leave, in the order of placing, as NDJSON or as CSV with a header line.

    The answer is of one moment. If it breaks off before its end, the connection does, too.
    """
    columns = (getattr(Order, name) for name in OrderOut.model_fields)
    return await exported(db, _matching(parameters).with_only_columns(*columns), parameters.format, name="orders")


@router.patch("/status")
async def change_order_status(body: StatusChangeIn, db: DbSession) -> StatusChangeOut:
    """Set the status of many orders."""
    changed = await change_status(db, body.order_ids, body.status)
    return StatusChangeOut(updated=changed.count, missing=changed.missing)


@router.get("/{order_id}", response_model=OrderWithItemsOut, responses=CACHED)
async def get_order(order_id: UUID, request: Request, orders: CurrentOrders) -> Response:
    """The order with its items."""
    return json_response(await orders.with_items.get(order_id), request)


@router.post("/{order_id}/pay", response_model=OrderOut, responses=describe_problems(HTTPStatus.BAD_REQUEST))
async def pay(
    *,
    order_id: UUID,
    body: PaymentIn,
    db: DbSession,
    caller: Caller,
    response: Response,
    idempotency_key: Annotated[Key | None, Header()] = None,
) -> Order | Response:
    """Move the order's total between two accounts and mark it paid, both or neither. Keys are those of transfers."""
    if idempotency_key is None:
        return key_missing()
    accounts = (body.from_account_id, body.to_account_id)
    try:
        payment = await pay_order(db, order_id, *accounts, key=idempotency_key, scope=caller)
    except KeyInUse:  # the request that used the key is committed by now and will be seen, or rolled back
        await db.rollback()
        payment = await pay_order(db, order_id, *accounts, key=idempotency_key, scope=caller)
    if payment.result.refusal is not None:
        return refusal_response(payment.result.refusal, replayed=payment.result.replayed)
    if payment.result.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return payment.order


def _matching(filters: OrderFilters) -> Select[Any]:
    return matching(
        user_id=filters.user_id,
        status=filters.status,
        placed_from=filters.placed_from,
        placed_before=filters.placed_before,
        total_from=filters.total_from,
        total_to=filters.total_to,
    )
