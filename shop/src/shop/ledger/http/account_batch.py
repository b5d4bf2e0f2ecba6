"""Open many accounts: NDJSON in, NDJSON out, at constant memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import IO, Any, Final

from pydantic import ValidationError

from howdah import Database, run_transaction
from howdah.fastapi import InvalidJSON, parse_json
from shop.ledger.http.account_schemas import AccountIn, AccountLineIn, AccountOut
from shop.ledger.http.transfer_schemas import encode_json
from shop.ledger.opening import OpeningRequest, OpeningResult, open_accounts
from shop.web.batches import BATCH_LINES, LINES_BETWEEN_OTHERS, answered_in_parts
from shop.web.lines import TOO_LONG, first_fault

_NOTHING: Final = {"outcome": "", "account": None, "refusal": None, "replayed": False, "detail": None}

_Lines = dict[int, OpeningRequest | str]
"""By line number: the request, or what is wrong with the line."""


async def open_account_lines(
    lines: AsyncIterator[tuple[int, bytes | None]], database: Database, caller: str
) -> AsyncIterator[bytes]:
    """Open the accounts of the lines as they arrive, and return the responses."""

    async def carry_out(part: _Lines) -> list[OpeningResult]:
        requests = [each for each in part.values() if not isinstance(each, str)]
        if not requests:
            return []
        return await run_transaction(database, lambda session: open_accounts(session, requests))

    return await answered_in_parts(_parts(lines, caller), carry_out, _write_answers)


async def _parts(lines: AsyncIterator[tuple[int, bytes | None]], caller: str) -> AsyncIterator[_Lines]:
    part: _Lines = {}
    async for number, line in lines:
        if number % LINES_BETWEEN_OTHERS == 0:
            await asyncio.sleep(0)
        part[number] = _read(line, caller)
        if len(part) >= BATCH_LINES:
            yield part
            part = {}
    if part:
        yield part


def _read(line: bytes | None, caller: str) -> OpeningRequest | str:
    if line is None:
        return TOO_LONG
    try:
        body = AccountLineIn.model_validate(parse_json(line))
    except (InvalidJSON, ValidationError) as error:
        return first_fault(error)
    account = body.model_dump(exclude={"idempotency_key"}, exclude_unset=True)
    return OpeningRequest(AccountIn.model_construct(**account), body.idempotency_key, caller)


def _write_answers(lines: _Lines, results: list[OpeningResult], answers: IO[bytes]) -> None:
    remaining = iter(results)
    for number, request in lines.items():
        if isinstance(request, str):
            content: dict[str, Any] = {"outcome": "invalid", "detail": request}
        else:
            content = _answer(next(remaining))
        answers.write(encode_json({"line": number, **_NOTHING, **content}) + b"\n")


def _answer(result: OpeningResult) -> dict[str, Any]:
    if result.refusal is not None:
        return {"outcome": "refused", "refusal": result.refusal, "detail": result.refusal.explanation}
    account = AccountOut.model_validate(result.unwrap()).model_dump(by_alias=True)
    return {"outcome": "opened", "account": account, "replayed": result.replayed}
