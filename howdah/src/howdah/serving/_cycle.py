"""One request and its response: the ASGI messages, and the bytes that they become.

The ASGI specification allows a server to keep the start of a response until the first part of its body. So both are
sent by one system call, and in one packet, and an error in between can still become a response with the status 500.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeAlias

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.server import ServerState

from howdah.serving._heads import HeadEncoder, RawHeaders

_LOG: Final = logging.getLogger("uvicorn.error")
_ERROR_HEADERS: Final = (
    (b"content-type", b"text/plain; charset=utf-8"),
    (b"content-length", b"21"),
    (b"connection", b"close"),
)
_ERROR_BODY: Final = b"Internal Server Error"
# Joining a head with a larger body would copy too much.
_MAX_COPIED_BYTES: Final = 65_536

Message: TypeAlias = Any
App: TypeAlias = Callable[
    [Any, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


class Connection(Protocol):
    """The connection of a request."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    flow: FlowControl
    tasks: set[asyncio.Task[None]]
    responses: Responses
    server_state: ServerState

    def finish(self) -> None:
        """Close the connection, because its last response is complete, or can't be completed."""
        ...

    def on_response_complete(self) -> None:
        """Start the next request of the connection."""
        ...


class Responses:
    """What the responses of one server share."""

    def __init__(self) -> None:
        self.heads = HeadEncoder()
        self._waiting: list[RequestCycle] = []

    def send_soon(self, cycle: RequestCycle, loop: asyncio.AbstractEventLoop) -> None:
        """In the next iteration of the event loop, send the head of the response, unless a part of the body was sent.

        So a stream whose first part takes long begins at once. All heads of an iteration share one callback.
        """
        waiting = self._waiting
        if not waiting:
            loop.call_soon(self._send_waiting)
        waiting.append(cycle)

    def _send_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for cycle in waiting:
            cycle.send_head()


