"""The requests in progress: a limit for their number, and the cancellation of those whose client has disconnected.

Without this middleware, a service continues to work for clients that have disconnected. Many of them try again, for
example after a timeout. So the service has less and less time for the clients that are still connected.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Collection
from contextlib import suppress
from threading import get_ident
from typing import Any, Final

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from howdah.fastapi._shared_response import SharedResponse
from howdah.fastapi.disconnects import mark_client_gone
from howdah.fastapi.load_limit import TICK_SECONDS, LoadLimiter, Overloaded
from howdah.fastapi.path_methods import get_route_path
from howdah.fastapi.problem import NO_SNIFF, NO_STORE, PROBLEM_JSON
from howdah.serving._problems import OVERLOADED, RETRY_AFTER_SECONDS
from howdah.serving._scope_keys import REPORTS_DISCONNECTS_KEY, REQUEST_KEY

# In the ASGI scope, for a request that `LoadLimiter.expect` has counted.
_EXPECTED_KEY: Final = "howdah.expected"
# With another server than that of `howdah.serving`, only requests that take longer are watched, because watching needs
# a task. With 0.1 s, the throughput under overload was a third lower.
_WATCHED_AFTER_SECONDS: Final = 0.5
# So many probes may be in progress without a limit. Further ones are limited like other requests.
_MAX_EXEMPT: Final = 32

_BODY: Final = OVERLOADED.encode_body()
_HEADERS: Final = [
    [
        (b"content-type", PROBLEM_JSON.encode()),
        (b"content-length", str(len(_BODY)).encode()),
        (b"retry-after", str(seconds).encode()),
        NO_STORE,
        NO_SNIFF,
    ]
    for seconds in RETRY_AFTER_SECONDS
]
# Complete responses without the status line and the server's own headers. The first of a pair has no body, for HEAD.
_RESPONSES: Final = [
    (head := b"".join(b"%b: %b\r\n" % header for header in headers) + b"\r\n", head + _BODY) for headers in _HEADERS
]


async def finish_without_client(connection: HTTPConnection) -> None:
    """A dependency for a route that must not be cancelled if its client disconnects.

        @router.post("/payments", dependencies=[Depends(finish_without_client)])

    Declare it for a route that changes something outside of the database, such as a payment, and records it afterwards.
    """
    protect(connection)


def protect(connection: HTTPConnection) -> None:
    """From now on, don't cancel the request: its next steps must be done even if its client disconnects."""
    request = connection.scope.get(REQUEST_KEY)
    if isinstance(request, _Request):
        request.is_protected = True


