"""Transfers by the line: NDJSON in, NDJSON out, at constant memory."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from typing import IO, Any, Final

from pydantic import ValidationError

from howdah.fastapi import InvalidJSON, parse_json
from shop.transfers.ledger import Ledger
from shop.transfers.requests import MAX_LINKED, TransferRequest, TransferResult
from shop.transfers.schemas import BatchLineIn, rendered, shown
from shop.web.lines import TOO_LONG, first_fault

BATCH_LINES: Final = 500
_BETWEEN_OTHERS: Final = 50
"""So many lines are read before other tasks have their turn, those that post the lines before among them."""
_SPOOL_BYTES: Final = 1_048_576
_PART_BYTES: Final = 65_536
_SPOILED: Final = "linked: a line that it was to be made together with is invalid"
_OPEN_END: Final = "linked: there is no next line that it could be made together with"
_TOO_MANY: Final = f"linked: at most {MAX_LINKED} transfers are made together"

_NOTHING: Final = {"outcome": "", "transfer": None, "refusal": None, "replayed": False, "detail": None}

_Lines = dict[int, TransferRequest | str]
"""By line number: what it asks for, or what is wrong with it."""


async def posted_lines(
    lines: AsyncIterator[tuple[int, bytes | None]], ledger: Ledger, caller: str
) -> AsyncIterator[bytes]:
    """Post the lines as they come, and return the answers. One part is posted while the next one is read; the answers
    wait on the disk, since a client may send all before it reads anything."""
    answers = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115  # closed when it has been sent
    posting: asyncio.Task[list[TransferResult]] | None = None
    posted: list[TransferResult] = []
    before: _Lines = {}
    under_way: _Lines = {}
    try:
        async for part in _parts(lines, caller):
            _answer_lines(before, posted, answers)  # while those after them are being posted
            before, posted = {}, []
            if posting is not None:
                before, posted = under_way, await posting
            under_way = part
            posting = asyncio.create_task(
                ledger.submit_many([asked for asked in part.values() if not isinstance(asked, str)])
            )
        _answer_lines(before, posted, answers)
        if posting is not None:
            _answer_lines(under_way, await posting, answers)
    except BaseException:
        if posting is not None:
            await asyncio.wait([posting])
        answers.close()
        raise
    answers.seek(0)
    return _sent(answers)


async def _parts(lines: AsyncIterator[tuple[int, bytes | None]], caller: str) -> AsyncIterator[_Lines]:
    """The lines, about 500 at a time; those together that are linked. If one of these is wrong, all are."""
    part: _Lines = {}
    chain: list[int] = []
    wrong = ""
    async for number, line in lines:
        if number % _BETWEEN_OTHERS == 0:
            await asyncio.sleep(0)
        asked, is_linked = _read(line, caller, in_chain=bool(chain or wrong))
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


def _read(line: bytes | None, caller: str, *, in_chain: bool) -> tuple[TransferRequest | str, bool]:
    """What it asks for or what is wrong with it, and whether it is linked to the next; one in a chain that can't be
    read is taken for linked, since the rest without it may be what nobody meant."""
    if line is None:
        return TOO_LONG, in_chain
    try:
        body = BatchLineIn.model_validate(parse_json(line))
    except (InvalidJSON, ValidationError) as error:
        return first_fault(error), _may_be_linked(line, in_chain=in_chain)
    request = TransferRequest(
        body.from_account_id,
        body.to_account_id,
        body.amount,
        description=body.description,
        key=body.idempotency_key,
        scope=caller,
        metadata=body.metadata or None,
        effective_at=body.effective_at,
        pending_seconds=body.pending_seconds,
        linked=body.linked,
    )
    return request, body.linked


def _may_be_linked(line: bytes, *, in_chain: bool) -> bool:
    """Whether an invalid line may have been meant to be linked to the next one.

    If in doubt it is linked. Then the next line isn't posted either, so that no chain is posted in part.
    """
    try:
        content = json.loads(line, object_pairs_hook=tuple)  # with all of several equal names
    except (ValueError, RecursionError):
        return in_chain or b"linked" in line
    if not isinstance(content, tuple):
        return in_chain
    return any(name == "linked" and value is not False for name, value in content)


def _spoil(part: _Lines, chain: list[int], reason: str) -> None:
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
        answers.write(rendered({"line": number, **_NOTHING, **content}) + b"\n")


def _answer(result: TransferResult) -> dict[str, Any]:
    if result.refusal is not None:
        return {"outcome": "refused", "refusal": result.refusal, "replayed": result.replayed}
    transfer = result.unwrap()
    return {"outcome": transfer.state, "transfer": shown(transfer), "replayed": result.replayed}


async def _sent(answers: IO[bytes]) -> AsyncIterator[bytes]:
    try:
        while part := await asyncio.to_thread(answers.read, _PART_BYTES):
            yield part
    finally:
        answers.close()
