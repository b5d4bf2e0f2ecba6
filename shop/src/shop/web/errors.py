"""Shop's own errors as problem details, beside those that `howdah.fastapi` answers."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from howdah import DatabaseError
from howdah.fastapi import RETRY_AFTER_SECONDS, add_error_handlers, error_response, problem_response
from shop.ledger.accounts import AccountUnchangeable
from shop.ledger.requests import Refusal, TransferRefused
from shop.ledger.writing import KeyInUse
from shop.orders.service import OrderNotPayable

# What the state of the books forbids is a conflict; what could never be right is unprocessable.
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
    Refusal.LINKED_TRANSFER_FAILED: HTTPStatus.CONFLICT,
}

# Nobody reads it; it keeps a client that has gone apart from faults of the service in the log and the metrics.
_CLIENT_CLOSED_REQUEST: Final = 499


class RepeatedHeader(Exception):
    """A header that has one value was sent several times; nobody can tell which was meant."""


class PreconditionMissing(Exception):
    """A change must say, with `If-Match`, which version it is based on."""


class PreconditionFailed(Exception):
    """The row has moved on since the version that the change is based on."""


class UnsupportedMediaType(Exception):
    """The body must be one of `accepted`."""

    def __init__(self, *accepted: str) -> None:
        self.accepted = accepted
        super().__init__(f"the body must be {' or '.join(accepted)}, and its Content-Type say so")


class BadLine(ValueError):
    """A line of a stream that can't be read."""

    def __init__(self, line: int, reason: str) -> None:
        self.line = line
        super().__init__(f"line {line}: {reason}")


class LineRefused(Exception):
    """The database refused the row on this line of a stream."""

    def __init__(self, line: int, error: DatabaseError) -> None:
        self.line = line
        self.error = error
        super().__init__(f"line {line}: {error}")


def key_missing() -> Response:
    """The answer to a request that moves money and has no key."""
    return problem_response(
        HTTPStatus.BAD_REQUEST,
        "idempotency-key-missing",
        detail="what moves money needs an Idempotency-Key header, so that it can be sent again safely",
    )


def refusal_response(code: Refusal, *, replayed: bool = False, **members: Any) -> Response:
    """The answer to a transfer that was refused."""
    return problem_response(
        REFUSAL_STATUS[code],
        code.replace("_", "-"),
        detail=str(TransferRefused(code)),
        headers={"Idempotency-Replayed": "true"} if replayed else None,
        **members,
    )


def install(app: FastAPI) -> None:
    """Answer every error as problem details."""
    add_error_handlers(app)

    @app.exception_handler(TransferRefused)
    async def refused(request: Request, error: TransferRefused) -> Response:
        return refusal_response(error.code)

    @app.exception_handler(KeyInUse)
    async def in_use(request: Request, error: KeyInUse) -> Response:
        return problem_response(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "key-in-use",
            detail="other requests are using the idempotency key: send the request again",
            headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
        )

    @app.exception_handler(OrderNotPayable)
    async def not_payable(request: Request, error: OrderNotPayable) -> Response:
        return problem_response(HTTPStatus.CONFLICT, "order-not-payable", detail=str(error), order_status=error.status)

    @app.exception_handler(AccountUnchangeable)
    async def unchangeable(request: Request, error: AccountUnchangeable) -> Response:
        return problem_response(HTTPStatus.CONFLICT, "account-unchangeable", detail=str(error))

    @app.exception_handler(RepeatedHeader)
    async def repeated(request: Request, error: RepeatedHeader) -> Response:
        return problem_response(HTTPStatus.BAD_REQUEST, "repeated-header", detail=f"{error}: {error.__doc__}")

    @app.exception_handler(PreconditionMissing)
    async def missing(request: Request, error: PreconditionMissing) -> Response:
        return problem_response(HTTPStatus.PRECONDITION_REQUIRED, "precondition-required", detail=str(error.__doc__))

    @app.exception_handler(PreconditionFailed)
    async def failed(request: Request, error: PreconditionFailed) -> Response:
        return problem_response(HTTPStatus.PRECONDITION_FAILED, "precondition-failed", detail=str(error.__doc__))

    @app.exception_handler(UnsupportedMediaType)
    async def unsupported(request: Request, error: UnsupportedMediaType) -> Response:
        return problem_response(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            detail=str(error),
            headers={"Accept-Post": ", ".join(error.accepted)},
        )

    @app.exception_handler(BadLine)
    async def bad_line(request: Request, error: BadLine) -> Response:
        return problem_response(HTTPStatus.UNPROCESSABLE_ENTITY, "bad-line", detail=str(error), line=error.line)

    @app.exception_handler(LineRefused)
    async def line_refused(request: Request, refused: LineRefused) -> Response:
        return error_response(refused.error, line=refused.line)

    @app.exception_handler(ClientDisconnect)
    async def disconnected(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=_CLIENT_CLOSED_REQUEST)
