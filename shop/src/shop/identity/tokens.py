"""Access tokens: signed, short-lived JWTs that are verified without the database.

A token is signed with HMAC-SHA-256, because only this service reads it: `docs/decisions/0038-access-tokens.md`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

import orjson
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from howdah.fastapi import NotAuthenticated
from shop.identity.principals import Principal, Role

ISSUER: Final = "shop"
AUDIENCE: Final = "shop-api"
LIFETIME: Final = timedelta(minutes=10)

LEEWAY_SECONDS: Final = 5
"""How much the clocks of two servers may differ."""

_ALGORITHM: Final = "HS256"
# The type of access tokens (RFC 9068). So a token that was signed with the same key for another purpose isn't accepted.
_TYPE: Final = "at+jwt"

# A token has about 350 characters. A longer text is rejected before anything is computed from it.
_MAX_CHARACTERS: Final = 1_024
# About 540 bytes each.
_MAX_CACHED: Final = 10_000

_INVALID: Final = "the access token is invalid: sign in again"
_EXPIRED: Final = "the access token has expired: refresh it, or sign in again"


@dataclass(frozen=True, slots=True)
class _Verified:
    """A token with a valid signature and valid claims. Its times are checked at each use."""

    principal: Principal
    issued_at: int
    expires_at: int


class TokenSigner:
    """Signs access tokens with the first key, and verifies tokens of all keys. `keys` has the secrets by key id.

    Verified tokens are cached by their SHA-256 digests, at most `max_cached`. Only tokens with a valid signature enter
    the cache. The times of a cached token are checked at each use, so the cache doesn't make a token valid for longer.
    """

    def __init__(
        self,
        keys: Mapping[str, str],
        *,
        lifetime: timedelta = LIFETIME,
        max_cached: int = _MAX_CACHED,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not keys:
            raise ValueError("a TokenSigner needs a key")
        imported = {key_id: OctKey.import_key(key) for key_id, key in keys.items()}
        self._key_id, self._key = next(iter(imported.items()))
        self._lifetime = int(lifetime.total_seconds())
        self._max_cached = max_cached
        self._clock = clock
        self._cache: OrderedDict[bytes, _Verified] = OrderedDict()
        # The header of a token must be one that this class writes, byte for byte. So a client can't choose the
        # algorithm, the type or the key, and no unsigned header is parsed.
        self._keys_by_header = {_first_segment(key_id): key for key_id, key in imported.items()}

    def sign(self, principal: Principal, *, now: datetime | None = None) -> str:
        """An access token for the session of the principal. Raises `ValueError` without one: it couldn't be revoked."""
        if principal.session_id is None:
            raise ValueError("an access token belongs to a session: the principal has none")
        issued_at = int(self._clock() if now is None else now.timestamp())
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(principal.user_id),
            "role": principal.role,
            "sid": str(principal.session_id),
            "iat": issued_at,
            "exp": issued_at + self._lifetime,
        }
        return jws.serialize_compact(_header(self._key_id), orjson.dumps(claims), self._key, [_ALGORITHM])

    def verify(self, token: str) -> Principal:
        """The principal of the token. Raises `NotAuthenticated`."""
        if len(token) > _MAX_CHARACTERS or not token.isascii():
            raise NotAuthenticated(_INVALID)
        digest = sha256(token.encode()).digest()
        verified = self._cache.get(digest)
        if verified is None:
            verified = self._verify_signature(token)
            self._check_times(verified)
            self._cache[digest] = verified
            if len(self._cache) > self._max_cached:
                self._cache.popitem(last=False)
        else:
            self._check_times(verified)
            self._cache.move_to_end(digest)
        return verified.principal

    def _verify_signature(self, token: str) -> _Verified:
        """Check everything but the times. Raises `NotAuthenticated`."""
        key = self._keys_by_header.get(token.partition(".")[0])
        if key is None:
            raise NotAuthenticated(_INVALID)
        try:
            return _read_claims(orjson.loads(jws.deserialize_compact(token, key, [_ALGORITHM]).payload))
        except (JoseError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise NotAuthenticated(_INVALID) from error

    def _check_times(self, verified: _Verified) -> None:
        now = self._clock()
        if now >= verified.expires_at + LEEWAY_SECONDS:
            raise NotAuthenticated(_EXPIRED)
        if now < verified.issued_at - LEEWAY_SECONDS:
            raise NotAuthenticated(_INVALID)


def _header(key_id: str) -> dict[str, str]:
    return {"alg": _ALGORITHM, "kid": key_id, "typ": _TYPE}


def _first_segment(key_id: str) -> str:
    """The first part of every token with this key id: the encoded header. It doesn't depend on the key."""
    any_key = OctKey.import_key("0" * 32)
    return jws.serialize_compact(_header(key_id), b"", any_key, [_ALGORITHM]).partition(".")[0]


def _read_claims(claims: Mapping[str, Any]) -> _Verified:
    """Check the claims of a token with a valid signature. Raises `KeyError` for a missing one, and `ValueError`,
    `TypeError` or `AttributeError` for a value that `sign` doesn't write.
    """
    issued_at, expires_at = claims["iat"], claims["exp"]
    if claims["iss"] != ISSUER or claims["aud"] != AUDIENCE:
        raise ValueError("the token is from another issuer, or for another audience")
    if type(issued_at) is not int or type(expires_at) is not int:
        raise ValueError("the times must be integers")
    principal = Principal(UUID(claims["sub"]), Role(claims["role"]), session_id=UUID(claims["sid"]))
    return _Verified(principal, issued_at, expires_at)
