"""The handlers that answer every error of an application as problem details."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from fastapi.utils import is_body_allowed_for_status_code
from starlette.exceptions import HTTPException

from howdah import errors
from howdah.fastapi.openapi import describe_problems
from howdah.fastapi.problem import error_response, problem_code, problem_response
from howdah.fastapi.websockets import WebSocketErrors

# A body of a hundred thousand faults would be answered by one much larger.
_SHOWN_FAULTS: Final = 20


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error of this application as problem details: Howdah's by `STATUS`, with `Retry-After` where
    trying again may help; FastAPI's validation errors and `HTTPException`; and what nobody foresaw as a bare 500.

    On an accepted WebSocket the error becomes a close, with the problem's `type` as its reason: 1013 where trying again
    may help, 1008 where the client is at fault, 1011 for a fault of the program.

    The OpenAPI description says so for each route, by what the route takes: 422 with parameters or a body, 404 with a
    path parameter, 400 with `PageParameters` or a body, 412 with an `If-Match` header, 503 with a session or the
    database, and 409 with `DbSession` unless the method only reads. What else it may answer, such as 428, it declares
    with `responses=problems(428)`. Its own `responses` are never changed.

    A mounted application has errors and a description of its own: call this for each.
    """
    app.add_exception_handler(errors.HowdahError, _howdah_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(WebSocketRequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(Exception, _unforeseen)
    app.add_middleware(WebSocketErrors)
    describe_problems(app)


async def _howdah_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.HowdahError)
    return error_response(error)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError | WebSocketRequestValidationError)
    found = error.errors()[:_SHOWN_FAULTS]
    shown = [{"loc": each["loc"], "msg": each["msg"], "type": each["type"]} for each in found]
    return problem_response(
        HTTPStatus.UNPROCESSABLE_ENTITY, "validation", detail="the request is not as described", errors=shown
    )


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if not is_body_allowed_for_status_code(error.status_code):
        return Response(status_code=error.status_code, headers=error.headers)
    known = error.status_code in HTTPStatus.__members__.values()
    phrase = HTTPStatus(error.status_code).phrase if known else f"Status {error.status_code}"
    detail = error.detail
    return problem_response(
        error.status_code,
        problem_code(phrase),
        title=phrase,
        detail=detail if isinstance(detail, str) and detail else None,
        headers=error.headers,
        **({} if detail is None or isinstance(detail, str) else {"errors": jsonable_encoder(detail)}),
    )


async def _unforeseen(request: Request, error: Exception) -> Response:
    return problem_response(HTTPStatus.INTERNAL_SERVER_ERROR, "internal-error")