class RequestsInProgress:
    """The requests of one application that are in progress or wait. `LimitRequests` is its middleware.

    The requests of `exempt_paths` are not limited.
    """

    def __init__(
        self, limiter: LoadLimiter | None, *, cancel_abandoned: bool, exempt_paths: Collection[str] = ()
    ) -> None:
        self.limiter = limiter
        self.abandoned = 0
        self._cancel_abandoned = cancel_abandoned
        self._exempt_paths = frozenset(exempt_paths)
        self._exempt = 0
        self._watched: dict[_Request, None] = {}
        """The requests whose server doesn't report a disconnect, in the order of their start."""
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    def is_full(self) -> bool:
        """Whether new requests are rejected, except those of `exempt_paths`."""
        return self.limiter is not None and self.limiter.is_full()

    def reject(self, path: str) -> bytes | None:
        """The response that rejects a GET request, or None if its path is exempt. Call it only if `is_full()`.

        A server can call it before it parses the header, which saves most of the work for a rejected request. The
        response lacks its status line (503): the server adds it, and may add headers.
        """
        limiter = self.limiter
        if limiter is None or (path in self._exempt_paths and self._exempt < _MAX_EXEMPT):
            return None
        limiter.count_rejected()
        return _RESPONSES[int(random.random() * len(_RESPONSES))][1]  # noqa: S311

    def admit(self, scope: Scope) -> bytes | None:
        """The response that rejects a request, or None if its task may be created. See `reject`."""
        limiter = self.limiter
        if limiter is None or self._is_exempt(scope):
            return None
        if limiter.is_full():
            limiter.count_rejected()
            head, response = random.choice(_RESPONSES)  # noqa: S311
            return head if scope["method"] == "HEAD" else response
        limiter.expect()
        scope[_EXPECTED_KEY] = True
        return None

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application for one request if it is admitted."""
        is_closing = scope.get(REPORTS_DISCONNECTS_KEY)
        if is_closing is not None and self._cancel_abandoned and is_closing():
            await self._ignore(scope, receive)
            return
        task = self._find_task()
        is_expected = _EXPECTED_KEY in scope
        is_exempt = not is_expected and self._is_exempt(scope)
        self._exempt += is_exempt
        limiter = None if is_exempt else self.limiter
        request = _Request(scope, receive, send, task)
        if not self._cancel_abandoned:
            request.is_protected = True
        if is_closing is None:
            self._watched[request] = None
        try:
            if limiter is not None:
                if not limiter.try_enter(request.loop):
                    await limiter.enter(is_expected=is_expected)
                    request.started = request.loop.time()
                request.limiter = limiter
            await app(scope, request.receive, request)
        except Overloaded:
            await send({"type": "http.response.start", "status": 503, "headers": random.choice(_HEADERS)})  # noqa: S311
            await send({"type": "http.response.body", "body": _BODY})
        except asyncio.CancelledError:
            if not request.is_abandoned or request.task.uncancel() > 0:
                raise
            self.abandoned += 1
        finally:
            if is_closing is None:
                self._watched.pop(request, None)
            request.end()
            self._exempt -= is_exempt

    async def _ignore(self, scope: Scope, receive: Receive) -> None:
        """Do nothing for a request whose client disconnected before the request was read."""
        self.abandoned += 1
        mark_client_gone(scope)
        while (await receive())["type"] != "http.disconnect":  # otherwise the server would report a missing response
            pass

    def _is_exempt(self, scope: Scope) -> bool:
        return get_route_path(scope) in self._exempt_paths and self._exempt < _MAX_EXEMPT

    def _find_task(self) -> asyncio.Task[Any]:
        """The current task. Its loop is noted, and the timer is started if it isn't running.

        In the thread of the last request, the loop of that request is tried first. In Python 3.11, `current_task()`
        without a loop makes a system call.
        """
        task = None
        if self._loop is not None and self._thread == get_ident():
            task = asyncio.current_task(self._loop)  # None if another loop runs in this thread
        if task is None:
            task = asyncio.current_task()
            assert task is not None
        if self._timer is None or task.get_loop() is not self._loop:
            self._start_timer(task.get_loop())
        return task

    def _start_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not loop:  # a test may start the application in several loops
            self._loop, self._thread, self._exempt = loop, get_ident(), 0
            self._watched.clear()
            if self.limiter is not None:
                self.limiter.reset()
        if self.limiter is not None:
            self.limiter.start_interval(loop.time())
        self._timer = loop.call_later(TICK_SECONDS, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        """Adapt the limit, and watch the clients of requests that take long."""
        if loop is not self._loop:
            return
        if not self._watched and (self.limiter is None or self.limiter.is_idle()):
            self._timer = None
            return
        self._timer = loop.call_later(TICK_SECONDS, self._tick, loop)
        now = loop.time()
        if self.limiter is not None:
            self.limiter.tick(now)
        if self._cancel_abandoned:
            for request in self._watched:
                if now - request.since < _WATCHED_AFTER_SECONDS:
                    return  # the following ones have started later
                request.watch()


class LimitRequests:
    """ASGI middleware that limits the requests in progress, and cancels those whose client has gone.

    A rejected request gets a 503 with `Retry-After`.

    The task of a request is cancelled if its client disconnects before the response has started, unless a `DbSession`
    is being committed (`protect`). After the response has started, the request isn't cancelled: a stream ends by
    itself, and background tasks run. `howdah.serving` reports a disconnect immediately. With another server, a
    disconnect is noticed only in requests that take longer than 0.5 s.
    """

    def __init__(self, app: ASGIApp, requests: RequestsInProgress) -> None:
        self._app = app
        self._requests = requests

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Run the application if the request is admitted. A mounted application's requests are admitted only once."""
        if scope["type"] != "http" or REQUEST_KEY in scope:
            return self._app(scope, receive, send)
        return self._requests.run(self._app, scope, receive, send)


