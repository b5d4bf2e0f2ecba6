"""Limits for the body of a request: its size, and the time in which it must arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from http import HTTPStatus
from types import CoroutineType
from typing import Final

from fastapi import Request, Response
from starlette.types import Message, Receive, Scope

from howdah.fastapi._shared_response import SharedResponse
from howdah.fastapi._time_limits import resume
from howdah.fastapi.problem import ProblemException, problem_response

DEFAULT_MAX_BODY_BYTES: Final = 1_048_576
DEFAULT_MAX_BODY_SECONDS: Final = 30.0

# The key of the request's `LimitedBody` in the ASGI scope.
_BODY_KEY: Final = "howdah.body"
# Set by FastAPI and Starlette while they enforce the `max_body_size` of an application, a router or a route.
_OWN_LIMIT_KEY: Final = "starlette.max_body_size"
# A larger body may take longer: one second more for each part of this size.
_BYTES_PER_SECOND: Final = 65_536


class BodyTooLarge(ProblemException):
    """The body is larger than the application or the route accepts (413, `body-too-large`, with `max_bytes`)."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        super().__init__(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "body-too-large",
            f"the body may have at most {max_bytes} bytes: send less in one request",
            headers={"Connection": "close"},
            max_bytes=max_bytes,
        )


class BodyTimeout(ProblemException):
    """The body arrived too slowly (408, `body-timeout`)."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.REQUEST_TIMEOUT,
            "body-timeout",
            "the body did not arrive in time: send it without pauses",
            headers={"Connection": "close"},
        )


class BodyLimiter:
    """Stops reading a body that is too large or too slow.

    A `Content-Length` above the limit is rejected before anything is read, so a client that sends
    `Expect: 100-continue` sends no body at all. A body in chunks is counted while it is read. The limits apply when the
    application reads the body. A route that doesn't read it isn't affected.

    A `max_body_size` of the application, the router or the route, which FastAPI enforces, replaces `max_bytes`. A
    mounted application with a limiter has its own limits. `max_seconds` counts only the time in which the application
    waits for the client.
    """

    def __init__(self, *, max_bytes: int | None, max_seconds: float | None) -> None:
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds

    def limit(self, scope: Scope, receive: Receive, response: SharedResponse) -> LimitedBody | None:
        """The limited body of the request: use its `receive`, and call its `end`.

        None if the request has no body, or if an outer application limits it. In the second case the limits of this
        application replace the outer ones.
        """
        outer = scope.get(_BODY_KEY)
        if isinstance(outer, LimitedBody):
            outer.max_bytes, outer.max_seconds = self._max_bytes, self._max_seconds
            return None
        length = _find_length(scope)
        if length is None:
            return None
        body = scope[_BODY_KEY] = LimitedBody(scope, receive, response, length)
        body.max_bytes, body.max_seconds = self._max_bytes, self._max_seconds
        return body


def lift_body_limits(request: Request) -> None:
    """Let this request's body have any size and take any time, except for FastAPI's own `max_body_size`.

    `read_lines` and `BodyRows` do this, because they have limits of their own. Call it in a route that reads
    `request.stream()` with constant memory, and that has a limit of its own.
    """
    body = request.scope.get(_BODY_KEY)
    if isinstance(body, LimitedBody):
        body.max_bytes = body.max_seconds = None
        body.is_lifted = True


class LimitedBody:
    """The `receive` of one request with a body."""

    __slots__ = (
        *("_length", "_receive", "_response", "_scope", "_size", "_waited"),
        *("is_lifted", "max_bytes", "max_seconds"),
    )

    max_bytes: int | None
    max_seconds: float | None

    def __init__(self, scope: Scope, receive: Receive, response: SharedResponse, length: int) -> None:
        self._scope = scope
        self._receive = receive
        self._response = response
        self.is_lifted = False
        self._length = length
        self._size = 0
        self._waited = 0.0

    def end(self) -> None:
        """Remove the body from the scope, at the end of the request.

        Otherwise the scope, the response and the body would refer to each other. Only the garbage collector would free
        them, which costs 20 µs for each request.
        """
        self._scope.pop(_BODY_KEY, None)

    def replace_plain_413(self, response: SharedResponse) -> None:
        """Replace Starlette's own 413, which is a plain text, by a problem."""
        limit = self._scope.get(_OWN_LIMIT_KEY)
        if limit is None or response.status != HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return
        if response.by_name.get(b"content-type", b"").startswith(b"text/plain"):
            problem = build_limit_response(BodyTooLarge(limit))
            response.set_headers(problem.raw_headers)
            response.replace_body(bytes(problem.body))

    async def receive(self) -> Message:
        """The next part of the body. Raises `BodyTooLarge` and `BodyTimeout`."""
        max_bytes = None if self.is_lifted else self._scope.get(_OWN_LIMIT_KEY, self.max_bytes)
        if max_bytes is not None and max(self._length, self._size) > max_bytes:
            return self._fail(BodyTooLarge(max_bytes))
        receiving = self._receive()
        if self.max_seconds is None or self._response.status is not None or not isinstance(receiving, CoroutineType):
            message = await receiving
        else:
            try:
                waiting_for = receiving.send(None)
            except StopIteration as finished:  # the usual case: the body has arrived. It saves a timer, and so 8 µs
                message = finished.value
            else:
                try:
                    message = await self._wait(resume(receiving, waiting_for), self.max_seconds)
                except TimeoutError:
                    return self._fail(BodyTimeout())
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            if max_bytes is not None and self._size > max_bytes:
                return self._fail(BodyTooLarge(max_bytes))
        return message

    async def _wait(self, receiving: Awaitable[Message], max_seconds: float) -> Message:
        """The next message. Raises `TimeoutError` if the client has used up the time for the body."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout_at(started + max_seconds + self._size / _BYTES_PER_SECOND - self._waited):
                return await receiving
        finally:
            self._waited += loop.time() - started

    def _fail(self, error: ProblemException) -> Message:
        """Raise the error, unless the response has started. Then Starlette reads only to notice a disconnect."""
        if self._response.status is not None:
            return {"type": "http.disconnect"}
        raise error


def _find_length(scope: Scope) -> int | None:
    """The `Content-Length`, 0 for a body without a valid one, or None if the request has no body."""
    # In HTTP/2 a body needs no header. A program that calls the application without a server may leave the version out.
    length = None if scope.get("http_version", "1.1").startswith("1") else 0
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value[:20]) if value.isdigit() else 0
        if name == b"transfer-encoding":
            length = 0
    return length


def build_limit_response(error: ProblemException) -> Response:
    """The response for `BodyTooLarge` and `BodyTimeout`."""
    return problem_response(error.status_code, error.code, detail=error.detail, headers=error.headers, **error.members)