class RequestCycle:
    """One request. `LimitedHttpProtocol` creates it, and reads and sets its public attributes."""

    __slots__ = (
        "_connection",
        "_event",
        "_head",
        "_is_notified",
        "_is_without_body",
        "_rest",
        "_task",
        "body",
        "disconnected",
        "is_silent",
        "keep_alive",
        "more_body",
        "response_complete",
        "response_started",
        "scope",
        "waiting_for_100_continue",
    )

    def __init__(
        self,
        scope: dict[str, Any],
        connection: Connection,
        keep_alive: bool,
        waits_for_100_continue: bool,
    ) -> None:
        self.scope = scope
        self._connection = connection
        self._task: asyncio.Task[None] | None = None
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = waits_for_100_continue
        self.disconnected = False
        self.is_silent = False  # an error of the application is expected, and not logged
        self.body: bytes | bytearray = b""  # received, and not yet read by the application
        self.more_body = True
        self._is_notified = False
        self._event: asyncio.Event | None = None
        self.response_started = False
        self.response_complete = False
        self._head: bytes | None = None  # not yet sent
        self._is_without_body = False
        self._rest: int | None = 0  # the bytes of the body that must follow, or None for chunks

    # The protocol's calls

    def start(self, app: App) -> None:
        """Create the task that runs the application."""
        tasks = self._connection.tasks
        self._task = task = self._connection.loop.create_task(self._run(app))
        tasks.add(task)

    def add_body(self, data: bytes) -> int:
        """Add a part of the body. Returns the number of bytes that the application hasn't read."""
        body = self.body
        if not body:
            self.body = data
        elif isinstance(body, bytearray):
            body += data
        else:
            self.body = bytearray(body + data)
        self.notify()
        return len(self.body)

    def notify(self) -> None:
        """Wake the application if it receives, because a part of the body, its end, or a disconnect has arrived."""
        self._is_notified = True
        if self._event is not None:
            self._event.set()

    def disconnect(self) -> None:
        """Tell the application that the client has gone."""
        if not self.response_complete:
            self.disconnected = True
        self.notify()
        if self._task is not None and self._task.done():  # cancelled before its first step, so `_run` never began
            self._connection.tasks.discard(self._task)

    def withdraw(self) -> bool:
        """Forget the response if no byte of it was sent. Returns whether another one may be sent instead."""
        if self.response_started and self._head is None:
            return False
        self._head = None
        return True

    def send_head(self) -> None:
        """Send the head now if it wasn't sent."""
        head, self._head = self._head, None
        if head is not None and not self.disconnected:
            self._connection.transport.write(head)

    # The task

    async def _run(self, app: App) -> None:
        try:
            result = await app(self.scope, self.receive, self.send)  # type: ignore[func-returns-value]
            if not self.response_complete or result is not None:
                self._report_incomplete(result)
        except BaseException as error:
            if not self.is_silent:
                _LOG.error("Exception in ASGI application\n", exc_info=error)
            self._end_with_error()
        finally:
            task, self._task = self._task, None
            if task is not None:
                self._connection.tasks.discard(task)

    def _report_incomplete(self, result: object) -> None:
        if result is not None:
            _LOG.error("ASGI callable should return None, but returned '%s'.", result)
        elif self.disconnected:
            return
        elif not self.response_started:
            _LOG.error("ASGI callable returned without starting response.")
        else:
            _LOG.error("ASGI callable returned without completing response.")
        self._end_with_error()

    def _end_with_error(self) -> None:
        """Send a response with the status 500, or close the connection if the application's response has begun.

        After a complete response, for example in a background task, the connection may already have another request.
        """
        if self.response_complete:
            return
        if not self.withdraw():
            self._connection.finish()
        elif not self.disconnected:
            connection = self._connection
            is_head = self.scope["method"] == "HEAD"
            default_headers = connection.server_state.default_headers
            head, _, _ = connection.responses.heads.encode(500, _ERROR_HEADERS, default_headers, False, is_head)
            connection.transport.write(head if is_head else head + _ERROR_BODY)
            self.response_started = True
            self.keep_alive = False
            self._complete()
        self.disconnected = True  # another task of the application may still send

    # ASGI

    async def receive(self) -> Message:
        """The next part of the body, or the disconnect."""
        connection = self._connection
        if self.waiting_for_100_continue and not connection.transport.is_closing():
            connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not (self.disconnected or self.response_complete):
            if connection.flow.read_paused:
                connection.flow.resume_reading()
            if not self._is_notified:
                if self._event is None:
                    self._event = asyncio.Event()
                self._event.clear()
                await self._event.wait()
            self._is_notified = False
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self.body = self.body, b""
        return {"type": "http.request", "body": bytes(body), "more_body": self.more_body}

    async def send(self, message: Message) -> None:
        """Send the start of the response, or a part of its body. Raises `RuntimeError` for any other order."""
        connection = self._connection
        if connection.flow.write_paused and not self.disconnected:
            await connection.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.response_started:
            if kind != "http.response.start":
                raise RuntimeError(f"Expected ASGI message 'http.response.start', but got '{kind}'.")
            self._start_response(message["status"], message.get("headers", ()))
        elif self.response_complete:
            raise RuntimeError(f"Unexpected ASGI message '{kind}' sent, after response already completed.")
        elif kind != "http.response.body":
            raise RuntimeError(f"Expected ASGI message 'http.response.body', but got '{kind}'.")
        else:
            more_body = message.get("more_body", False)
            self._send_body(message.get("body", b""), more_body)
            if not more_body:
                self._complete()

    def _start_response(self, status: int, headers: RawHeaders) -> None:
        """Encode the head, and keep it for the first part of the body."""
        connection = self._connection
        responses = connection.responses
        is_head = self.scope["method"] == "HEAD"
        self._head, length, self.keep_alive = responses.heads.encode(
            status, headers, connection.server_state.default_headers, self.keep_alive, is_head
        )
        self._rest = length
        # The headers of a 304 describe the body that the client has, as those for HEAD describe that of a GET.
        self._is_without_body = is_head or (status == 304 and length != 0)
        self.response_started = True
        self.waiting_for_100_continue = False
        responses.send_soon(self, connection.loop)

    def _send_body(self, body: bytes, more_body: bool) -> None:
        """Send a part of the body, with the head if it wasn't sent."""
        transport = self._connection.transport
        if self._is_without_body:
            body = b""
        elif self._rest is None:
            if body:
                body = b"%x\r\n%b\r\n" % (len(body), body)
            if not more_body:
                body += b"0\r\n\r\n"
        else:
            rest = self._rest = self._rest - len(body)
            if rest < 0:
                raise RuntimeError("Response content longer than Content-Length")
            if rest and not more_body:
                if self._head is None:
                    transport.write(body)
                raise RuntimeError("Response content shorter than Content-Length")
        head = self._head
        if head is None:
            transport.write(body)
            return
        self._head = None
        if len(body) <= _MAX_COPIED_BYTES:
            transport.write(head + body)
        else:
            transport.writelines((head, body))

    def _complete(self) -> None:
        self.response_complete = True
        self.notify()
        connection = self._connection
        if not self.keep_alive:
            connection.finish()
        connection.on_response_complete()