class _Request(SharedResponse):
    """One request: its state, and its messages between the server and the application."""

    limiter: LoadLimiter | None = None
    """The limiter that counts the request."""
    is_protected = False
    is_abandoned = False

    _has_ended = False
    _is_in_body = False
    _is_receiving = False  # the application itself gets the disconnect
    _ahead: deque[Message] | None = None
    _pending: asyncio.Task[Message] | None = None

    def __init__(self, scope: Scope, receive: Receive, send: Send, task: asyncio.Task[Any]) -> None:
        super().__init__(send)
        self._scope = scope
        self._receive = receive
        self.loop = task.get_loop()
        self.task = task
        self.since = self.started = self.loop.time()
        scope[REQUEST_KEY] = self

    def end(self) -> None:
        """Stop counting the request, because the application has returned."""
        if self.limiter is not None:
            self.before_body()
        self._has_ended = True
        # Otherwise the scope and this object would refer to each other, and only the garbage collector would free them.
        self._scope.pop(REQUEST_KEY, None)
        if self._pending is not None:
            self._pending.cancel()

    def before_body(self) -> None:
        """Stop counting the request. After that its response is complete, or a stream."""
        limiter = self.limiter
        if limiter is not None:
            self.limiter = None
            if not self._is_in_body:
                limiter.leave(self.loop.time() - self.started)

    async def receive(self) -> Message:
        """The next message of the server. While the client sends a long body, the request isn't counted."""
        self._is_receiving = True
        try:
            message = await (self._receive() if self._ahead is None else self._receive_watched(self._ahead))
        finally:
            self._is_receiving = False
        limiter = self.limiter
        if limiter is not None:
            is_in_body = message["type"] == "http.request" and message.get("more_body", False)
            if is_in_body is not self._is_in_body:
                self._is_in_body = is_in_body
                if is_in_body:
                    limiter.pause()
                else:
                    limiter.resume()
                    self.started = self.loop.time()
        return message

    def _is_answered(self) -> bool:
        """Whether the response has started, or the application has returned without one."""
        return self._has_ended or self.status is not None

    def watch(self) -> None:
        """Begin to receive messages ahead of the application, in order to notice a disconnect."""
        if self._pending is None and not self._is_answered() and not self._is_receiving:
            if self._ahead is None:
                self._ahead = deque()
            elif self._ahead:
                return  # one message ahead is enough: the body may be long
            self._receive_ahead()

    def _receive_ahead(self) -> None:
        self._pending = self.loop.create_task(self._receive_message())
        self._pending.add_done_callback(self._received)

    async def _receive_message(self) -> Message:
        return await self._receive()

    def _received(self, pending: asyncio.Task[Message]) -> None:
        self._pending = None
        if pending.cancelled() or self._ahead is None:
            return
        if pending.exception() is not None:
            return  # the application gets the error when it receives the next message
        message = pending.result()
        self._ahead.append(message)
        if message["type"] == "http.disconnect":
            self.handle_disconnect()
        elif not message.get("more_body", False):
            self._receive_ahead()

    async def _receive_watched(self, ahead: deque[Message]) -> Message:
        if not ahead:
            if self._pending is None:
                return await self._receive()
            with suppress(Exception):
                await asyncio.shield(self._pending)
            if not ahead:
                return await self._receive()
        message = ahead[0]
        if message["type"] != "http.disconnect":
            ahead.popleft()
        return message

    def handle_disconnect(self) -> None:
        """Cancel the task, unless the response has started."""
        if self._is_answered() or self.is_protected or self.is_abandoned:
            return
        self.is_abandoned = True
        mark_client_gone(self._scope)
        self.task.cancel()
