"""The handshake of a WebSocket, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import httpx
    from starlette.types import ASGIApp, Message

_MAX_SECONDS: Final = 20.0


async def open_websocket(app: ASGIApp, url: str, headers: Mapping[str, str]) -> httpx.Response:
    """The response to the handshake: 101 if the application has accepted the WebSocket, which is then closed.

    A WebSocket that is closed before it is accepted is 403, as with a server.
    """
    import httpx

    parts = urlsplit(url)
    scope = {
        "type": "websocket",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": parts.path,
        "query_string": parts.query.encode(),
        "root_path": "",
        "headers": [(b"host", b"test"), *((name.lower().encode(), each.encode()) for name, each in headers.items())],
        "extensions": {"websocket.http.response": {}},
        "subprotocols": [],
    }
    incoming: list[dict[str, Any]] = [{"type": "websocket.connect"}]
    outgoing: asyncio.Queue[Message] = asyncio.Queue()

    async def receive() -> Message:
        return incoming.pop() if incoming else {"type": "websocket.disconnect", "code": 1000}

    async def read_response() -> httpx.Response:
        message = await outgoing.get()
        if message["type"] == "websocket.accept":
            return httpx.Response(HTTPStatus.SWITCHING_PROTOCOLS)
        if message["type"] == "websocket.close":
            return httpx.Response(HTTPStatus.FORBIDDEN, text=message.get("reason") or "")
        body = b""
        while (part := await outgoing.get()).get("more_body"):
            body += part.get("body", b"")
        content = body + part.get("body", b"")
        return httpx.Response(message["status"], headers=message["headers"], content=content)

    running = asyncio.ensure_future(app(scope, receive, outgoing.put))
    reading = asyncio.ensure_future(read_response())
    try:
        async with asyncio.timeout(_MAX_SECONDS):
            await asyncio.wait([running, reading], return_when=asyncio.FIRST_COMPLETED)
            if not reading.done() and outgoing.empty():
                await running  # raises the error of the application
            # An error of the application after its response is ignored: for example, it may report that the client has
            # gone.
            return await reading
    finally:
        for task in (running, reading):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task
