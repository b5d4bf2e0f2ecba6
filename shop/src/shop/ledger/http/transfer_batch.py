"""Post the transfers of an NDJSON body of any length, with constant memory use."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any, Final
from uuid import UUID

from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import NotFound
from howdah.fastapi import InvalidJSON, InvalidLine, answer_batches, parse_json, parse_line, read_lines
from shop.identity.principals import Principal
from shop.ledger.group_commit import Ledger
from shop.ledger.http.rules import OWN_BALANCES, OWN_TRANSFERS
from shop.ledger.http.transfer_bodies import build_request, get_named_id
from shop.ledger.requests import MAX_LINKED, NamedTransfer, TransferRequest, TransferResult
from shop.ledger.service import find_named_transfers
from shop.ledger.transfer_schemas import AnyLineIn, BatchLineIn, TransferLineIn, serialize_transfer

_LINKED_LINE_INVALID: Final = "linked: another line of this chain is invalid"
_LINKED_TRANSFER_UNKNOWN: Final = "linked: another line of this chain names a transfer that doesn't exist"
_CHAIN_UNFINISHED: Final = "linked: this is the last line, so there is no line to link it with"
_CHAIN_TOO_LONG: Final = f"linked: at most {MAX_LINKED} transfers can be linked"

# The fields of `BatchLineOut`, in the order in which they are written.
_EMPTY_RESULT: Final = {"outcome": "", "transfer": None, "refusal": None, "replayed": False, "detail": None}

BATCH_LINES: Final = 500

_ParsedChunk = dict[int, AnyLineIn | str]
"""By line number: the line, or the reason why it is invalid."""
_Chunk = dict[int, TransferRequest | str]
"""By line number: the request to the ledger, or the reason why the line is invalid."""


async def post_transfer_lines(
    request: Request, db: AsyncSession, ledger: Ledger, principal: Principal
) -> StreamingResponse:
    """Post the lines as they arrive, and answer with a line for each. `db` is only used to read."""
    batches = _read_batches(request, db, principal)
    serialize = partial(_serialize_result, principal=principal)
    return await answer_batches(batches, ledger.submit_many, serialize=serialize, invalid=_describe_invalid_line)


async def _read_batches(
    request: Request, db: AsyncSession, principal: Principal
) -> AsyncIterator[dict[int, TransferRequest | InvalidLine]]:
    async for chunk in _split_into_chunks(read_lines(request)):
        requests = await _build_requests(chunk, db, principal)
        yield {
            number: InvalidLine(number, each) if isinstance(each, str) else each for number, each in requests.items()
        }


async def _split_into_chunks(lines: AsyncIterator[tuple[int, bytes | None]]) -> AsyncIterator[_ParsedChunk]:
    """Parse the lines, and split them into chunks of `BATCH_LINES`. A chunk is longer if it would end inside a chain.

    If one line of a chain is invalid, all lines of the chain are invalid. `chain` has the line numbers of the current
    chain. When one of its lines is invalid, `chain` is emptied, and `reason` is set until the chain ends.
    """
    chunk: _ParsedChunk = {}
    chain: list[int] = []
    reason = ""
    async for number, line in lines:
        parsed, is_linked = _parse_line(number, line, in_chain=bool(chain or reason))
        is_invalid = isinstance(parsed, str)
        chunk[number] = reason if reason and not is_invalid else parsed
        chain.append(number)
        if (is_invalid or reason) and (is_linked or len(chain) > 1):
            reason = reason or _LINKED_LINE_INVALID
        elif len(chain) > MAX_LINKED:
            reason = _CHAIN_TOO_LONG
        if reason:
            _invalidate(chunk, chain, reason)
            chain = []
        if not is_linked:
            chain, reason = [], ""
        if len(chunk) >= BATCH_LINES and not chain:
            yield chunk
            chunk = {}
    _invalidate(chunk, chain, _CHAIN_UNFINISHED)
    if chunk:
        yield chunk


async def _build_requests(chunk: _ParsedChunk, db: AsyncSession, principal: Principal) -> _Chunk:
    """Convert the lines to requests to the ledger. One statement reads all transfers that the lines name.

    A transfer that the principal may not see is treated like one that doesn't exist. If a line of a chain names such a
    transfer, no line of the chain is posted.
    """
    transfers_by_id: dict[UUID, NamedTransfer] = {}
    naming_lines = [line for line in chunk.values() if not isinstance(line, (str, TransferLineIn))]
    ids = {id_ for line in naming_lines if (id_ := get_named_id(line)) is not None}
    if ids:
        transfers_by_id = await find_named_transfers(db, ids, customer=OWN_TRANSFERS.find_customer(principal))
        await db.commit()  # releases the connection while other lines are posted
    requests: _Chunk = {}
    chain: list[int] = []
    has_unknown = False
    for number, line in chunk.items():
        if isinstance(line, str):  # `_split_into_chunks` has marked the whole chain
            requests[number] = line
            continue
        chain.append(number)
        try:
            request = build_request(line, transfers_by_id, principal, key=line.idempotency_key)
            requests[number] = request._replace(linked=True) if line.linked else request
        except NotFound as error:
            requests[number] = str(error)
            has_unknown = True
        if not line.linked:
            if has_unknown:
                _invalidate(requests, chain, _LINKED_TRANSFER_UNKNOWN)
            chain, has_unknown = [], False
    return requests


def _parse_line(number: int, line: bytes | None, *, in_chain: bool) -> tuple[AnyLineIn | str, bool]:
    """The line, or the reason why it is invalid, and whether it is linked to the next line.

    An invalid line that may be linked is treated as linked, so that its chain is rejected as a whole. A line that is
    None was too long.
    """
    try:
        body = _validate_line(number, line)
    except InvalidLine as error:
        return error.reason, in_chain if line is None else _may_be_linked(line, in_chain=in_chain)
    return body, body.linked


def _validate_line(number: int, line: bytes | None) -> AnyLineIn:
    if line is not None:
        with suppress(InvalidJSON, ValidationError):
            return TransferLineIn.model_validate(parse_json(line))  # valid for most lines, and three times as fast
    return parse_line(number, line, BatchLineIn).root


def _may_be_linked(line: bytes, *, in_chain: bool) -> bool:
    """Whether the client may have meant to link an invalid line to the next one.

    If that is unclear, the result is true: then the next line isn't posted either, so no chain is posted in part.
    """
    try:
        content = json.loads(line, object_pairs_hook=tuple)  # a dict would drop repeated names
    except (ValueError, RecursionError):
        return in_chain or b"linked" in line
    if not isinstance(content, tuple):
        return in_chain
    return any(name == "linked" and value is not False for name, value in content)


def _invalidate(chunk: _ParsedChunk | _Chunk, chain: list[int], reason: str) -> None:
    """Mark the lines of the chain as invalid for this reason. A line that is already invalid keeps its own reason."""
    for number in chain:
        if not isinstance(chunk[number], str):
            chunk[number] = reason


def _describe_invalid_line(reason: str) -> dict[str, Any]:
    return {**_EMPTY_RESULT, "outcome": "invalid", "detail": reason}


def _serialize_result(result: TransferResult, *, principal: Principal) -> dict[str, Any]:
    if result.refusal is not None:
        return {**_EMPTY_RESULT, "outcome": "refused", "refusal": result.refusal, "replayed": result.replayed}
    transfer = OWN_BALANCES.hide(result.unwrap(), principal)
    members = {"outcome": transfer.state, "transfer": serialize_transfer(transfer), "replayed": result.replayed}
    return {**_EMPTY_RESULT, **members}
