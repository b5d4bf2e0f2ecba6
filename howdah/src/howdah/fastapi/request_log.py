"""A request id and a log entry for each request."""

from __future__ import annotations

import re
from contextvars import ContextVar, Token
from typing import Any, Final

import structlog
from starlette.types import Scope
from uuid_utils import uuid7

from howdah.errors import Unavailable
from howdah.fastapi.client_text import MAX_SHOWN_CHARACTERS, shorten
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
    """The request id and the log entry of each request.

    The request id is the client's `X-Request-ID` if it consists of 1 to 128 letters, digits and `._:-`. Otherwise it is
    a new UUID. The response and every log entry of the request have it, even after an unexpected error.

    The entry has the method, the path (200 characters of it), the status and the duration. The status is 499 if the
    client didn't receive the whole response. It has no query, no headers, no body and no
    address, because these may be personal data.

    In an application with `authenticate` the entries also have the principal's key.

    If a mounted application has a request log, too, the outer one makes the id and the entry.
    """

    def begin(self, scope: Scope) -> tuple[Token[Any], tuple[bytes, bytes] | None]:
        """Give the request an id, which every log entry has until `end`.

        Returns the token for `end` and the response header. The header is None if an outer application sends it.
        """
        request_id: str | None = scope.get(_REQUEST_ID_KEY)
        if request_id is not None:
            return _REQUEST_ID.set(request_id), None
        request_id = scope[_REQUEST_ID_KEY] = _get_request_id(scope)
        return _REQUEST_ID.set(request_id), (_REQUEST_ID_HEADER, request_id.encode())

    def log_error(self, error: Exception, *, is_started: bool) -> None:
        """Log an error that no handler knows. After the start of the response, the server doesn't log it again.

        The traceback is formatted here, because structlog's default one shows local variables, which may hold personal
        data.
        """
        if is_started and (cause := _find_unavailable(error)):
            # Not an error of the service. Before the start of the response, it would have been a 503.
            _log.warning("the response was cut off", error=type(cause).__name__)
        else:
            _log.error("unexpected error", exception=format_exception(error))
        if is_started:
            mark_as_logged(error)

    def end(self, token: Token[Any], scope: Scope, status: int | None, seconds: float, *, is_outermost: bool) -> None:
        """Write the entry of the request, unless an outer application does it."""
        if is_outermost:
            method, path = scope["method"], scope["path"]
            entry = {
                "method": method if len(method) <= MAX_SHOWN_CHARACTERS else shorten(method),
                "path": path if len(path) <= _MAX_PATH_CHARACTERS else shorten(path, _MAX_PATH_CHARACTERS),
                "status": status,
                "ms": int(seconds * 10_000 + 0.5) / 10,  # faster than `round`
                "event": "request",
            }
            if not write_info(_LOGGER, entry):
                _log.info(**entry)
            _PRINCIPAL.set(_UNBOUND)
        _REQUEST_ID.reset(token)


def log_principal(key: str) -> None:
    """Add the principal to every log entry of the request. `RequestLog` removes it at the end."""
    _PRINCIPAL.set(key)


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
