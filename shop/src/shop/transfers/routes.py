"""`/transfers`."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus
from typing import IO, Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Body, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import ValidationError

from howdah.fastapi import problem_response
from shop.transfers.models import Transfer
from shop.transfers.repository import PostedTransfer, TransferRepository
from shop.transfers.schemas import BatchLineIn, BatchLineOut, Key, ReversalIn, TransferIn, TransferOut
from shop.transfers.service import Ledger, TransferRequest, TransferResult, reversal_of
from shop.web.dependencies import CurrentLedger, DbSession
from shop.web.errors import problems, refusal_response
from shop.web.lines import NDJSON, TOO_LONG, first_fault, ndjson_lines

router = APIRouter(prefix="/transfers", tags=["transfers"])

BATCH_LINES: Final = 500
_SPOOL_BYTES: Final = 1_048_576
_PART_BYTES: Final = 65_536

REFUSALS: Final = (HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY)


@router.post(
    "",
    status_code=HTTPStatus.CREATED,
    response_model=TransferOut,
    responses=problems(HTTPStatus.BAD_REQUEST, *REFUSALS),
)
async def create_transfer(
    body: TransferIn,
    ledger: CurrentLedger,
    response: Response,
    idempotency_key: Annotated[Key | None, Header()] = None,
) -> PostedTransfer | Response:
    """Move money. A request may be sent again under its key after any failure: it is made once, and answered alike,
    with `Idempotency-Replayed: true`. The same key with another body is refused."""
    if idempotency_key is None:
        return _key_missing()
    result = await ledger.submit(TransferRequest(**body.model_dump(), key=idempotency_key))
    return _answer(result, response)


@router.post(
    "/batch",
    response_class=StreamingResponse,
    responses={
        200: {"content": {NDJSON: {"schema": {"$ref": "#/components/schemas/BatchLineOut"}}}},
        **problems(HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {NDJSON: {"schema": {"$ref": "#/components/schemas/BatchLineIn"}}},
        }
    },
)
async def create_transfers(request: Request, ledger: CurrentLedger) -> StreamingResponse:
    """NDJSON in, NDJSON out, of any length: a transfer and its own idempotency key a line, answered in order.

    The lines are posted 500 in a transaction, and each is decided alone. The answer starts when the last line has been
    posted; a connection that breaks before leaves some posted, and sending all again is safe.
    """
    answers = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115  # closed when it has been sent
    try:
        waiting: list[tuple[int, bytes | None]] = []
        async for line in ndjson_lines(request):
            waiting.append(line)
            if len(waiting) == BATCH_LINES:
                await _post_lines(ledger, waiting, answers)
                waiting = []
        await _post_lines(ledger, waiting, answers)
    except BaseException:
        answers.close()
        raise
    answers.seek(0)
    return StreamingResponse(_sent(answers), media_type=NDJSON)


@router.get("/{transfer_id}", response_model=TransferOut, responses=problems(HTTPStatus.NOT_FOUND))
async def get_transfer(transfer_id: UUID, db: DbSession) -> Transfer:
    return await TransferRepository(db).get_one(transfer_id)


@router.post(
    "/{transfer_id}/reverse",
    status_code=HTTPStatus.CREATED,
    response_model=TransferOut,
    responses=problems(HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, *REFUSALS),
)
async def reverse_transfer(
    *,
    transfer_id: UUID,
    db: DbSession,
    ledger: CurrentLedger,
    response: Response,
    body: Annotated[ReversalIn, Body(default_factory=ReversalIn)],
    idempotency_key: Annotated[Key | None, Header()] = None,
) -> PostedTransfer | Response:
    """Take a transfer back: the amount that the body names, or all that is left of it. Several reversals never take
    back more than there was."""
    if idempotency_key is None and body.amount is not None:
        return _key_missing()  # sent twice, it would be taken back twice
    request = await reversal_of(db, transfer_id, amount=body.amount, key=idempotency_key)
    await db.commit()  # only read; the ledger has a transaction of its own
    return _answer(await ledger.submit(request), response)


def _key_missing() -> Response:
    return problem_response(
        HTTPStatus.BAD_REQUEST,
        "idempotency-key-missing",
        detail="a transfer needs an Idempotency-Key header, so that it can be sent again safely",
    )


def _answer(result: TransferResult, response: Response) -> PostedTransfer | Response:
    if result.refusal is not None:
        return refusal_response(result.refusal, replayed=result.replayed)
    transfer = result.unwrap()
    response.headers["Location"] = f"/transfers/{transfer.id}"
    if result.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return transfer


async def _post_lines(ledger: Ledger, lines: Sequence[tuple[int, bytes | None]], answers: IO[bytes]) -> None:
    answered: dict[int, BatchLineOut] = {}
    requests: dict[int, TransferRequest] = {}
    for number, line in lines:
        if line is None:
            answered[number] = BatchLineOut(line=number, outcome="invalid", detail=TOO_LONG)
            continue
        try:
            values = BatchLineIn.model_validate_json(line).model_dump()
        except ValidationError as error:
            answered[number] = BatchLineOut(line=number, outcome="invalid", detail=first_fault(error))
        else:
            requests[number] = TransferRequest(key=values.pop("idempotency_key"), **values)
    results = await ledger.submit_many(list(requests.values())) if requests else []
    for number, result in zip(requests, results, strict=True):
        answered[number] = BatchLineOut(
            line=number,
            outcome="posted" if result.refusal is None else "refused",
            transfer=None if result.transfer is None else TransferOut.model_validate(result.transfer),
            refusal=result.refusal,
            replayed=result.replayed,
        )
    for number, _ in lines:
        answers.write(answered[number].model_dump_json().encode() + b"\n")


async def _sent(answers: IO[bytes]) -> AsyncIterator[bytes]:
    try:
        while part := await run_in_threadpool(answers.read, _PART_BYTES):
            yield part
    finally:
        answers.close()
