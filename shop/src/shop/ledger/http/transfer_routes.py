"""The routes of `/transfers`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import paginate
from howdah.fastapi import (
    NDJSON,
    PageOut,
    StrictJSONRoute,
    describe_problems,
    describe_rows_body,
    direct,
    get_schema_ref,
)
from shop.identity.principals import Principal
from shop.ledger.group_commit import Ledger
from shop.ledger.http.dependencies import CurrentLedger, RequiredIdempotencyKey
from shop.ledger.http.problems import refusal_response
from shop.ledger.http.rules import OWN_BALANCES, OWN_TRANSFERS, POST_TRANSFERS, READ_TRANSFERS
from shop.ledger.http.transfer_batch import post_transfer_lines
from shop.ledger.http.transfer_bodies import build_request, get_named_id
from shop.ledger.requests import Refusal, TransferResult
from shop.ledger.service import as_linked_chain, find_named_transfers, find_transfer
from shop.ledger.transfer_queries import select_transfers
from shop.ledger.transfer_schemas import (
    METADATA_PARAMETER,
    BatchLineIn,
    BatchLineOut,
    LinkedIn,
    LinkedOut,
    PostIn,
    PostingIn,
    ReversalIn,
    ReverseIn,
    TransferIn,
    TransferOut,
    TransferPageParameters,
    VoidIn,
    VoidingIn,
    encode_json,
    serialize_transfer,
)
from shop.web.dependencies import CurrentPrincipal, PrincipalReadSession
from shop.web.fields import Metadata

router = APIRouter(prefix="/transfers", tags=["transfers"], route_class=StrictJSONRoute)

_METADATA: Final = TypeAdapter(Metadata)
_METADATA_PARAMETER: Final = {
    "name": "metadata",
    "in": "query",
    "required": False,
    "description": "A name and value of the metadata: `metadata[region]=north`. May be repeated with other names: a "
    "transfer must match all of them",
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
    dependencies=[POST_TRANSFERS],
)
@direct
async def create_transfer(
    body: TransferIn, ledger: CurrentLedger, principal: CurrentPrincipal, idempotency_key: RequiredIdempotencyKey
) -> Response:
    """Post a transfer, or hold its amount.

    After any failure the request can be sent again with the same key. It is executed once. A retry returns the first
    response with `Idempotency-Replayed: true`. The same key with another body is refused.

    With `pending_seconds` the amount is only held. `POST /transfers/{transfer_id}/post` posts it, and `…/void` releases
    it. The hold expires after `pending_seconds`.

    A customer transfers only from their own accounts.
    """
    result = await ledger.submit(build_request(body, {}, principal, key=idempotency_key))
    return _build_response(result, principal)


@router.post(
    "/linked",
    status_code=HTTPStatus.CREATED,
    response_model=LinkedOut,
    responses=_REFUSALS | describe_problems(HTTPStatus.NOT_FOUND),
    dependencies=[POST_TRANSFERS],
)
async def create_linked_transfers(
    body: LinkedIn,
    db: PrincipalReadSession,
    ledger: CurrentLedger,
    principal: CurrentPrincipal,
    idempotency_key: RequiredIdempotencyKey,
) -> Response:
    """Post 2 to 100 transfers under one key, all or none.

    Each transfer is decided on the balances after the transfers before it. So a transfer can move money that the
    previous one has credited. If a transfer is refused, the response has its `index`, from 0.

    An element is a transfer, or the id of a transfer to post (`posts`), void (`voids`) or reverse (`reverses`).
    """
    named_ids = {id_ for each in body.transfers if (id_ := get_named_id(each)) is not None}
    transfers_by_id = await find_named_transfers(db, named_ids, customer=OWN_TRANSFERS.find_customer(principal))
    await db.commit()  # releases the connection: the ledger has its own transaction
    requests = [build_request(each, transfers_by_id, principal, key=None) for each in body.transfers]
    results = await ledger.submit_many(as_linked_chain(idempotency_key, requests))
    for index, result in enumerate(results):
        if result.refusal is not None and result.refusal is not Refusal.LINKED_TRANSFER_FAILED:
            return refusal_response(result.refusal, replayed=result.replayed, index=index)
    content = {"transfers": [serialize_transfer(OWN_BALANCES.hide(result.unwrap(), principal)) for result in results]}
    return _json_response(HTTPStatus.CREATED, content, replayed=results[0].replayed)


@router.post(
    "/batch",
    response_class=StreamingResponse,
    responses={
        200: {"content": {NDJSON: {"schema": get_schema_ref(BatchLineOut)}}},
        **describe_problems(HTTPStatus.BAD_REQUEST),
    },
    openapi_extra=describe_rows_body(BatchLineIn, array=False),
    dependencies=[POST_TRANSFERS],
)
async def create_transfers(
    request: Request, db: PrincipalReadSession, ledger: CurrentLedger, principal: CurrentPrincipal
) -> StreamingResponse:
    """Post many transfers. The body and the response are NDJSON of any length.

    Each line of the body has a transfer and its own idempotency key. The response has a line for each of them, in the
    same order.

    A line may also have the id of a transfer to post (`posts`), void (`voids`) or reverse (`reverses`). A line that
    names an unknown transfer is `invalid`.

    The lines are decided in order. Every 500 lines, and the lines linked to them, are one transaction. A refused line
    affects only the lines that are linked with it. The response starts when the last line has been decided. If the
    connection breaks before that, some lines may have been posted. It is safe to send all lines again.
    """
    return await post_transfer_lines(request, db, ledger, principal)


async def get_metadata_filter(request: Request) -> dict[str, str]:
    """The filter from the parameters `metadata[name]=value`. A name that occurs twice is an error."""
    values_by_name: dict[str, list[str]] = {}
    for parameter, value in request.query_params.multi_items():
        if match := METADATA_PARAMETER.fullmatch(parameter):
            values_by_name.setdefault(match[1], []).append(value)
    # A repeated name has a list as its value. Validation rejects it, because the value must be a string.
    metadata = {name: values[0] if len(values) == 1 else values for name, values in values_by_name.items()}
    try:
        return _METADATA.validate_python(metadata)
    except ValidationError as error:
        raise RequestValidationError(
            [{**each, "loc": ("query", "metadata", *each["loc"])} for each in error.errors(include_url=False)]
        ) from error


@router.get(
    "",
    response_model=PageOut[TransferOut],
    openapi_extra={"parameters": [_METADATA_PARAMETER]},
    dependencies=[READ_TRANSFERS],
)
@direct
async def list_transfers(
    parameters: Annotated[TransferPageParameters, Query()],
    metadata: Annotated[dict[str, str], Depends(get_metadata_filter)],
    db: PrincipalReadSession,
    principal: CurrentPrincipal,
) -> Response:
    """List transfers in any state, in the order of their ids.

    A transfer keeps its place in the list when it is posted or voided. A page of a list by account reads all entries of
    the account, or the entries between `created_from` and `created_before`. `GET /accounts/{account_id}/entries` reads
    only the entries of the page.

    A customer's list has only the transfers from or to their own accounts. A page of it reads all entries of these
    accounts, or of those that the parameters name.
    """
    page_arguments = parameters.page_arguments
    filters = parameters.model_dump(exclude={*page_arguments})
    query = select_transfers(
        scope=principal.key, customer=OWN_TRANSFERS.find_customer(principal), metadata=metadata, **filters
    )
    page = await paginate(db, query, **page_arguments)
    items = [serialize_transfer(OWN_BALANCES.hide(transfer.as_record(), principal)) for transfer in page.items]
    return _json_response(HTTPStatus.OK, {"items": items, "next": page.next, "previous": page.previous})


@router.get("/{transfer_id}", response_model=TransferOut, dependencies=[READ_TRANSFERS])
@direct
async def get_transfer(transfer_id: UUID, db: PrincipalReadSession, principal: CurrentPrincipal) -> Response:
    """Return a transfer with its current state: pending, posted or voided."""
    transfer = await find_transfer(db, transfer_id, customer=OWN_TRANSFERS.find_customer(principal))
    return _json_response(HTTPStatus.OK, serialize_transfer(OWN_BALANCES.hide(transfer, principal)))


# The options of the routes that post, void or reverse a transfer.
_FOLLOW_UP: Final[dict[str, Any]] = {
    "status_code": HTTPStatus.CREATED,
    "response_model": TransferOut,
    "responses": _REFUSALS,
    "dependencies": [POST_TRANSFERS],
}


@router.post("/{transfer_id}/post", **_FOLLOW_UP)
async def post_pending_transfer(
    *,
    transfer_id: UUID,
    db: PrincipalReadSession,
    ledger: CurrentLedger,
    principal: CurrentPrincipal,
    body: Annotated[PostIn, Body(default_factory=PostIn)],
    idempotency_key: RequiredIdempotencyKey,
) -> Response:
    """Post a pending transfer: the `amount` of the body, or the whole hold. The rest of the hold is released.

    A customer posts only holds to their own accounts.
    """
    content = PostingIn(posts=transfer_id, amount=body.amount)
    return await _follow_up(content, db, ledger, principal, idempotency_key)


@router.post("/{transfer_id}/void", **_FOLLOW_UP)
async def void_pending_transfer(
    *,
    transfer_id: UUID,
    db: PrincipalReadSession,
    ledger: CurrentLedger,
    principal: CurrentPrincipal,
    body: Annotated[VoidIn, Body(default_factory=VoidIn)],
    idempotency_key: RequiredIdempotencyKey,
) -> Response:
    """Void a pending transfer. The whole hold is released.

    A customer voids only holds to their own accounts: a hold guarantees a payment to the payee.
    """
    return await _follow_up(VoidingIn(voids=transfer_id), db, ledger, principal, idempotency_key)


@router.post("/{transfer_id}/reverse", **_FOLLOW_UP)
async def reverse_transfer(
    *,
    transfer_id: UUID,
    db: PrincipalReadSession,
    ledger: CurrentLedger,
    principal: CurrentPrincipal,
    body: Annotated[ReverseIn, Body(default_factory=ReverseIn)],
    idempotency_key: RequiredIdempotencyKey,
) -> Response:
    """Reverse a transfer: the `amount` of the body, or all that isn't reversed yet.

    The reversals of a transfer never return more than its amount. A reversal never takes effect before the transfer
    that it reverses.

    A customer reverses only transfers to their own accounts, because the money returns from there.
    """
    content = ReversalIn(reverses=transfer_id, **body.model_dump())
    return await _follow_up(content, db, ledger, principal, idempotency_key)


async def _follow_up(
    body: PostingIn | VoidingIn | ReversalIn, db: AsyncSession, ledger: Ledger, principal: Principal, key: str
) -> Response:
    """Post, void or reverse a transfer. Raises `NotFound`, also for a transfer that the customer may not see."""
    id_ = get_named_id(body)
    assert id_ is not None
    transfers_by_id = await find_named_transfers(db, [id_], customer=OWN_TRANSFERS.find_customer(principal))
    await db.commit()  # releases the connection: the ledger has its own transaction
    return _build_response(await ledger.submit(build_request(body, transfers_by_id, principal, key=key)), principal)


def _build_response(result: TransferResult, principal: Principal) -> Response:
    if result.refusal is not None:
        return refusal_response(result.refusal, replayed=result.replayed)
    transfer = OWN_BALANCES.hide(result.unwrap(), principal)
    return _json_response(
        HTTPStatus.CREATED, serialize_transfer(transfer), location=f"/transfers/{transfer.id}", replayed=result.replayed
    )


def _json_response(
    status: HTTPStatus, content: dict[str, Any], *, location: str | None = None, replayed: bool = False
) -> Response:
    headers = {} if location is None else {"Location": location}
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    return Response(encode_json(content), status, headers, "application/json")
