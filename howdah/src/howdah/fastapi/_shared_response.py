"""The response of a request, for several layers: they watch and complete it through one `send`.

If each layer wrapped `send` in a coroutine of its own, each message of a response would pass through eight of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from starlette.types import Message, Send

Header: TypeAlias = tuple[bytes, bytes]


def share_response(send: Send) -> SharedResponse:
    """The response that the next layer outside has made, or a new one if another `send` is between them."""
    return send if isinstance(send, SharedResponse) else SharedResponse(send)


class SharedResponse:
    """The `send` of neighbouring layers, and the state of the response.

    A layer calls `share_response(send)`, adds a function to `before_start` if it changes the headers or the status, and
    passes the result on as its `send`. If something between two layers wraps `send`, they have two objects of this
    class, so each layer sees the messages at its own place.
    """

    status: int | None = None
    """The status, or None before the start of the response."""
    is_complete = False
    """Whether the server has taken the last message."""
    has_failed = False
    """Whether the server has raised an `OSError`, with which it may report a closed connection."""
    headers: list[Header]
    by_name: dict[bytes, bytes]
    """The values of the headers. If there are several with one name, the last one."""

    _body: bytes | None = None  # in place of that of the application

    def __init__(self, send: Send) -> None:
        self._send = send
        self.before_start: list[Callable[[SharedResponse], None]] = []
        """Called when the response starts, the innermost layer first."""

    async def __call__(self, message: Message) -> None:
        """Send a message."""
        try:
            if message["type"] == "http.response.start":
                await self._send(self._complete(message))
                return
            self.before_body()
            if self._body is not None:
                if self.is_complete:
                    return
                message = {"type": "http.response.body", "body": self._body}
            await self._send(message)
        except OSError:
            self.has_failed = True
            raise
        self.is_complete = not message.get("more_body", False)

    def before_body(self) -> None:
        """Called before each message after the first one."""

    async def send_response(self, status: int, headers: Iterable[Header], body: bytes | memoryview) -> None:
        """Send a complete response. This is faster than two messages, and has the same effect."""
        self.status = status
        self.set_headers(headers)
        for complete in reversed(self.before_start):
            complete(self)
        try:
            await self._send({"type": "http.response.start", "status": self.status, "headers": self.headers})
            self.before_body()
            await self._send({"type": "http.response.body", "body": body if self._body is None else self._body})
        except OSError:
            self.has_failed = True
            raise
        self.is_complete = True

    def _complete(self, start: Message) -> Message:
        """A copy of the first message with the layers' headers, because an application may send the same one again."""
        self.status = start["status"]
        self.set_headers(start.get("headers", ()))
        for complete in reversed(self.before_start):
            complete(self)
        return {**start, "status": self.status, "headers": self.headers}

    def set_headers(self, headers: Iterable[Header]) -> None:
        """Replace all headers."""
        self.headers = [*headers]
        self.by_name = dict(self.headers)

    def add_missing(self, headers: Iterable[Header]) -> None:
        """Add those of the headers that the response doesn't have."""
        by_name = self.by_name
        for header in headers:
            if header[0] not in by_name:
                by_name[header[0]] = header[1]
                self.headers.append(header)

    def replace_body(self, body: bytes) -> None:
        """Send this body in place of that of the application."""
        self._body = body

    def drop_inner(self, count: int) -> None:
        """Keep only the first `count` functions of `before_start`, before a layer answers in place of inner layers."""
        del self.before_start[count:]
