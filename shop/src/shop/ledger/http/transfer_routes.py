"""`/transfers`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import TypeAdapter, ValidationError

from howdah import paginate
from howdah.fastapi import PageOut, ReadDbSession, StrictJSONRoute, describe_problems, get_schema_ref
from shop.ledger.http.bodies import named_in, request_of
from shop.ledger.http.dependencies import CurrentLedger, RequiredIdempotencyKey
from shop.ledger.http.problems import refusal_response
from shop.ledger.http.transfer_batch import posted_lines
from shop.ledger.http.transfer_schemas import (
    METADATA_PARAMETER,
    BatchLineIn,
    BatchLineOut,
    LinkedIn,
    LinkedOut,
    PartIn,
    ReverseIn,
    TransferIn,
    TransferOut,
    TransferPageParameters,
    VoidIn,
    rendered,
    shown,
)
from shop.ledger.requests import Refusal, TransferResult
from shop.ledger.service import (
    as_linked_chain,
    find_transfer,
    named_transfers,
    posting_request,
    reversal_request,
    voiding_request,
)
from shop.ledger.transfer_queries import transfers_matching
from shop.web.dependencies import Caller
from shop.web.fields import Metadata
from shop.web.lines import JSON, NDJSON, ndjson_lines

router = APIRouter(prefix="/transfers", tags=["transfers"], route_class=StrictJSONRoute)

_METADATA: Final = TypeAdapter(Metadata)
_METADATA_PARAMETER: Final = {
    "name": "metadata",
    "in": "query",
    "required": False,
    "description": "A name and value of the metadata: `metadata[region]=north`. All of several must match",
    "style": "deepObject",
    "explode": True,
    "schema": _METADATA.json_schema(),
}
_REFUSALS: Final = describe_problems(HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT)


@router.post(
    "",
    status_code=HTTPStatus.CREATED,
    response_model=TransferOut,
    responses=_REFUSALS,
)
async def create_transfer(
    body: TransferIn, ledger: CurrentLedger, caller: Caller, idempotency_key: RequiredIdempotencyKey
) -> Response:
    """Move money. A request can be sent again with its key after any failure: it is executed once, and the first
    response is returned again with `Idempotency-Replayed: true`. The same key with another body is refused.

    With `pending_seconds` the amount is only held. `POST /transfers/{transfer_id}/post` posts it and `…/void` releases
    it. After that time it expires.
    """
    return _answer(await ledger.submit(request_of(body, {}, key=idempotency_key, scope=caller)))


@router.post(
    "/linked",
    status_code=HTTPStatus.CREATED,
    response_model=LinkedOut,
    responses=_REFUSALS | describe_problems(HTTPStatus.NOT_FOUND),
)
async def create_linked_transfers(
    body: LinkedIn, db: ReadDbSession, ledger: CurrentLedger, caller: Caller, idempotency_key: RequiredIdempotencyKey
) -> Response:
    """Make 2 to 100 transfers under one key, all or none. Each is decided on the balances that the ones before it left.
    So one account can pay many, or money can pass through an account. A refusal names the refused one by its `index`,
    from 0.

    An element is a transfer, or posts (`posts`), voids (`voids`) or reverses (`reverses`) the transfer that it names.
    """
    named = await named_transfers(db, {id_ for each in body.transfers if (id_ := named_in(each)) is not None})
    await db.commit()  # it only read; the ledger uses a transaction of its own
    requests = [request_of(each, named, key=None, scope=caller) for each in body.transfers]
    results = await ledger.submit_many(as_linked_chain(idempotency_key, requests))
    for index, result in enumerate(results):
        if result.refusal is not None and result.refusal is not Refusal.LINKED_TRANSFER_FAILED:
            return refusal_response(result.refusal, replayed=result.replayed, index=index)
    content = {"transfers": [shown(result.unwrap()) for result in results]}
    return _json(HTTPStatus.CREATED, content, replayed=results[0].replayed)


@router.post(
    "/batch",
    response_class=StreamingResponse,
    responses={
        200: {"content": {NDJSON: {"schema": get_schema_ref(BatchLineOut)}}},
        **describe_problems(HTTPStatus.BAD_REQUEST, HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {NDJSON: {"schema": get_schema_ref(BatchLineIn, "validation")}},
        }
    },
)
async def create_transfers(
    request: Request, db: ReadDbSession, ledger: CurrentLedger, caller: Caller
) -> StreamingResponse:
    """Make many transfers. The body and the response are NDJSON of any length: each line has a transfer and its own
    idempotency key, and is answered in order.

    A line may also post (`posts`), void (`voids`) or reverse (`reverses`) the transfer that it names. A line that names
    an unknown transfer is `invalid`.

    The lines are decided in order. 500 lines, and those linked to them, are one transaction. A refused line doesn't
    affect lines that it isn't linked with. The response starts when the last line has been decided. If the connection
    breaks before, some lines have been posted; it is safe to send all lines again.
    """
    return StreamingResponse(await posted_lines(ndjson_lines(request), db, ledger, caller), media_type=NDJSON)


async def get_metadata_filter(request: Request) -> dict[str, str]:
    """The filter from the parameters `metadata[name]=value`. A name that occurs twice is an error."""
    found: dict[str, list[str]] = {}
    for parameter, value in request.query_params.multi_items():
        if match := METADATA_PARAMETER.fullmatch(parameter):
            found.setdefault(match[1], []).append(value)
    try:
        return _METADATA.validate_python(
            {name: values[0] if len(values) == 1 else values for name, values in found.items()}
        )
    except ValidationError as error:
        faults = error.errors(include_url=False)
        raise RequestValidationError(
            [{**fault, "loc": ("query", "metadata", *fault["loc"])} for fault in faults]
        ) from error


@router.get("", response_model=PageOut[TransferOut], openapi_extra={"parameters": [_METADATA_PARAMETER]})
async def list_transfers(
    parameters: Annotated[TransferPageParameters, Query()],
    metadata: Annotated[dict[str, str], Depends(get_metadata_filter)],
    db: ReadDbSession,
    caller: Caller,
) -> Response:
    """Transfers in any state, in the order of their ids. A transfer that is posted or voided keeps its place.

    A page of a list by account reads all entries of the account, or those between `created_from` and `created_before`.
    `GET /accounts/{account_id}/entries` reads only the entries of the page.
    """
    filters = parameters.model_dump(exclude={"limit", "after", "before"})
    chosen = transfers_matching(scope=caller, metadata=metadata, **filters)
    page = await paginate(db, chosen, limit=parameters.limit, after=parameters.after, before=parameters.before)
    items = [shown(transfer.as_record()) for transfer in page.items]
    return _json(HTTPStatus.OK, {"items": items, "next": page.next, "previous": page.previous})


@router.get("/{transfer_id}", response_model=TransferOut)
async def get_transfer(transfer_id: UUID, db: ReadDbSession) -> Response:
    """The current state of the transfer: pending, posted or voided."""
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
    idempotency_key: RequiredIdempotencyKey,
) -> Response:
    """Post a pending transfer: the `amount` of the body, or the whole hold. The rest of the hold is released."""
    request = await posting_request(db, transfer_id, amount=body.amount, key=idempotency_key, scope=caller)
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
    idempotency_key: RequiredIdempotencyKey,
) -> Response:
    """Void a pending transfer: release the whole hold."""
    request = await voiding_request(db, transfer_id, key=idempotency_key, scope=caller)
    await db.commit()
    return _answer(await ledger.submit(request))


@router.post("/{transfer_id}/reverse", **_SETTLING)
async def reverse_transfer(
    *,
    transfer_id: UUID,
    db: ReadDbSession,
    ledger: CurrentLedger,
    caller: Caller,
    body: Annotated[ReverseIn, Body(default_factory=ReverseIn)],
    idempotency_key: RequiredIdempotencyKey,
) -> Response:
    """Reverse a transfer: the `amount` of the body, or all that isn't reversed yet. Its reversals never return more
    than its amount. A reversal never takes effect before the transfer that it reverses."""
    request = await reversal_request(
        db,
        transfer_id,
        amount=body.amount,
        description=body.description,
        effective_at=body.effective_at,
        key=idempotency_key,
        scope=caller,
    )
    await db.commit()
    return _answer(await ledger.submit(request))


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
