"""uvicorn's HTTP protocol with limits. `_connections` closes the connections that exceed a time limit."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from enum import Enum, auto
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

import httptools
from uvicorn.config import Config
from uvicorn.server import ServerState

from howdah.serving import _problems
from howdah.serving._admission import AdmittingHttpProtocol
from howdah.serving._problems import ServerProblem

if TYPE_CHECKING:
    from howdah.serving._connections import Connections

# A chunk of a body has at least 5 bytes in addition to its data. So a body in chunks of one byte is accepted.
_MAX_OVERHEAD_PER_BYTE: Final = 8
# The bytes that a client may still send after its response. They are read and ignored, so that the client can read the
# response before the connection is closed.
_MAX_DISCARDED_BYTES: Final = 16_777_216


class Phase(Enum):
    """The state of a connection."""

    HEADER = auto()  # from the connection, or from the first byte, to the end of the header
    REQUEST = auto()  # a request is in progress
    DISCARDING = auto()  # the response is complete, but the body isn't: the rest of the body is ignored
    IDLE = auto()  # between two requests
    CLOSING = auto()  # the server's side is closed: further bytes of the client are ignored


# Looking up a global name is faster than a member of an enum, and each request needs a dozen look-ups.
_HEADER: Final = Phase.HEADER
_REQUEST: Final = Phase.REQUEST
_DISCARDING: Final = Phase.DISCARDING
_IDLE: Final = Phase.IDLE
_CLOSING: Final = Phase.CLOSING


class _Rejected(Exception):
    """Raised in a callback of the parser, so that it stops."""

    def __init__(self, problem: ServerProblem) -> None:
        super().__init__(problem.code)
        self.problem = problem


# What a callback of the parser raises for a request: a limit, a target that is no URL, or a path that isn't ASCII.
_EXPECTED_ERRORS: Final = (_Rejected, httptools.HttpParserError, UnicodeDecodeError)


class LimitedHttpProtocol(AdmittingHttpProtocol):
    """One connection, with limits. The server closes it after a `ServerProblem`.

    The server closes only its own side first. For a short time it still reads the client's bytes. Otherwise the
    client's kernel would get a reset, and might drop a response that the client hasn't read.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        group: Connections,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.group = group
        self.responses = group.responses
        self.limits = group.limits
        self.phase = _HEADER
        self.since = self.loop.time()  # when the phase began; in a body, when its last byte arrived
        self.blocked_since: float | None = None  # when the client stopped reading
        self._is_extra = False
        self._is_in_header = False  # the parser has a part of a header
        self._is_complete = True  # the parser has no part of a message
        self._is_last = False  # no request is accepted after this one
        self._chunk_bytes = 0  # of the last read
        self._header_bytes = 0  # in the reads since the header began
        self._starts_with_read = True  # whether the next message begins with the data that was read
        self._body_bytes = 0
        self._received_bytes = 0  # since the header or the response; one read may be counted in part

    # The transport's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Add the connection. Another one may be closed to make room for it."""
        super().connection_made(cast(asyncio.Transport, transport))
        self._context = copy_context()
        self._is_extra = self.group.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.phase = _CLOSING
        self.group.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Give the data to the parser, unless a limit is exceeded."""
        size = self._chunk_bytes = len(data)
        if self.phase is _CLOSING or self._is_last:
            self._discard(size)
            return
        if (
            self.phase is _IDLE
            and self.admission is not None
            and not (self._is_extra or self.group.stop.is_draining or size > self.limits.max_header_bytes)
            and self.reject_unparsed(data)
        ):
            self.group.move(self, _IDLE)
            return
        self._starts_with_read = self._is_complete and self.phase is not _REQUEST
        if self._is_in_header or self.phase is _HEADER:
            self._header_bytes += size
        else:
            self._header_bytes = 0
            self._received_bytes += size
        try:
            is_websocket = self.feed(data)
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, Exception) and not isinstance(cause, _EXPECTED_ERRORS):
                self.logger.exception("the server failed to read a request", exc_info=cause)
            elif not isinstance(cause, _Rejected):
                self.logger.info("invalid HTTP request: %s", error)
            self.reject(cause.problem if isinstance(cause, _Rejected) else _problems.INVALID_REQUEST)
        else:
            if is_websocket:
                self._become_websocket()
            elif self.phase is not _REQUEST or not self._is_complete:
                self._check_unfinished()

    def _check_unfinished(self) -> None:
        """Check the limits of a header or body that is incomplete."""
        if self.phase is _CLOSING:
            return
        if self.phase is _IDLE:
            self.group.move(self, _HEADER)
        if self._is_in_header or self.phase is _HEADER:
            if self._header_bytes > self.limits.max_header_bytes:
                self.reject(_problems.HEADER_TOO_LARGE)
        elif not self._is_complete:
            self.since = self.loop.time()
            if self.phase is _DISCARDING:
                if self._received_bytes > _MAX_DISCARDED_BYTES:
                    self.transport.abort()
                return
            overhead = self._received_bytes - self._body_bytes
            if overhead > self.limits.max_header_bytes + _MAX_OVERHEAD_PER_BYTE * self._body_bytes:
                self.reject(_problems.INVALID_REQUEST)

    def resume_writing(self) -> None:
        self.blocked_since = None
        super().resume_writing()
        if not self.pipeline:
            self.flow.resume_reading()

    # The parser's callbacks

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._is_complete = False
        self._is_in_header = True
        self._header_bytes = self._chunk_bytes if self._starts_with_read else 0
        self._starts_with_read = False

    def on_headers_complete(self) -> None:
        """Check the header, and start the request or queue it."""
        limits = self.limits
        if self._is_last:
            raise _Rejected(_problems.INVALID_REQUEST)
        if len(self.headers) > limits.max_headers or (
            self._header_bytes + self._chunk_bytes > limits.max_header_bytes
            and self._count_header_bytes() > limits.max_header_bytes
        ):
            raise _Rejected(_problems.HEADER_TOO_LARGE)
        if self.phase is _HEADER:
            self._check_extra()
        # A read that is smaller than the limit needs no exact count.
        is_counted = limits.max_header_bytes < self._chunk_bytes == self._header_bytes
        self._received_bytes = self._chunk_bytes - self._count_header_bytes() if is_counted else 0
        previous = self.cycle
        super().on_headers_complete()
        self._is_in_header = False
        self._header_bytes = self._body_bytes = 0
        cycle = self.cycle
        if cycle is previous:  # an upgrade
            return
        if self._is_extra or self.expect_100_continue or self.group.stop.is_draining:
            # If a client that waits for 100 gets another response, it may still send the body, or omit it.
            cycle.keep_alive = False
        if len(self.pipeline) >= limits.max_pipelined_requests:
            cycle.keep_alive = False
            self._is_last = True
        if self.phase is _REQUEST:
            self.since = self.loop.time()
        else:
            self.group.move(self, _REQUEST)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_complete = True
        self._received_bytes = self._body_bytes = 0
        cycle = self.get_receiving()
        if cycle is not None:
            cycle.more_body = False
            cycle.notify()
        elif self.phase is _DISCARDING:
            self._become_idle()

    # The request's callbacks

    def on_response_complete(self) -> None:
        """Start the next request of the pipeline, or wait for one."""
        self.server_state.total_requests += 1
        if self.phase is _CLOSING or self.transport.is_closing():
            return
        if self.pipeline:
            # The task of the previous request calls this. Its context variables, such as its principal in the log, must
            # not be those of the next request.
            self._context.run(self.start, self.pipeline.pop())
            if not self.pipeline:
                self.flow.resume_reading()
            return
        if self.flow.read_paused and not self.flow.write_paused:
            self.flow.resume_reading()
        if self._is_complete:
            self._become_idle()
        elif self._is_in_header:
            self.group.move(self, _HEADER)
        else:
            self._received_bytes = 0
            self.group.move(self, _DISCARDING)

    def finish(self) -> None:
        """Close the connection after a response with `Connection: close`, or after an error of the application."""
        if self.phase is _CLOSING or self.transport.is_closing():
            return
        if self._is_complete and not self.pipeline and not self.group.stop.is_draining:
            self.transport.close()
        else:
            self.linger()

    # The server's calls

    @property
    def is_unused(self) -> bool:
        """Whether no byte of the next request has arrived."""
        return self.phase is _IDLE or (self._is_complete and not self._header_bytes)

    @property
    def is_waiting_for_body(self) -> bool:
        """Whether the client must send the next byte of a body now."""
        return (
            not (self._is_complete or self._is_in_header)
            and not self.flow.read_paused
            and not self.cycle.waiting_for_100_continue
        )

    def reject(self, problem: ServerProblem) -> None:
        """Send the problem, unless a response has begun, and close the connection."""
        if self.phase is _CLOSING or self.transport.is_closing():
            return
        cycle = self.cycle
        if self.phase is _DISCARDING:  # its request has been answered
            self.linger()
            return
        if cycle is not None and not cycle.response_complete:
            if self._is_in_header or self._is_complete:  # the problem belongs to a later request
                cycle.keep_alive = False
                self._is_last = True
                return
            if self.pipeline or not cycle.withdraw():
                self.transport.abort()
                return
            cycle.disconnect()  # for the application, which waits for the body
        if self.is_unused and problem.status == HTTPStatus.REQUEST_TIMEOUT:
            self.transport.close()  # without a response, because there was no request
            return
        self.transport.write(problem.encode(self.server_state.default_headers))
        self.linger()

    def linger(self) -> None:
        """Close the server's side of the connection. Read until the client closes its own, for a short time."""
        self.pipeline.clear()
        self._received_bytes = 0
        self.group.move(self, _CLOSING)
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.flow.resume_reading()
        else:  # TLS
            self.transport.close()

    def shutdown(self) -> None:
        """Close the connection after the request in progress. An idle one is closed by `Connections.close_idle`."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and not cycle.response_started:
            cycle.keep_alive = False

    def cancel(self, problem: ServerProblem) -> None:
        """Answer the request in progress with the problem, because the server cancels its task next."""
        cycle = self.running
        if cycle is None or cycle.response_complete or self.transport.is_closing():
            return
        cycle.is_silent = True
        if not cycle.withdraw():
            self.transport.abort()  # so that the client sees that the response is incomplete
        elif self.phase is not _CLOSING:
            self.transport.write(problem.encode(self.server_state.default_headers))
            self.linger()
        cycle.disconnected = True

    def _become_idle(self) -> None:
        self._header_bytes = 0
        self.group.move(self, _IDLE)

    def _discard(self, size: int) -> None:
        """Count bytes that nobody needs. Abort the connection if there are too many."""
        self._received_bytes += size
        if self._received_bytes > _MAX_DISCARDED_BYTES:
            self.transport.abort()

    def _check_extra(self) -> None:
        """Reject the first request of a connection above the limit, unless it is a probe.

        Incomplete headers don't count, so that they don't keep requests out.
        """
        self._is_extra = self.group.count_complete(self) > self.limits.max_connections
        if self._is_extra and self.url.partition(b"?")[0].decode("latin-1") not in self.limits.reserved_paths:
            raise _Rejected(_problems.TOO_MANY_CONNECTIONS)

    def _count_header_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _become_websocket(self) -> None:
        self.group.remove(self)
        self.phase = _CLOSING  # the transport calls another protocol from now on
        self.handle_websocket_upgrade()
