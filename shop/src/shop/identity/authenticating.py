"""Find the principal of a request from its header `Authorization`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import HTTPConnection

from howdah.fastapi import NotAuthenticated
from shop.identity.principals import Principal
from shop.identity.tokens import TokenSigner


def build_authenticate(tokens: TokenSigner) -> Callable[[HTTPConnection], Awaitable[Principal | None]]:
    """The function for `configure_app(authenticate=...)`."""

    async def authenticate(connection: HTTPConnection) -> Principal | None:
        header = connection.headers.get("authorization")
        if header is None:
            return None
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer":
            raise NotAuthenticated("the scheme of the header Authorization must be Bearer")
        return tokens.verify(token)

    return authenticate
