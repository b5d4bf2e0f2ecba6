"""Problem responses for the ledger's errors."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request, Response

from howdah.fastapi import problem_response
from shop.ledger.accounts import AccountUnchangeable
from shop.ledger.lock_waits import KeyInUse
from shop.ledger.requests import Refusal, TransferRefused

# 409 for a refusal that depends on the state of the ledger, 422 for a request that can never be posted.
REFUSAL_STATUS: Final[dict[Refusal, HTTPStatus]] = {
    Refusal.AMOUNT_OUT_OF_RANGE: HTTPStatus.UNPROCESSABLE_ENTITY,
    Refusal.SAME_ACCOUNT: HTTPStatus.UNPROCESSABLE_ENTITY,
    Refusal.UNKNOWN_ACCOUNT: HTTPStatus.UNPROCESSABLE_ENTITY,
    Refusal.CURRENCY_MISMATCH: HTTPStatus.UNPROCESSABLE_ENTITY,
    Refusal.KEY_REUSED: HTTPStatus.UNPROCESSABLE_ENTITY,
    Refusal.INSUFFICIENT_FUNDS: HTTPStatus.CONFLICT,
    Refusal.BALANCE_OUT_OF_RANGE: HTTPStatus.CONFLICT,
    Refusal.LIMIT_EXCEEDED: HTTPStatus.CONFLICT,
    Refusal.ACCOUNT_FROZEN: HTTPStatus.CONFLICT,
    Refusal.ACCOUNT_CLOSED: HTTPStatus.CONFLICT,
    Refusal.EXCEEDS_REVERSIBLE_AMOUNT: HTTPStatus.CONFLICT,
    Refusal.REVERSAL_MISMATCH: HTTPStatus.CONFLICT,
    Refusal.ALREADY_REVERSED: HTTPStatus.CONFLICT,
    Refusal.NOT_POSTED: HTTPStatus.CONFLICT,
    Refusal.REVERSAL_BEFORE_ORIGINAL: HTTPStatus.CONFLICT,
    Refusal.UNKNOWN_PENDING: HTTPStatus.CONFLICT,
    Refusal.ALREADY_POSTED: HTTPStatus.CONFLICT,
    Refusal.ALREADY_VOIDED: HTTPStatus.CONFLICT,
    Refusal.PENDING_EXPIRED: HTTPStatus.CONFLICT,
    Refusal.EXCEEDS_HELD_AMOUNT: HTTPStatus.CONFLICT,
    Refusal.NOT_PAYEE: HTTPStatus.CONFLICT,
    Refusal.COUNTERPARTY_UNAVAILABLE: HTTPStatus.CONFLICT,
    Refusal.LINKED_TRANSFER_FAILED: HTTPStatus.CONFLICT,
}


def refusal_response(code: Refusal, *, replayed: bool = False, **members: Any) -> Response:
    """The response to a request that was refused. `members` extend the problem."""
    return problem_response(
        REFUSAL_STATUS[code],
        code.replace("_", "-"),
        detail=str(TransferRefused(code)),
        headers={"Idempotency-Replayed": "true"} if replayed else None,
        **members,
    )


def add_problem_handlers(app: FastAPI) -> None:
    """Register a handler for each error of the ledger."""

    @app.exception_handler(KeyInUse)
    async def handle_key_in_use(request: Request, error: KeyInUse) -> Response:
        return problem_response(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "key-in-use",
            detail="other requests are using the idempotency key: send the request again",
        )

    @app.exception_handler(AccountUnchangeable)
    async def handle_unchangeable_account(request: Request, error: AccountUnchangeable) -> Response:
        return problem_response(HTTPStatus.CONFLICT, "account-unchangeable", detail=str(error))
