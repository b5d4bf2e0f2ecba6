"""`/orders`: place, list, export and pay orders, and change their status."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import select

from howdah.fastapi import (
    NOT_MODIFIED,
    PageOut,
    describe_export,
    describe_problems,
    direct,
    export_response,
    json_response,
    list_response,
)
from shop.audit.dependencies import CurrentAuditTrail
from shop.audit.models import AuditAction
from shop.ledger.http.dependencies import RequiredIdempotencyKey
from shop.ledger.http.problems import refusal_response
from shop.ledger.lock_waits import KeyInUse
from shop.orders.dependencies import BuyerId, OrderReader, OrderWithItemsReader, buyer_id
from shop.orders.models import Order
from shop.orders.rules import (
    OWN_ORDERS,
    OWN_PAYING_ACCOUNTS,
    PAY_ORDERS,
    PLACE_ORDERS,
    READ_ORDERS,
    SET_STATUSES,
    WITH_TRANSFER,
)
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
from shop.web.dependencies import CurrentPrincipal, PrincipalReadSession, PrincipalSession
from shop.web.idempotency import StrictIdempotentRoute, request_key

router = APIRouter(prefix="/orders", tags=["orders"], route_class=StrictIdempotentRoute)

_ORDERS_PER_EVENT: Final = 1_000
# one object for all requests, so that the view prepares its page once
_ALL_ORDERS: Final = select(Order)


@router.post(
    "",
    status_code=HTTPStatus.CREATED,
    response_model=OrderWithItemsOut,
    dependencies=[PLACE_ORDERS, buyer_id, request_key],
    responses=describe_problems(HTTPStatus.NOT_FOUND),
)
@direct
async def create_order(body: OrderIn, db: PrincipalSession, user_id: BuyerId, response: Response) -> Order:
    """Place an order. Its total is computed from the items."""
    order = await place_order(db, body, user_id)
    response.headers["Location"] = f"/orders/{order.id}"
    return order


@router.get("", response_model=PageOut[OrderOut], dependencies=[READ_ORDERS])
@direct
async def list_orders(
    parameters: Annotated[OrderPageParameters, Query()], orders: OrderReader, principal: CurrentPrincipal
) -> Response:
    """Orders by the time when they were placed. A customer's list has only their own orders."""
    return await list_response(orders, parameters, statement=OWN_ORDERS.restrict(_ALL_ORDERS, principal))


@router.get(
    "/export", response_class=StreamingResponse, responses=describe_export(OrderOut), dependencies=[READ_ORDERS]
)
async def export_orders(
    parameters: Annotated[OrderExportParameters, Query()], db: PrincipalReadSession, principal: CurrentPrincipal
) -> StreamingResponse:
    """All orders that match the filters, by the time when they were placed, as NDJSON or as CSV with a header line.

    The response is one snapshot. If an error occurs before its end, the connection is closed without the final chunk.
    """
    return await export_response(
        db,
        parameters.apply(OWN_ORDERS.restrict(_ALL_ORDERS, principal)),
        parameters.format,
        columns=[getattr(Order, name) for name in OrderOut.model_fields],
        name="orders",
        escapes_formulas=not parameters.raw,
    )


@router.patch("/status", max_body_size=MAX_STATUS_CHANGE_BYTES, dependencies=[SET_STATUSES])
async def change_order_status(body: StatusChangeIn, db: PrincipalSession, audit: CurrentAuditTrail) -> StatusChangeOut:
    """Set the status of many orders."""
    changed = await change_status(db, body.order_ids, body.status)
    missing = set(changed.missing)
    found = [str(id_) for id_ in dict.fromkeys(body.order_ids) if id_ not in missing]
    for start in range(0, len(found), _ORDERS_PER_EVENT):
        ids = found[start : start + _ORDERS_PER_EVENT]
        await audit.record(
            db,
            AuditAction.ORDER_STATUSES_SET,
            subject_type="order",
            subject_id=ids[0] if len(found) == 1 else None,
            details={"status": body.status, "order_ids": ids},
        )
    return StatusChangeOut(updated=changed.count, missing=changed.missing)


@router.get("/{order_id}", response_model=OrderWithItemsOut, responses=NOT_MODIFIED, dependencies=[READ_ORDERS])
@direct
async def get_order(
    order_id: UUID, request: Request, orders: OrderWithItemsReader, principal: CurrentPrincipal
) -> Response:
    """The order with its items."""
    return json_response(await orders.get(order_id, viewer=OWN_ORDERS.viewer(principal)), request)


@router.post("/{order_id}/pay", response_model=OrderOut, dependencies=[PAY_ORDERS])
@direct
async def pay(
    *,
    order_id: UUID,
    body: PaymentIn,
    db: PrincipalSession,
    principal: CurrentPrincipal,
    audit: CurrentAuditTrail,
    response: Response,
    idempotency_key: RequiredIdempotencyKey,
) -> Order | Response:
    """Transfer the order's total between two accounts and mark the order as paid, both or neither. Payments and
    transfers share one set of idempotency keys.

    A customer pays from an account of their own, to an account without an owner.
    """
    WITH_TRANSFER.check(principal)
    pay_once = partial(
        pay_order,
        db,
        order_id,
        body.from_account_id,
        body.to_account_id,
        key=idempotency_key,
        scope=principal.key,
        where=OWN_ORDERS.criterion(principal),
        customer_id=OWN_PAYING_ACCOUNTS.find_customer(principal),
        posted_by=principal.customer_id,
    )
    try:
        payment = await pay_once()
    except KeyInUse:  # The request with the same key has ended by now. If it was committed, this one is a replay.
        await db.rollback()
        payment = await pay_once()
    if payment.result.refusal is not None:
        return refusal_response(payment.result.refusal, replayed=payment.result.replayed)
    if payment.result.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    else:
        details = {"transfer_id": str(payment.result.unwrap().id)}
        await audit.record(db, AuditAction.ORDER_PAID, subject_type="order", subject_id=order_id, details=details)
    return payment.order
