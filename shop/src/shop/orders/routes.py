"""`/orders`: place, list, export and pay orders, and change their status."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import select

from howdah.fastapi import (
    NOT_MODIFIED,
    PageOut,
    describe_export,
    export_response,
    json_response,
    list_response,
)
from shop.ledger.http.dependencies import RequiredIdempotencyKey
from shop.ledger.http.problems import refusal_response
from shop.ledger.writing import KeyInUse
from shop.orders.dependencies import OrderReader, OrderWithItemsReader
from shop.orders.models import Order
from shop.orders.schemas import (
    MAX_STATUS_CHANGE_BYTES,
    OrderExportParameters,
    OrderIn,
    OrderOut,
    OrderPageParameters,
    OrderWithItemsOut,
    PaymentIn,
    StatusChangeIn,
    StatusChangeOut,
)
from shop.orders.service import change_status, pay_order, place_order
from shop.web.dependencies import Caller, PrincipalReadSession, PrincipalSession
from shop.web.idempotency import StrictIdempotentRoute, request_key

router = APIRouter(prefix="/orders", tags=["orders"], route_class=StrictIdempotentRoute)


@router.post("", status_code=HTTPStatus.CREATED, response_model=OrderWithItemsOut, dependencies=[request_key])
async def create_order(body: OrderIn, db: PrincipalSession, response: Response) -> Order:
    """Place an order. Its total is computed from the items."""
    order = await place_order(db, body)
    response.headers["Location"] = f"/orders/{order.id}"
    return order


@router.get("", response_model=PageOut[OrderOut])
async def list_orders(parameters: Annotated[OrderPageParameters, Query()], orders: OrderReader) -> Response:
    """Orders by the time when they were placed."""
    return await list_response(orders, parameters)


@router.get("/export", response_class=StreamingResponse, responses=describe_export(OrderOut))
async def export_orders(
    parameters: Annotated[OrderExportParameters, Query()], db: PrincipalReadSession
) -> StreamingResponse:
    """All orders that match the filters, by the time when they were placed, as NDJSON or as CSV with a header line.

    The response is one snapshot. If an error occurs before its end, the connection is closed without the final chunk.
    """
    return await export_response(
        db,
        parameters.apply(select(Order)),
        parameters.format,
        columns=[getattr(Order, name) for name in OrderOut.model_fields],
        name="orders",
        escapes_formulas=not parameters.raw,
    )


@router.patch("/status", max_body_size=MAX_STATUS_CHANGE_BYTES)
async def change_order_status(body: StatusChangeIn, db: PrincipalSession) -> StatusChangeOut:
    """Set the status of many orders."""
    changed = await change_status(db, body.order_ids, body.status)
    return StatusChangeOut(updated=changed.count, missing=changed.missing)


@router.get("/{order_id}", response_model=OrderWithItemsOut, responses=NOT_MODIFIED)
async def get_order(order_id: UUID, request: Request, orders: OrderWithItemsReader) -> Response:
    """The order with its items."""
    return json_response(await orders.get(order_id), request)


@router.post("/{order_id}/pay", response_model=OrderOut)
async def pay(
    *,
    order_id: UUID,
    body: PaymentIn,
    db: PrincipalSession,
    caller: Caller,
    response: Response,
    idempotency_key: RequiredIdempotencyKey,
) -> Order | Response:
    """Transfer the order's total between two accounts and mark the order as paid, both or neither. Payments and
    transfers share one set of idempotency keys."""
    accounts = (body.from_account_id, body.to_account_id)
    try:
        payment = await pay_order(db, order_id, *accounts, key=idempotency_key, scope=caller)
    except KeyInUse:  # The request with the same key has ended by now. If it was committed, this one is a replay.
        await db.rollback()
        payment = await pay_order(db, order_id, *accounts, key=idempotency_key, scope=caller)
    if payment.result.refusal is not None:
        return refusal_response(payment.result.refusal, replayed=payment.result.replayed)
    if payment.result.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return payment.order
