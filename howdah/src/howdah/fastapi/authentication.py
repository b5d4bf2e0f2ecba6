"""Who sent a request: an ASGI layer that authenticates it before the body is read and before a route is chosen.

    async def authenticate(connection: HTTPConnection) -> CurrentUser | None: ...

    configure_app(app, database=..., authenticate=authenticate)

The application's function verifies the credentials with any library. The result is the principal of the request.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from http import HTTPStatus
from typing import Any, Final, Protocol, TypeAlias

from fastapi import FastAPI
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from howdah.fastapi._error_handlers import add_handlers_of
from howdah.fastapi._time_limits import TimeLimitReached, run_in_time
from howdah.fastapi.problem import ProblemException

DEFAULT_AUTHENTICATE_SECONDS: Final = 10.0

PRINCIPAL_KEY: Final = "howdah.principal"
"""The key of the principal in the ASGI scope."""

_BEARER: Final = "Bearer"

_log: Final = logging.getLogger("howdah.authentication")


class Principal(Protocol):
    """Who sent a request. The application's own class has these attributes, and any others.

    `key` identifies the principal, for example `user:<id>`. It is the scope of idempotency keys and of rate limits, and
    every log entry of the request has it. `role` is one of the application's roles. `scopes` limit an API key; None
    means that nothing is limited.
    """

    @property
    def key(self) -> str: ...

    @property
    def role(self) -> str: ...

    @property
    def scopes(self) -> frozenset[str] | None: ...


Authenticate: TypeAlias = Callable[[HTTPConnection], Awaitable[Principal | None]]
"""Returns the principal, or None for a request without credentials. Raises `NotAuthenticated` for wrong ones."""


class NotAuthenticated(ProblemException):
    """The credentials are missing, wrong or expired (401).

    Without `detail`, the request has no credentials. A `detail` says what is wrong with the credentials that were sent.
    It never tells whether an account exists. `challenge` is the scheme for the header `WWW-Authenticate`. As RFC 6750
    demands, `Bearer` has `error="invalid_token"` if credentials were sent.
    """

    def __init__(self, detail: str | None = None, *, challenge: str = _BEARER) -> None:
        if detail is not None and challenge == _BEARER:
            challenge = f'{_BEARER} error="invalid_token"'
        super().__init__(
            HTTPStatus.UNAUTHORIZED,
            "not-authenticated",
            "sign in, and send the access token in the header Authorization" if detail is None else detail,
            headers={"WWW-Authenticate": challenge},
        )


class AuthenticationTimeout(ProblemException):
    """`authenticate` has not ended in time (503)."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.SERVICE_UNAVAILABLE, "authentication-timeout", "the credentials could not be checked in time"
        )


def find_principal(connection: HTTPConnection) -> Any:
    """The principal of the request, or None if the request has no credentials."""
    return connection.scope.get(PRINCIPAL_KEY)


async def require_principal(connection: HTTPConnection) -> Any:
    """The principal of the request. Raises `NotAuthenticated` (401) without credentials.

    It is a dependency: `CurrentUser = Annotated[User, Depends(require_principal)]`, where `User` is the class of the
    application's principals.
    """
    principal = find_principal(connection)
    if principal is None:
        raise NotAuthenticated
    return principal


async def require_principal_key(connection: HTTPConnection) -> str:
    """The key of the principal. Raises `NotAuthenticated` (401) without credentials.

    It is a dependency, for example for `idempotency_key(..., scope=require_principal_key)`: principals never get each
    other's responses.
    """
    key: str = (await require_principal(connection)).key
    return key


class Authentication:
    """Sets the principal of a request. A request with wrong credentials gets a 401, and its body isn't read.

    This also holds for routes with the rule `PUBLIC`, unknown paths and other methods. Without credentials, requests
    for these are passed on.

    `prepare` is called before each request. It checks that every route has a rule, and returns the paths whose requests
    are never authenticated, so that a probe doesn't depend on the database. The errors of `authenticate` are answered
    by the error handlers of `application`.
    """

    def __init__(
        self,
        application: FastAPI,
        authenticate: Authenticate,
        *,
        timeout: float,
        prepare: Callable[[], Collection[str]],
        log_principal: Callable[[str], None] | None,
    ) -> None:
        self._application = application
        self._authenticate = authenticate
        self._timeout = timeout
        self._prepare = prepare
        self._log_principal = log_principal

    async def set_principal(self, scope: Scope, path: str) -> ASGIApp | None:
        """Set the principal in the scope. Returns the response if `authenticate` has raised an error.

        If the error has no handler, this response raises it when it is called. Then it is logged, and becomes a 500.
        """
        if path in self._prepare():
            scope[PRINCIPAL_KEY] = None
            return None
        # Until `authenticate` returns, the principal is that of an outer application. `authenticate` may use it.
        try:
            principal = await run_in_time(self._authenticate(HTTPConnection(scope)), self._timeout)
        except Exception as error:
            return self._build_error_response(error)
        if principal is not None and self._log_principal is not None:
            self._log_principal(principal.key)
        scope[PRINCIPAL_KEY] = principal
        return None

    def _build_error_response(self, error: Exception) -> ASGIApp:
        """The response of the application's error handlers. It raises an error that has no handler."""
        raised = error
        if isinstance(error, TimeLimitReached):
            _log.warning("authenticate has not ended within %g s", self._timeout)
            raised = AuthenticationTimeout()

        async def fail(scope: Scope, receive: Receive, send: Send) -> None:
            raise raised from raised.__cause__

        return add_handlers_of(self._application, fail)
