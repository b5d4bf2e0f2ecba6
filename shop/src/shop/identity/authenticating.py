"""Find the principal of a request: from its access token, its API key, or the cookie of a browser."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final

from starlette.requests import HTTPConnection

from howdah.fastapi import NotAuthenticated, ProblemException, check_same_origin, get_route_path
from shop.identity.api_keys.verification import api_key_verifier
from shop.identity.principals import Principal
from shop.identity.revocation import revocations
from shop.identity.tokens import TokenSigner
from shop.web.session_cookies import find_access_token

API_KEY_HEADER: Final = "X-API-Key"
TOKEN_PATH: Final = "/auth/token"  # noqa: S105  # a path

_AUTHORIZATION: Final = b"authorization"
_API_KEY: Final = API_KEY_HEADER.lower().encode()
_CREDENTIALS: Final = frozenset({_AUTHORIZATION, _API_KEY})


def build_authenticate(tokens: TokenSigner) -> Callable[[HTTPConnection], Awaitable[Principal | None]]:
    """The function for `configure_app(authenticate=...)`. The application must open `revocations` and
    `api_key_verifier`."""

    async def verify_token(connection: HTTPConnection, token: str) -> Principal:
        principal = tokens.verify(token)
        ended = revocations.find(connection)
        if ended.is_stale():
            await ended.refresh()
        ended.check(principal.session_id)
        return principal

    async def verify_cookie(connection: HTTPConnection) -> Principal | None:
        """The principal of a browser's session. Raises `CrossOrigin` if a page of another origin sent the request."""
        token = find_access_token(connection)
        if token is None:
            return None
        try:
            principal = await verify_token(connection, token)
        except NotAuthenticated:
            return None  # the browser sends the cookie to public pages, too, such as the sign-in page
        check_same_origin(connection)
        return principal

    async def authenticate(connection: HTTPConnection) -> Principal | None:
        """The principal, or None for a request without credentials.

        Raises `NotAuthenticated` for wrong credentials. A request with two credentials is rejected, because they may
        belong to two principals.
        """
        found = [(name, value) for name, value in connection.scope["headers"] if name in _CREDENTIALS]
        if not found:
            return await verify_cookie(connection)
        if len(found) > 1:
            raise ProblemException(
                HTTPStatus.BAD_REQUEST,
                "several-credentials",
                f"send one access token in the header Authorization, or one API key in {API_KEY_HEADER}",
                headers={"WWW-Authenticate": 'Bearer error="invalid_request"'},
            )
        name, value = found[0]
        text = value.decode("latin-1")
        if name == _API_KEY:
            return await api_key_verifier.find(connection).verify(text)
        scheme, _, token = text.partition(" ")
        scheme = scheme.lower()
        if scheme == "bearer":
            return await verify_token(connection, token)
        if scheme == "basic" and get_route_path(connection.scope) == TOKEN_PATH:
            return None  # clients of OAuth 2.0, such as Swagger UI, send a client id there, even an empty one
        raise NotAuthenticated("the scheme of the header Authorization must be Bearer")

    return authenticate
