"""Access tokens: signed JWTs with a short life, which are verified without the database."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

import jwt

from howdah.fastapi import NotAuthenticated
from shop.identity.principals import Principal, Role

ISSUER: Final = "shop"
AUDIENCE: Final = "shop-api"
_ALGORITHM: Final = "HS256"


class TokenSigner:
    """Signs access tokens with the first key, and verifies tokens of all keys. The names of the keys are key ids."""

    def __init__(self, keys: Mapping[str, str], *, lifetime: timedelta = timedelta(minutes=10)) -> None:
        self._keys = dict(keys)
        self._lifetime = lifetime

    def sign(self, principal: Principal, *, now: datetime | None = None) -> str:
        """An access token for this session."""
        issued = now or datetime.now(UTC)
        key_id = next(iter(self._keys))
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(principal.user_id),
            "role": principal.role,
            "sid": str(principal.session_id or uuid4()),
            "iat": issued,
            "exp": issued + self._lifetime,
        }
        return jwt.encode(claims, self._keys[key_id], _ALGORITHM, headers={"kid": key_id})

    def verify(self, token: str) -> Principal:
        """The principal of the token. Raises `NotAuthenticated`."""
        try:
            key = self._keys[str(jwt.get_unverified_header(token).get("kid"))]
            claims = jwt.decode(
                token,
                key,
                algorithms=[_ALGORITHM],
                audience=AUDIENCE,
                issuer=ISSUER,
                options={"require": ["iss", "aud", "sub", "exp", "iat"]},
            )
            return Principal(UUID(claims["sub"]), Role(claims["role"]), session_id=UUID(claims["sid"]))
        except (jwt.InvalidTokenError, KeyError, ValueError) as error:
            raise NotAuthenticated("the access token is invalid or has expired: sign in again") from error
