"""`/transfers`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Body, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import select

from howdah import paginate
from howdah.fastapi import PageOut, StrictJSONRoute, problems, schema_of
from shop.transfers.batch import posted_lines
from shop.transfers.models import Transfer
from shop.transfers.repository import booked
from shop.transfers.requests import Refusal, TransferRequest, TransferResult
from shop.transfers.schemas import (
    BatchLineIn,
    BatchLineOut,
    Key,
    LinkedIn,
    LinkedOut,
    PartIn,
    TransferIn,
    TransferOut,
    TransferPageParameters,
    VoidIn,
    rendered,
    shown,
)
from shop.transfers.service import find_transfer, linked_under, posting_of, reversal_of, voiding_of
from shop.web.dependencies import Caller, CurrentLedger, ReadDbSession
from shop.web.errors import key_missing, refusal_response
from shop.web.lines import JSON, NDJSON, ndjson_lines

router = APIRouter(prefix="/transfers", tags=["transfers"], route_class=StrictJSONRoute)

IdempotencyKey = Annotated[Key | None, Header()]

_REFUSALS: Final = problems(HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT)


@router.post(
    "",
    status_code=HTTPStatus.CREATED,
    response_model=TransferOut,
    responses=_REFUSALS,
)
async def create_transfer(
    body: TransferIn, ledger: CurrentLedger, caller: Caller, idempotency_key: IdempotencyKey = None
) -> Response:
    """Move money. A request may be sent again under its key after any failure: it is made once, and answered alike,
    with `Idempotency-Replayed: true`. The same key with another body is refused.

    With `pending_seconds` the amount is only held: `POST /transfers/{transfer_id}/post` moves it, `…/void` lets it go,
    and so does time.
    """
    if idempotency_key is None:
        return key_missing()
    return _answer(await ledger.submit(_request(body, idempotency_key, caller)))


@router.post(
    "/linked",
    status_code=HTTPStatus.CREATED,
    response_model=LinkedOut,
    responses=_REFUSALS,
)
async def create_linked_transfers(
    body: LinkedIn, ledger: CurrentLedger, caller: Caller, idempotency_key: IdempotencyKey = None
) -> Response:
    """2 to 100 transfers under one key, all or none, each decided on what those before it left: from one account to
    many, say, or through an account in between. A refusal names with `index`, from 0, which one it is about."""
    if idempotency_key is None:
        return key_missing()
    requests = [_request(each, None, caller) for each in body.transfers]
    results = await ledger.submit_many(linked_under(idempotency_key, requests))
    for index, result in enumerate(results):
        if result.refusal is not None and result.refusal is not Refusal.LINKED_REFUSED:
            return refusal_response(result.refusal, replayed=result.replayed, index=index)
    content = {"transfers": [shown(result.unwrap()) for result in results]}
    return _json(HTTPStatus.CREATED, content, replayed=results[0].replayed)


@router.post(
    "/batch",
    response_class=StreamingResponse,
    responses={
        200: {"content": {NDJSON: {"schema": schema_of(BatchLineOut)}}},
        **problems(HTTPStatus.BAD_REQUEST, HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {NDJSON: {"schema": schema_of(BatchLineIn, "validation")}},
        }
    },
)
async def create_transfers(request: Request, ledger: CurrentLedger, caller: Caller) -> StreamingResponse:
    """NDJSON in, NDJSON out, of any length: a transfer and its own idempotency key a line, answered in order.

    The lines are decided in order, 500 and those linked to them in a transaction, and each that isn't linked alone. The
    answer starts when the last line has been posted; a connection that breaks before leaves some posted, and sending
    all again is safe.
    """
    return StreamingResponse(await posted_lines(ndjson_lines(request), ledger, caller), media_type=NDJSON)


@router.get("", response_model=PageOut[TransferOut])
async def list_transfers(parameters: Annotated[TransferPageParameters, Query()], db: ReadDbSession) -> Response:
    """The posted transfers, in the order in which they were asked for: one that was pending stands where it was then,
    and may come after others have been read. Those of an account are found by its entries, which only grow at the
    end."""
    every = select(Transfer).order_by(Transfer.id)
    chosen = every if parameters.group_id is None else every.where(Transfer.group_id == parameters.group_id)
    page = await paginate(db, chosen, limit=parameters.limit, after=parameters.after, before=parameters.before)
    items = [shown(booked(transfer)) for transfer in page.items]
    return _json(HTTPStatus.OK, {"items": items, "next": page.next, "previous": page.previous})


@router.get("/{transfer_id}", response_model=TransferOut)
async def get_transfer(transfer_id: UUID, db: ReadDbSession) -> Response:
    """The transfer as it stands: pending, posted or voided."""
    return _json(HTTPStatus.OK, shown(await find_transfer(db, transfer_id)))


_SETTLING: Final[dict[str, Any]] = {
    "status_code": HTTPStatus.CREATED,
    "response_model": TransferOut,
    "responses": _REFUSALS,
}
Part = Annotated[PartIn, Body(default_factory=PartIn)]


@router.post("/{transfer_id}/post", **_SETTLING)
async def post_pending_transfer(
    *,
    transfer_id: UUID,
    db: ReadDbSession,
    ledger: CurrentLedger,
    caller: Caller,
    body: Part,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Move what a pending transfer holds: the amount that the body names, or all. What it holds beyond that is free
    again."""
    if idempotency_key is None:
        return key_missing()
    request = await posting_of(db, transfer_id, amount=body.amount, key=idempotency_key, scope=caller)
    await db.commit()  # only read; the ledger has a transaction of its own
    return _answer(await ledger.submit(request))


@router.post("/{transfer_id}/void", **_SETTLING)
async def void_pending_transfer(
    *,
    transfer_id: UUID,
    db: ReadDbSession,
    ledger: CurrentLedger,
    caller: Caller,
    body: Annotated[VoidIn, Body(default_factory=VoidIn)],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Let go what a pending transfer holds, all of it."""
    if idempotency_key is None:
        return key_missing()
    request = await voiding_of(db, transfer_id, key=idempotency_key, scope=caller)
    await db.commit()
    return _answer(await ledger.submit(request))


@router.post("/{transfer_id}/reverse", **_SETTLING)
async def reverse_transfer(
    *,
    transfer_id: UUID,
    db: ReadDbSession,
    ledger: CurrentLedger,
    caller: Caller,
    body: Part,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Take a transfer back: the amount that the body names, or all that is left of it. Several reversals never take
    back more than there was."""
    if idempotency_key is None:
        return key_missing()
    request = await reversal_of(db, transfer_id, amount=body.amount, key=idempotency_key, scope=caller)
    await db.commit()
    return _answer(await ledger.submit(request))


def _request(body: TransferIn, key: str | None, caller: str) -> TransferRequest:
    return TransferRequest(
        body.from_account_id,
        body.to_account_id,
        body.amount,
        description=body.description,
        key=key,
        scope=caller,
        metadata=body.metadata or None,
        effective_at=body.effective_at,
        pending_seconds=body.pending_seconds,
    )


def _answer(result: TransferResult) -> Response:
    if result.refusal is not None:
        return refusal_response(result.refusal, replayed=result.replayed)
    transfer = result.unwrap()
    return _json(HTTPStatus.CREATED, shown(transfer), location=f"/transfers/{transfer.id}", replayed=result.replayed)


def _json(
    status: HTTPStatus, content: dict[str, Any], *, location: str | None = None, replayed: bool = False
) -> Response:
    headers = {} if location is None else {"Location": location}
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    return Response(rendered(content), status, headers, JSON)
