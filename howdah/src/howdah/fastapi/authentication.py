"""Who sent a request: an ASGI layer that authenticates it before the body is read and before a route is chosen.

    async def authenticate(connection: HTTPConnection) -> CurrentUser | None: ...

    configure_app(app, database=..., authenticate=authenticate)

The application's function verifies the credentials with any library. The result is the principal of the request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final, Protocol, TypeAlias

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from howdah.errors import HowdahError
from howdah.fastapi.problem import ProblemException, error_response, problem_response

# The place of the principal in the ASGI scope.
_PRINCIPAL_KEY: Final = "howdah.principal"


class Principal(Protocol):
    """Who sent a request. The application's own class has these attributes, and any others.

    `key` identifies the principal, for example `user:<id>`. It is the scope of idempotency keys and of rate limits.
    `role` is one of the application's roles. `scopes` limit an API key; None means that nothing is limited.
    """

    @property
    def key(self) -> str: ...

    @property
    def role(self) -> str: ...

    @property
    def scopes(self) -> frozenset[str] | None: ...


Authenticate: TypeAlias = Callable[[HTTPConnection], Awaitable[Principal | None]]
"""Returns the principal, or None for a request without credentials. Raises `NotAuthenticated` for wrong ones.

If it raises a `HowdahError`, for example because the database can't be reached, the response is that of
`error_response`.
"""


class NotAuthenticated(ProblemException):
    """The credentials are missing, wrong or expired (401).

    Without `detail`, the request has no credentials. As RFC 6750 demands, the challenge has `error="invalid_token"` if
    credentials were sent.
    """

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(
            HTTPStatus.UNAUTHORIZED,
            "not-authenticated",
            "sign in, and send the access token in the header Authorization" if detail is None else detail,
            headers={"WWW-Authenticate": "Bearer" if detail is None else 'Bearer error="invalid_token"'},
        )


def find_principal(connection: HTTPConnection) -> Any:
    """The principal of the request, or None if the request has no credentials."""
    return connection.scope.get(_PRINCIPAL_KEY)


def set_principal(scope: Scope, principal: Principal | None) -> None:
    scope[_PRINCIPAL_KEY] = principal


class AuthenticationLayer:
    """ASGI middleware that sets the principal. A request with wrong credentials gets a 401, and its body isn't read."""

    def __init__(self, app: ASGIApp, *, authenticate: Authenticate) -> None:
        self._app = app
        self._authenticate = authenticate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            connection = HTTPConnection(scope)
            try:
                set_principal(scope, await self._authenticate(connection))
            except ProblemException as error:
                response = problem_response(
                    error.status_code, error.code, detail=error.detail, headers=error.headers, **error.members
                )
                await response(scope, receive, send)
                return
            except HowdahError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
