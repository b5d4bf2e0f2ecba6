"""Transfers by the line: NDJSON in, NDJSON out, at constant memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import IO, Any, Final
from uuid import UUID

from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import NotFound
from howdah.fastapi import InvalidJSON, parse_json
from shop.ledger.group_commit import Ledger
from shop.ledger.http.transfer_bodies import build_request, get_named_id
from shop.ledger.http.transfer_schemas import AnyLineIn, BatchLineIn, TransferLineIn, encode_json, serialize_transfer
from shop.ledger.requests import MAX_LINKED, NamedTransfer, TransferRequest, TransferResult
from shop.ledger.service import named_transfers
from shop.web.batches import BATCH_LINES, LINES_BETWEEN_OTHERS, answered_in_parts
from shop.web.lines import TOO_LONG, first_fault

_SPOILED: Final = "linked: a line that this one is linked with is invalid"
_OPEN_END: Final = "linked: there is no next line to link this one to"
_TOO_MANY: Final = f"linked: at most {MAX_LINKED} transfers can be linked"

_NOTHING: Final = {"outcome": "", "transfer": None, "refusal": None, "replayed": False, "detail": None}

_UNKNOWN: Final = "linked: a line that this one is linked with names a transfer that doesn't exist"

_Read = dict[int, AnyLineIn | str]
"""By line number: the line, or what is wrong with it."""
_Lines = dict[int, TransferRequest | str]
"""By line number: the request to the ledger, or what is wrong with the line."""


async def post_transfer_lines(
    lines: AsyncIterator[tuple[int, bytes | None]], db: AsyncSession, ledger: Ledger, caller: str
) -> AsyncIterator[bytes]:
    """Post the lines as they arrive, and return the responses. `db` is only read from."""

    def post(part: _Lines) -> Coroutine[Any, Any, list[TransferResult]]:
        return ledger.submit_many([asked for asked in part.values() if not isinstance(asked, str)])

    return await answered_in_parts(_requests(lines, db, caller), post, _answer_lines)


async def _requests(
    lines: AsyncIterator[tuple[int, bytes | None]], db: AsyncSession, caller: str
) -> AsyncIterator[_Lines]:
    async for part in _parts(lines):
        yield await _requested(part, db, caller)


async def _parts(lines: AsyncIterator[tuple[int, bytes | None]]) -> AsyncIterator[_Read]:
    """The lines, about 500 at a time; those together that are linked. If one of these is wrong, all are."""
    part: _Read = {}
    chain: list[int] = []
    wrong = ""
    async for number, line in lines:
        if number % LINES_BETWEEN_OTHERS == 0:
            await asyncio.sleep(0)
        asked, is_linked = _read(line, in_chain=bool(chain or wrong))
        if wrong and not isinstance(asked, str):
            asked = wrong
        part[number] = asked
        chain.append(number)
        if isinstance(asked, str) and (is_linked or len(chain) > 1):
            wrong = wrong or _SPOILED
        elif len(chain) > MAX_LINKED:
            wrong = _TOO_MANY
        if wrong:
            _spoil(part, chain, wrong)
            chain = []
        if not is_linked:
            chain, wrong = [], ""
        if len(part) >= BATCH_LINES and not chain:
            yield part
            part = {}
    _spoil(part, chain, _OPEN_END)
    if part:
        yield part


async def _requested(part: _Read, db: AsyncSession, caller: str) -> _Lines:
    """The lines' requests to the ledger. One statement looks up all transfers that the lines name.

    If a line of a chain names a transfer that doesn't exist, no line of the chain is posted."""
    named: dict[UUID, NamedTransfer] = {}
    naming = [line for line in part.values() if not isinstance(line, (str, TransferLineIn))]
    if ids := {id_ for line in naming if (id_ := get_named_id(line)) is not None}:
        named = await named_transfers(db, ids)
        await db.commit()  # gives the connection back while other lines are posted
    asked: _Lines = {}
    chain: list[int] = []
    has_unknown = False
    for number, line in part.items():
        if isinstance(line, str):  # then `_parts` has marked the whole chain
            asked[number] = line
            continue
        chain.append(number)
        try:
            request = build_request(line, named, key=line.idempotency_key, scope=caller)
            asked[number] = request._replace(linked=True) if line.linked else request
        except NotFound as unknown:
            asked[number] = str(unknown)
            has_unknown = True
        if not line.linked:
            if has_unknown:
                _spoil(asked, chain, _UNKNOWN)
            chain, has_unknown = [], False
    return asked


def _read(line: bytes | None, *, in_chain: bool) -> tuple[AnyLineIn | str, bool]:
    """The line or what is wrong with it, and whether it is linked to the next line.

    An invalid line in a chain is treated as linked, so that the chain is rejected as a whole."""
    if line is None:
        return TOO_LONG, in_chain
    try:
        body = _line_in(line)
    except (InvalidJSON, ValidationError) as error:
        return first_fault(error), _may_be_linked(line, in_chain=in_chain)
    return body, body.linked


def _line_in(line: bytes) -> AnyLineIn:
    content = parse_json(line)
    try:
        return TransferLineIn.model_validate(content)  # most lines are of this kind: it takes a third of the time
    except ValidationError:
        return BatchLineIn.model_validate(content).root


def _may_be_linked(line: bytes, *, in_chain: bool) -> bool:
    """Whether an invalid line may have been meant to be linked to the next one.

    In doubt it is treated as linked. Then the next line isn't posted either, so no chain is posted in part.
    """
    try:
        content = json.loads(line, object_pairs_hook=tuple)  # keeps all of several members with one name
    except (ValueError, RecursionError):
        return in_chain or b"linked" in line
    if not isinstance(content, tuple):
        return in_chain
    return any(name == "linked" and value is not False for name, value in content)


def _spoil(part: _Read | _Lines, chain: list[int], reason: str) -> None:
    """None of these is made; what was wrong with one by itself stays its reason."""
    for number in chain:
        if not isinstance(part[number], str):
            part[number] = reason


def _answer_lines(lines: _Lines, results: list[TransferResult], answers: IO[bytes]) -> None:
    left = iter(results)
    for number, asked in lines.items():
        if isinstance(asked, str):
            content: dict[str, Any] = {"outcome": "invalid", "detail": asked}
        else:
            content = _answer(next(left))
        answers.write(encode_json({"line": number, **_NOTHING, **content}) + b"\n")


def _answer(result: TransferResult) -> dict[str, Any]:
    if result.refusal is not None:
        return {"outcome": "refused", "refusal": result.refusal, "replayed": result.replayed}
    transfer = result.unwrap()
    return {"outcome": transfer.state, "transfer": serialize_transfer(transfer), "replayed": result.replayed}
