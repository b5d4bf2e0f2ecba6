"""Errors on a WebSocket: a close code, or an HTTP response before the WebSocket is accepted."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, Literal

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# RFC 6455, section 7.4.1, and the IANA registry of close codes
_POLICY_VIOLATION: Final = 1008
_INTERNAL_ERROR: Final = 1011
_TRY_AGAIN_LATER: Final = 1013
# RFC 6455, section 5.5: a control frame has at most 125 bytes, two of which are the code.
_MAX_REASON_BYTES: Final = 123


class WebSocketErrors:
    """ASGI middleware that closes an accepted WebSocket instead of sending an error handler's HTTP response.

    Starlette calls the same handlers for HTTP and for WebSockets, and a server can't send an HTTP response on a
    WebSocket that it has accepted. The close code is 1013 for the statuses 429 and 503, 1011 for other statuses of 500
    and above, and 1008 for the rest. The reason is the problem's `type`. An error without a handler closes the
    WebSocket with 1011, and is then raised to the server, which logs it.

    Before the WebSocket is accepted, the response is sent unchanged by the ASGI extension `websocket.http.response`. A
    server without that extension answers 403.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "websocket":
            return self._app(scope, receive, send)
        return self._run(scope, receive, send)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = _Connection(scope, receive, send)
        try:
            await self._app(scope, connection.receive, connection.send)
        except Exception:
            await connection.close_after_error()
            raise


class _Connection:
    """Forwards the messages of one WebSocket, and tracks its state.

    Starlette's `WebSocket` can't be used for that: an error handler gets another `WebSocket` object than the route, and
    that object has seen no messages.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._has_denial = "websocket.http.response" in (scope.get("extensions") or {})
        self._state: Literal["connecting", "accepted", "denied", "closed"] = "connecting"
        self._start: Message | None = None
        self._body = b""

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self._state = "closed"
        return message

    async def send(self, message: Message) -> None:
        """Forward a message. An HTTP response on an accepted WebSocket becomes a close frame."""
        match message["type"]:
            case "websocket.http.response.start":
                if self._state == "closed":
                    # raised while the first error is handled, so that the server logs both errors
                    raise RuntimeError(
                        f"an error after the WebSocket was closed: the response {message['status']} can't be sent"
                    )
                if self._state == "connecting" and self._has_denial:
                    self._state = "denied"
                    await self._send(message)
                else:
                    self._start = message
            case "websocket.http.response.body" if self._start is not None:
                self._body += message.get("body", b"")
                if not message.get("more_body", False):
                    status = self._start["status"]
                    await self._close(_choose_close_code(status), _build_close_reason(status, self._body))
            case "websocket.accept":
                await self._send(message)
                self._state = "accepted"
            case "websocket.close":
                self._state = "closed"
                await self._send(message)
            case _:
                await self._send(message)

    async def close_after_error(self) -> None:
        """Close an accepted WebSocket. Without this the server would drop the connection without a close code."""
        if self._state == "accepted":
            with suppress(OSError):  # the client has gone
                await self._close(_INTERNAL_ERROR, HTTPStatus.INTERNAL_SERVER_ERROR.phrase)

    async def _close(self, code: int, reason: str) -> None:
        self._state = "closed"
        await self._send({"type": "websocket.close", "code": code, "reason": reason})


def _choose_close_code(status: int) -> int:
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        return _TRY_AGAIN_LATER
    return _INTERNAL_ERROR if status >= HTTPStatus.INTERNAL_SERVER_ERROR else _POLICY_VIOLATION


def _build_close_reason(status: int, body: bytes) -> str:
    """The `type` of the problem details, or else the status."""
    problem: Any = None
    with suppress(orjson.JSONDecodeError):
        problem = orjson.loads(body)
    kind = problem.get("type") if isinstance(problem, dict) else None
    reason = kind if isinstance(kind, str) else f"status {status}"
    return reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
