"""Security headers of responses: for the API, and for pages."""

from __future__ import annotations

from collections.abc import Awaitable
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
# Browsers use `PAGE_HEADERS` for documents only, so only responses with this media type get them.
PAGE_TYPE: Final = b"text/html"
PAGE_HEADERS: Final[tuple[Header, ...]] = (
    (b"cross-origin-opener-policy", b"same-origin"),
    (
        b"permissions-policy",
        b"camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    ),
)
# Without `includeSubDomains`, because only the operator knows whether every subdomain has TLS.
TLS_HEADERS: Final[tuple[Header, ...]] = ((b"strict-transport-security", b"max-age=31536000"),)


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
        response.before_start.append(_complete_over_tls if scope.get("scheme") == "https" else _complete)
        return self._app(scope, receive, response)


def _complete(response: SharedResponse) -> None:
    response.add_missing(SECURITY_HEADERS)
    if response.by_name.get(b"content-type", b"").startswith(PAGE_TYPE):
        response.add_missing(PAGE_HEADERS)


def _complete_over_tls(response: SharedResponse) -> None:
    response.add_missing(TLS_HEADERS)
    _complete(response)
