"""The handlers that answer every error of an application with problem details."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from fastapi.utils import is_body_allowed_for_status_code
from starlette.exceptions import HTTPException

from howdah import errors
from howdah.fastapi.client_text import shorten_message, shorten_place
from howdah.fastapi.disconnects import CLIENT_CLOSED_REQUEST, ClientDisconnects, is_disconnect
from howdah.fastapi.ndjson import RejectedLine
from howdah.fastapi.openapi import add_problem_descriptions
from howdah.fastapi.problem import ProblemException, error_response, problem_response, to_problem_code
from howdah.fastapi.websockets import WebSocketErrors

_log = logging.getLogger("howdah.database")

# Without a limit, a request with 100,000 errors would get a response much larger than itself.
_MAX_SHOWN_ERRORS: Final = 20
# Python's phrase for this status differs between its versions, so the code can't be derived from it. FastAPI raises it
# for `max_body_size`.
_CODES: Final[dict[int, str]] = {HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "body-too-large"}


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error of this application with problem details.

    Howdah's errors get the status in `HTTP_STATUS_BY_ERROR`, with `Retry-After` if a retry may help. FastAPI's
    validation errors and `HTTPException` keep their status. A request whose client disconnected ends without an error,
    and is logged with the status 499. Any other exception is a 500 without details.

    A problem repeats at most 100 characters of a text that the client sent.

    On an accepted WebSocket an error closes the connection, with the problem's `type` as the reason. The close code is
    1013 if a retry may help, 1008 for an error of the client, and 1011 for an error of the application.

    The OpenAPI description of each route gets the statuses that follow from its parameters:

    - 422 with parameters or a body,
    - 404 with a path parameter,
    - 400 with `PageParameters`, a body, a `single_header`, or a query parameter of a `StrictJSONRoute`,
    - 400, 409 and 422 with an `idempotency_key`,
    - 415 with `describe_rows_body`,
    - 413 with a body, if `configure_app` limits its size,
    - 412 with an `If-Match` header, and 428 with `RequiredIfMatch`,
    - 503 with a session or the database,
    - 409 with `DbSession`, unless the method is GET, HEAD or OPTIONS.

    A route declares other statuses, such as 429, with `responses=describe_problems(429)`. Responses that a route
    declares itself are never changed.

    A mounted application has error handlers and an OpenAPI description of its own: call this function for it, too.
    """
    register_error_handlers(app)
    app.add_middleware(WebSocketErrors)
    app.add_middleware(ClientDisconnects)


def register_error_handlers(app: FastAPI) -> None:
    """Add the error handlers and the descriptions, but not the middleware, of `add_error_handlers`."""
    app.add_exception_handler(errors.HowdahError, _handle_howdah_error)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    app.add_exception_handler(WebSocketRequestValidationError, _handle_validation_error)
    app.add_exception_handler(HTTPException, _handle_http_exception)
    app.add_exception_handler(RejectedLine, _handle_rejected_line)
    app.add_exception_handler(Exception, _handle_unexpected_error)
    add_problem_descriptions(app)


async def _handle_howdah_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.HowdahError)
    if isinstance(error, errors.OutOfResources | errors.SystemFailure):
        _log.error("the database server needs an operator: %s", error.args[0])  # the response doesn't say why
    return error_response(error)


async def _handle_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError | WebSocketRequestValidationError)
    # a body that several dependencies take is validated for each of them, so its errors are repeated
    found = {(each["loc"], each["type"], each["msg"]): each for each in error.errors()}
    shown = list(found.values())[:_MAX_SHOWN_ERRORS]
    input_errors = [
        {"loc": shorten_place(each["loc"]), "msg": shorten_message(each), "type": each["type"]} for each in shown
    ]
    return problem_response(
        HTTPStatus.UNPROCESSABLE_ENTITY, "validation", detail="the request is not as described", errors=input_errors
    )


async def _handle_http_exception(request: Request, error: Exception) -> Response:
    """Keep the status and the headers. A `detail` that isn't a text becomes the member `errors`."""
    assert isinstance(error, HTTPException)
    if is_disconnect(error):
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    if not is_body_allowed_for_status_code(error.status_code):
        return Response(status_code=error.status_code, headers=error.headers)
    is_standard = error.status_code in HTTPStatus.__members__.values()
    phrase = HTTPStatus(error.status_code).phrase if is_standard else f"Status {error.status_code}"
    detail = error.detail
    return problem_response(
        error.status_code,
        error.code if isinstance(error, ProblemException) else _CODES.get(error.status_code, to_problem_code(phrase)),
        title=phrase,
        detail=detail if isinstance(detail, str) and detail else None,
        headers=error.headers,
        **({} if detail is None or isinstance(detail, str) else {"errors": jsonable_encoder(detail)}),
        **(error.members if isinstance(error, ProblemException) else {}),
    )


async def _handle_rejected_line(request: Request, error: Exception) -> Response:
    assert isinstance(error, RejectedLine)
    return error_response(error.error, line=error.line)


async def _handle_unexpected_error(request: Request, error: Exception) -> Response:
    return problem_response(HTTPStatus.INTERNAL_SERVER_ERROR, "internal-error")
