"""Security headers of responses: for the API, and for pages."""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_Header = tuple[bytes, bytes]

# If a browser shows a response of the API as a page, it loads nothing, runs nothing, and shows it in no frame.
CONTENT_SECURITY_POLICY: Final[_Header] = (
    b"content-security-policy",
    b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
)
_ALWAYS: Final[tuple[_Header, ...]] = (
    CONTENT_SECURITY_POLICY,
    # Other origins can't load the response as an image or a script. CORS isn't affected.
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"same-origin"),
)
# Browsers use these for documents only.
_PAGES: Final[tuple[_Header, ...]] = (
    (b"cross-origin-opener-policy", b"same-origin"),
    (
        b"permissions-policy",
        b"camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    ),
)
# Without `includeSubDomains`, because only the operator knows whether every subdomain has TLS.
_OVER_TLS: Final[_Header] = (b"strict-transport-security", b"max-age=31536000")


class SecurityHeaders:
    """ASGI middleware that adds the headers which the response doesn't have.

    - `Content-Security-Policy`, `Cross-Origin-Resource-Policy` and `Referrer-Policy`.
    - `Cross-Origin-Opener-Policy` and `Permissions-Policy` for pages (`text/html`).
    - `Strict-Transport-Security` for a request over TLS. Behind a proxy, this needs `trusted_proxies`.

    A route that returns a page sets its own `Content-Security-Policy`. `HTTPRules` adds `X-Content-Type-Options` and
    `Cache-Control`. The rejections of an overloaded service and of the server itself have only these two.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_over_tls = scope.get("scheme") == "https"

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add_headers(message, is_over_tls=is_over_tls)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _add_headers(message: Message, *, is_over_tls: bool) -> None:
    headers: list[_Header] = [*message.get("headers", ())]
    own = dict(headers)
    headers += [each for each in _ALWAYS if each[0] not in own]
    if is_over_tls and _OVER_TLS[0] not in own:
        headers.append(_OVER_TLS)
    if own.get(b"content-type", b"").startswith(b"text/html"):
        headers += [each for each in _PAGES if each[0] not in own]
    message["headers"] = headers
