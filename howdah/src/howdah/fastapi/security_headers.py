"""Security headers of responses: for the API, and for pages."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from howdah.fastapi._shared_response import Header, SharedResponse, share_response

# If a browser shows a response of the API as a page, it loads nothing, runs nothing, and shows it in no frame.
CONTENT_SECURITY_POLICY: Final[Header] = (
    b"content-security-policy",
    b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
)
SECURITY_HEADERS: Final[tuple[Header, ...]] = (
    CONTENT_SECURITY_POLICY,
    # Other origins can't load the response as an image or a script. CORS isn't affected.
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"same-origin"),
)
# Browsers use these for documents only.
_PAGES: Final[tuple[Header, ...]] = (
    (b"cross-origin-opener-policy", b"same-origin"),
    (
        b"permissions-policy",
        b"camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    ),
)
# Without `includeSubDomains`, because only the operator knows whether every subdomain has TLS.
_OVER_TLS: Final[tuple[Header, ...]] = ((b"strict-transport-security", b"max-age=31536000"),)


class SecurityHeaders:
    """ASGI middleware that adds the headers which the response doesn't have. `LayersMiddleware` adds them, too.

    - `Content-Security-Policy`, `Cross-Origin-Resource-Policy` and `Referrer-Policy`.
    - `Cross-Origin-Opener-Policy` and `Permissions-Policy` for pages (`text/html`).
    - `Strict-Transport-Security` for a request over TLS. Behind a proxy, this needs `trusted_proxies`.

    A route that returns a page sets its own `Content-Security-Policy`. `HTTPRules` adds `X-Content-Type-Options` and
    `Cache-Control`. The rejections of an overloaded service and of the server itself have only these two.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        response = share_response(send)
        is_over_tls = scope.get("scheme") == "https"
        response.before_start.append(
            lambda response: add_security_headers(response, SECURITY_HEADERS, is_over_tls=is_over_tls)
        )
        return self._app(scope, receive, response)


def add_security_headers(response: SharedResponse, headers: Iterable[Header], *, is_over_tls: bool) -> None:
    """Add those of the headers that the response doesn't have, and those for pages and for TLS."""
    response.add_missing(headers)
    if response.by_name.get(b"content-type", b"").startswith(b"text/html"):
        response.add_missing(_PAGES)
    if is_over_tls:
        response.add_missing(_OVER_TLS)
