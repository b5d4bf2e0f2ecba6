"""All connections of a server: how many there may be, and which ones have exceeded a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from howdah.serving import _problems
from howdah.serving._protocol import LimitedHttpProtocol, Phase
from howdah.serving.draining import StopState
from howdah.serving.limits import ServerLimits

# How long a closed connection waits for the client to close its side.
_LINGER_SECONDS: Final = 2.0
_LINGER_SECONDS_AT_STOP: Final = 0.5
_MAX_LINGERING: Final = 256
# How long a response may be complete while the client still sends the body.
_DISCARD_SECONDS: Final = 10.0
# A connection that became idle just now may get its next request at any moment, so it isn't closed for another one.
_MIN_IDLE_SECONDS: Final = 1.0
# A new connection that has sent its request already is read within so many iterations of the event loop: one for the
# transport to start, one to wait for data, and one to call the protocol.
_ITERATIONS_UNTIL_READ: Final = 3
# The batch of a connection that the server has read from.
_NO_BATCH: Final = 0

_HEADER: Final = Phase.HEADER
_IDLE: Final = Phase.IDLE
_CLOSING: Final = Phase.CLOSING


class Connections:
    """The connections of one server, in the order in which they entered their phase."""

    def __init__(self, limits: ServerLimits, stop: StopState) -> None:
        self.limits = limits
        self.stop = stop
        self.all: set[Any] = set()  # those of uvicorn's ServerState, with WebSockets
        self._unfinished: dict[LimitedHttpProtocol, int] = {}  # with the number of the batch that was accepted together
        self._batch = _NO_BATCH + 1
        self._is_rejecting = False  # whether the connections of this batch and of those before are rejected soon
        self._idle: dict[LimitedHttpProtocol, None] = {}
        self._closing: dict[LimitedHttpProtocol, None] = {}
        self._max_idle_at_stop: float | None = None
        self._idle_counts_from = 0.0
        self._blocked: dict[Any, tuple[int, float]] = {}  # WebSockets: bytes in the buffer, and since when

    def count(self) -> int:
        """The number of connections, without those that are being closed."""
        return len(self.all) - len(self._closing)

    def count_finished(self) -> int:
        """The number of connections that have sent a complete header, and aren't being closed."""
        return self.count() - len(self._unfinished)

    def add(self, connection: LimitedHttpProtocol) -> bool:
        """Count a new connection. Returns whether there are too many now, so that it may only send a probe."""
        limits = self.limits
        self._unfinished[connection] = self._batch
        count = self.count()
        is_extra = count > limits.max_connections
        if is_extra:
            idle = next(iter(self._idle), None)
            if idle is not None and connection.since - idle.since > _MIN_IDLE_SECONDS:
                idle.linger()
        if self._has_too_many() and not self._is_rejecting:
            self._is_rejecting = True
            connection.loop.call_soon(self._reject_unfinished, connection.loop, _ITERATIONS_UNTIL_READ)
        return is_extra

    def _has_too_many(self) -> bool:
        """Whether connections with an incomplete header must be rejected."""
        limits = self.limits
        return (
            len(self._unfinished) > limits.max_unfinished_connections
            or self.count() > limits.max_connections + limits.reserved_connections
        )

    def _reject_unfinished(self, loop: asyncio.AbstractEventLoop, iterations: int) -> None:
        """Reject the oldest connections with an incomplete header, after this number of iterations of the event loop.

        Many connections may be accepted at once. Before their requests have been read, all of them look unfinished.
        """
        if iterations:
            loop.call_soon(self._reject_unfinished, loop, iterations - 1)
            return
        batch, self._batch = self._batch, self._batch + 1
        while self._has_too_many():
            oldest = next(iter(self._unfinished), None)
            if oldest is None:
                break
            if self._unfinished[oldest] > batch:
                loop.call_soon(self._reject_unfinished, loop, _ITERATIONS_UNTIL_READ)
                return
            oldest.reject(_problems.TOO_MANY_CONNECTIONS)
            self._unfinished.pop(oldest, None)
        self._is_rejecting = False

    def move(self, connection: LimitedHttpProtocol, old: Phase, new: Phase) -> None:
        """Note that the phase changes."""
        if old is _IDLE:
            self._idle.pop(connection, None)
        elif old is _HEADER:
            self._unfinished.pop(connection, None)
        if new is _IDLE:
            self._idle[connection] = None
        elif new is _HEADER:
            self._unfinished[connection] = _NO_BATCH
        elif new is _CLOSING:
            self._closing[connection] = None
            if len(self._closing) > _MAX_LINGERING:
                next(iter(self._closing)).transport.abort()

    def remove(self, connection: LimitedHttpProtocol) -> None:
        """Forget a connection that is closed, or that became a WebSocket."""
        for each in (self._unfinished, self._idle, self._closing):
            each.pop(connection, None)

    def close_idle(self, *, after: float, now: float) -> None:
        """From now on, close connections that have been idle for so long, counted from now at the earliest."""
        self._max_idle_at_stop = after
        self._idle_counts_from = now

    def check_times(self, now: float) -> None:
        """Close the connections that have exceeded a time limit."""
        blocked, self._blocked = self._blocked, {}
        for connection in tuple(self.all):
            if isinstance(connection, LimitedHttpProtocol):
                self._check(connection, now)
            else:
                self._check_websocket(connection, now, blocked)

    def _check(self, connection: LimitedHttpProtocol, now: float) -> None:
        limits, elapsed = self.limits, now - connection.since
        if not connection.transport.get_write_buffer_size():
            connection.blocked_since = None
        elif connection.blocked_since is None:
            connection.blocked_since = now
        elif now - connection.blocked_since > limits.write_timeout:
            connection.transport.abort()
            return
        match connection.phase:
            case Phase.REQUEST if not connection.is_waiting_for_body:
                connection.since = now  # the client's time starts when the application waits for it
            case Phase.REQUEST if elapsed > limits.body_timeout:
                connection.reject(_problems.BODY_TIMEOUT)
            case Phase.IDLE if elapsed > limits.keep_alive_timeout or self._is_idle_for_too_long(connection, now):
                connection.linger()
            case Phase.HEADER if elapsed > limits.header_timeout:
                connection.reject(_problems.HEADER_TIMEOUT)
            case Phase.HEADER if connection.is_unused and self._is_idle_for_too_long(connection, now):
                connection.transport.close()
            case Phase.DISCARDING if elapsed > _DISCARD_SECONDS:
                connection.linger()
            case Phase.CLOSING if elapsed > self._linger_seconds and connection.blocked_since is None:
                connection.transport.close()

    @property
    def _linger_seconds(self) -> float:
        return _LINGER_SECONDS if self._max_idle_at_stop is None else _LINGER_SECONDS_AT_STOP

    def _is_idle_for_too_long(self, connection: LimitedHttpProtocol, now: float) -> bool:
        if self._max_idle_at_stop is None:
            return False
        return now - max(connection.since, self._idle_counts_from) > self._max_idle_at_stop

    def _check_websocket(self, connection: Any, now: float, blocked: dict[Any, tuple[int, float]]) -> None:
        """Abort a WebSocket whose buffer has stayed as it is for `write_timeout`."""
        size = connection.transport.get_write_buffer_size()
        if not size:
            return
        before = blocked.get(connection)
        since = now if before is None or before[0] != size else before[1]
        if now - since > self.limits.write_timeout:
            connection.transport.abort()
        else:
            self._blocked[connection] = (size, since)

    def http(self) -> Iterable[LimitedHttpProtocol]:
        """The connections that aren't WebSockets."""
        return [each for each in self.all if isinstance(each, LimitedHttpProtocol)]
