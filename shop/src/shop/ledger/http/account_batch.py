"""Open the accounts of an NDJSON body of any length, with constant memory use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final

from pydantic import ValidationError

from howdah import Database, run_transaction
from howdah.fastapi import InvalidJSON, parse_json
from shop.ledger.account_schemas import AccountIn, AccountLineIn, AccountOut
from shop.ledger.http.result_lines import write_result_lines
from shop.ledger.opening import OpeningRequest, OpeningResult, open_accounts
from shop.web.batches import BATCH_LINES, LINES_BETWEEN_PAUSES, process_in_parts
from shop.web.lines import TOO_LONG, describe_first_error

# The fields of `AccountLineOut`, in the order in which they are written.
_EMPTY_RESULT: Final = {"outcome": "", "account": None, "refusal": None, "replayed": False, "detail": None}

_Chunk = dict[int, OpeningRequest | str]
"""By line number: the request, or the reason why the line is invalid."""


async def open_account_lines(
    lines: AsyncIterator[tuple[int, bytes | None]], database: Database, caller: str
) -> AsyncIterator[bytes]:
    """Open the accounts of the lines as they arrive, and return the lines of the response."""

    async def open_chunk(chunk: _Chunk) -> list[OpeningResult]:
        requests = [request for request in chunk.values() if not isinstance(request, str)]
        if not requests:
            return []
        return await run_transaction(database, lambda session: open_accounts(session, requests))

    write = partial(write_result_lines, empty_result=_EMPTY_RESULT, serialize=_serialize_result)
    return await process_in_parts(_split_into_chunks(lines, caller), open_chunk, write)


async def _split_into_chunks(lines: AsyncIterator[tuple[int, bytes | None]], caller: str) -> AsyncIterator[_Chunk]:
    """The parsed lines, `BATCH_LINES` at a time. Each chunk is one transaction."""
    chunk: _Chunk = {}
    async for number, line in lines:
        if number % LINES_BETWEEN_PAUSES == 0:
            await asyncio.sleep(0)  # parsing takes time: let other tasks run
        chunk[number] = _parse_line(line, caller)
        if len(chunk) >= BATCH_LINES:
            yield chunk
            chunk = {}
    if chunk:
        yield chunk


def _parse_line(line: bytes | None, caller: str) -> OpeningRequest | str:
    """The request, or the reason why the line is invalid. A line that is None was too long."""
    if line is None:
        return TOO_LONG
    try:
        body = AccountLineIn.model_validate(parse_json(line))
    except (InvalidJSON, ValidationError) as error:
        return describe_first_error(error)
    # without defaults, because `build_account_values` must know which fields the client has sent
    account = body.model_dump(exclude={"idempotency_key"}, exclude_unset=True)
    return OpeningRequest(AccountIn.model_construct(**account), body.idempotency_key, caller)


def _serialize_result(result: OpeningResult) -> dict[str, Any]:
    if result.refusal is not None:
        return {"outcome": "refused", "refusal": result.refusal, "detail": result.refusal.explanation}
    account = AccountOut.model_validate(result.unwrap()).model_dump(by_alias=True)
    return {"outcome": "opened", "account": account, "replayed": result.replayed}
