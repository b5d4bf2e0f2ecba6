"""Problem responses for the errors of sign-in."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request, Response

from howdah.fastapi import problem_response, retry_after
from shop.identity import errors

_STATUSES: Final[Mapping[type[errors.IdentityError], tuple[HTTPStatus, str]]] = {
    errors.SignInFailed: (HTTPStatus.UNAUTHORIZED, "sign-in-failed"),
    errors.CodeRequired: (HTTPStatus.UNAUTHORIZED, "code-required"),
    errors.EnrolmentRequired: (HTTPStatus.FORBIDDEN, "enrolment-required"),
    errors.InvalidRefreshToken: (HTTPStatus.UNAUTHORIZED, "invalid-refresh-token"),
    errors.InvalidToken: (HTTPStatus.BAD_REQUEST, "invalid-token"),
    errors.PasswordRejected: (HTTPStatus.UNPROCESSABLE_ENTITY, "password-rejected"),
    errors.TooManyAttempts: (HTTPStatus.TOO_MANY_REQUESTS, "too-many-attempts"),
    errors.EmailInUse: (HTTPStatus.CONFLICT, "email-in-use"),
    errors.RoleRefused: (HTTPStatus.CONFLICT, "role-refused"),
    errors.AccountDeleted: (HTTPStatus.UNAUTHORIZED, "not-authenticated"),
    errors.Busy: (HTTPStatus.SERVICE_UNAVAILABLE, "sign-in-busy"),
}


def add_problem_handlers(app: FastAPI) -> None:
    """Register the handler for the errors of `shop.identity.errors`."""

    @app.exception_handler(errors.IdentityError)
    async def handle_identity_error(request: Request, error: errors.IdentityError) -> Response:
        return to_response(error)


def to_response(error: errors.IdentityError) -> Response:
    """The problem details of this error."""
    status, code = next(_STATUSES[cls] for cls in type(error).__mro__ if cls in _STATUSES)
    headers, members = {}, dict[str, Any]()
    match error:
        case errors.TooManyAttempts():
            headers["Retry-After"] = str(error.retry_after)
        case errors.Busy():
            headers["Retry-After"] = retry_after()
        case errors.PasswordRejected():
            members["reason"] = error.reason
        case errors.EnrolmentRequired():
            members["enrolment_token"] = error.token
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"  # RFC 9110 requires one
    return problem_response(status, code, detail=str(error), headers=headers, **members)
