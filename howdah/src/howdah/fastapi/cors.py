"""Cross-origin requests of browsers (CORS). They are not allowed unless their origin is named."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from howdah.fastapi.security_headers import SecurityHeaders

_ORIGIN: Final = re.compile(r"https?://([a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:]+\])(:\d{1,5})?", re.ASCII)
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_REQUEST_HEADERS: Final = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-Match",
    "If-None-Match",
    "X-Request-ID",
)
_RESPONSE_HEADERS: Final = (
    "ETag",
    "Idempotency-Replayed",
    "Link",
    "Location",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "WWW-Authenticate",
    "X-Request-ID",
)


def add_cors(app: FastAPI, origins: Iterable[str]) -> None:
    """Let pages of these origins send requests and read the responses. Raises `ValueError` for an invalid origin.

    The pages authenticate with the header `Authorization`. Their requests have no cookies, because
    `Access-Control-Allow-Credentials` is never sent.
    """
    if isinstance(origins, str):
        raise TypeError(f"cors_origins must be a list of origins, not the text {origins!r}")
    allowed = [*origins]
    for origin in allowed:
        if _ORIGIN.fullmatch(origin) is None:
            raise ValueError(
                f"cors_origins: {origin!r} is not an origin: write it as https://app.example.com, in lower case, "
                "without a path; * is not allowed"
            )
    if allowed:
        # This middleware answers preflight requests outside of the layers, so `SecurityHeaders` adds their headers.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=allowed,
            allow_methods=_METHODS,
            allow_headers=_REQUEST_HEADERS,
            expose_headers=_RESPONSE_HEADERS,
        )
        app.add_middleware(SecurityHeaders)
