"""Open the accounts of an NDJSON body of any length, with constant memory use."""

from __future__ import annotations

from typing import Any, Final

from fastapi import Request
from fastapi.responses import StreamingResponse

from howdah import Database, run_transaction
from howdah.fastapi import answer_lines
from shop.ledger.account_schemas import AccountIn, AccountLineIn, AccountOut
from shop.ledger.opening import OpeningRequest, OpeningResult, open_accounts

# The fields of `AccountLineOut`, in the order in which they are written.
_EMPTY_RESULT: Final = {"outcome": "", "account": None, "refusal": None, "replayed": False, "detail": None}


async def open_account_lines(request: Request, database: Database, caller: str) -> StreamingResponse:
    """Open the accounts of the lines as they arrive, and answer with a line for each. A batch is one transaction."""

    async def open_batch(lines: list[AccountLineIn]) -> list[OpeningResult]:
        requests = [_build_request(line, caller) for line in lines]
        return await run_transaction(database, lambda session: open_accounts(session, requests))

    return await answer_lines(
        request, AccountLineIn, open_batch, serialize=_serialize_result, invalid=_describe_invalid_line
    )


def _build_request(line: AccountLineIn, caller: str) -> OpeningRequest:
    # without defaults, because `build_account_values` must know which fields the client has sent
    account = line.model_dump(exclude={"idempotency_key"}, exclude_unset=True)
    return OpeningRequest(AccountIn.model_construct(**account), line.idempotency_key, caller)


def _describe_invalid_line(reason: str) -> dict[str, Any]:
    return {**_EMPTY_RESULT, "outcome": "invalid", "detail": reason}


def _serialize_result(result: OpeningResult) -> dict[str, Any]:
    if result.refusal is not None:
        refusal = result.refusal
        return {**_EMPTY_RESULT, "outcome": "refused", "refusal": refusal, "detail": refusal.explanation}
    account = AccountOut.model_validate(result.unwrap()).model_dump(by_alias=True)
    return {**_EMPTY_RESULT, "outcome": "opened", "account": account, "replayed": result.replayed}
