"""A request id and a log entry for each request."""

from __future__ import annotations

import re
import time
from contextvars import ContextVar, Token
from http import HTTPStatus
from typing import Any, Final

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send
from uuid_utils import uuid7

from howdah.errors import Unavailable
from howdah.fastapi._shared_response import share_response
from howdah.fastapi.client_text import shorten
from howdah.fastapi.disconnects import get_logged_status
from howdah.fastapi.problem import problem_response
from howdah.logs import format_exception, mark_as_logged, write_info

_REQUEST_ID_HEADER: Final = b"x-request-id"
_REQUEST_ID_KEY: Final = "howdah.request_id"  # in the ASGI scope
# A path may be as long as the server allows, and a log has a line for each request.
_MAX_PATH_CHARACTERS: Final = 200
_VALID_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")

_LOGGER: Final = "howdah.requests"

_log: Final = structlog.get_logger(_LOGGER)


def _find_variable(name: str) -> ContextVar[Any]:
    """The variable in which structlog keeps a value. Setting it takes a tenth of the time of `bind_contextvars`."""
    token: Token[Any] = structlog.contextvars.bind_contextvars(**{name: None})[name]
    token.var.reset(token)
    return token.var


_REQUEST_ID: Final = _find_variable("request_id")
_PRINCIPAL: Final = _find_variable("principal")
_UNBOUND: Final = _PRINCIPAL.get()


class RequestLog:
    """ASGI middleware: the request id and the log entry of each request.

    The request id is the client's `X-Request-ID` if it consists of 1 to 128 letters, digits and `._:-`. Otherwise it is
    a new UUID. The response and every log entry of the request have it, even after an unexpected error.

    The entry has the method, the path (200 characters of it), the status and the duration. The status is 499 if the
    client didn't receive the whole response. It has no query, no headers, no body and no
    address, because these may be personal data.

    In an application with `authenticate` the entries also have the principal's key.

    If a mounted application has this middleware, too, the outer one makes the id and the entry.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application for one request. An unexpected error is logged, and answered with a 500."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        response = share_response(send)
        request_id: str | None = scope.get(_REQUEST_ID_KEY)
        is_outermost = request_id is None
        if request_id is None:
            request_id = scope[_REQUEST_ID_KEY] = _get_request_id(scope)
            header = _REQUEST_ID_HEADER, request_id.encode()
            response.before_start.append(lambda response: response.headers.append(header))
        functions = len(response.before_start)
        token = _REQUEST_ID.set(request_id)
        try:
            await self._app(scope, receive, response)
        except Exception as error:
            # Handled here and not by Starlette, so that the response and the traceback have the request id. The
            # traceback is formatted here, because structlog's default one shows local variables, which may hold
            # personal data.
            is_started = response.status is not None
            if is_started and (cause := _find_unavailable(error)):
                # no error of the service, as if it had happened before the start of the response
                _log.warning("the response was cut off", error=type(cause).__name__)
            else:
                _log.error("unexpected error", exception=format_exception(error))
            if is_started:
                mark_as_logged(error)
                raise
            response.drop_inner(functions)
            await problem_response(HTTPStatus.INTERNAL_SERVER_ERROR, "internal-error")(scope, receive, response)
        finally:
            if is_outermost:
                _log_request(scope, response.status, time.perf_counter() - started)
                _PRINCIPAL.set(_UNBOUND)
            _REQUEST_ID.reset(token)


def log_principal(key: str) -> None:
    """Add the principal to every log entry of the request. `RequestLog` removes it at the end."""
    _PRINCIPAL.set(key)


def _log_request(scope: Scope, status: int | None, seconds: float) -> None:
    entry = {
        "method": shorten(scope["method"]),
        "path": shorten(scope["path"], _MAX_PATH_CHARACTERS),
        "status": get_logged_status(scope, status),
        "ms": int(seconds * 10_000 + 0.5) / 10,  # faster than `round`
        "event": "request",
    }
    if not write_info(_LOGGER, entry):
        _log.info(**entry)


def _find_unavailable(error: Exception) -> Unavailable | None:
    """The error of the database. Starlette raises another one from it if the response has started."""
    for each in (error, error.__cause__):
        if isinstance(each, Unavailable):
            return each
    return None


def _get_request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == _REQUEST_ID_HEADER:
            request_id: str = value.decode("latin-1")
            if _VALID_ID.fullmatch(request_id):
                return request_id
    return str(uuid7())
