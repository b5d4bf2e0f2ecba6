"""All connections of a server. Their number is limited, and those that exceed a time limit are closed."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

from howdah.serving import _problems
from howdah.serving._cycle import Responses
from howdah.serving._protocol import LimitedHttpProtocol, Phase
from howdah.serving.draining import StopState
from howdah.serving.limits import ServerLimits

# How long the server waits for the client to close its side of a connection, after the server has closed its own.
_LINGER_SECONDS: Final = 2.0
_LINGER_SECONDS_AT_STOP: Final = 0.5
_MAX_LINGERING: Final = 256
# How long the rest of a body is read and ignored after the response.
_DISCARD_SECONDS: Final = 10.0
# A connection that became idle just now may get its next request at any moment, so it isn't closed to make room
# for another one.
_MIN_IDLE_SECONDS: Final = 1.0
# The requests of a burst of new connections arrive in this time. An incomplete header that is older gives way.
_MIN_UNFINISHED_SECONDS: Final = 1.0

_HEADER: Final = Phase.HEADER
_IDLE: Final = Phase.IDLE
_CLOSING: Final = Phase.CLOSING


class Connections:
    """The connections of one server, in the order in which they entered their phase."""

    def __init__(self, limits: ServerLimits, stop: StopState) -> None:
        self.limits = limits
        self.stop = stop
        self.responses = Responses()
        self.all: set[Any] = set()  # the set of uvicorn's ServerState, including WebSockets
        self._unfinished: dict[LimitedHttpProtocol, None] = {}
        self._idle: dict[LimitedHttpProtocol, None] = {}
        self._closing: dict[LimitedHttpProtocol, None] = {}
        self._max_idle_at_stop: float | None = None
        self._idle_counts_from = 0.0
        self._blocked: dict[Any, tuple[int, float]] = {}  # WebSockets: bytes in the buffer, and since when

    def count(self) -> int:
        """The number of connections, without those that are being closed."""
        return len(self.all) - len(self._closing)

    def count_complete(self, connection: LimitedHttpProtocol) -> int:
        """The number of connections whose header is complete, and this one."""
        return self.count() - len(self._unfinished) + (connection in self._unfinished)

    def add(self, connection: LimitedHttpProtocol) -> bool:
        """Add a new connection. Returns whether it exceeds `max_connections`: then it may only request a probe."""
        limits, unfinished = self.limits, self._unfinished
        unfinished[connection] = None
        is_extra = self.count() > limits.max_connections
        if is_extra:
            idle = next(iter(self._idle), None)
            if idle is not None and connection.since - idle.since > _MIN_IDLE_SECONDS:
                idle.linger()
        for each in (*islice(unfinished, max(0, len(unfinished) - limits.max_unfinished_connections)),):
            if connection.since - each.since <= _MIN_UNFINISHED_SECONDS:
                break
            each.reject(_problems.TOO_MANY_CONNECTIONS)
        if self.count() > limits.max_connections + limits.reserved_connections:
            next(iter(unfinished)).reject(_problems.TOO_MANY_CONNECTIONS)
        return is_extra

    def move(self, connection: LimitedHttpProtocol, phase: Phase) -> None:
        """Change the phase of a connection. The time of the new phase begins now."""
        old = connection.phase
        if old is _IDLE:
            self._idle.pop(connection, None)
        elif old is _HEADER:
            self._unfinished.pop(connection, None)
        connection.phase = phase
        connection.since = connection.loop.time()
        if phase is _IDLE:
            self._idle[connection] = None
        elif phase is _HEADER:
            self._unfinished[connection] = None
        elif phase is _CLOSING:
            self._closing[connection] = None
            if len(self._closing) > _MAX_LINGERING:
                next(iter(self._closing)).transport.abort()

    def remove(self, connection: LimitedHttpProtocol) -> None:
        """Forget a connection that is closed, or that became a WebSocket."""
        for each in (self._unfinished, self._idle, self._closing):
            each.pop(connection, None)

    def close_idle(self, *, after: float, now: float) -> None:
        """From now on, close connections that are idle for `after` seconds. The time before `now` doesn't count."""
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
        """Close the connection if it has exceeded the time limit of its phase, or doesn't read its response."""
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
                connection.since = now  # the timeout starts when the application waits for the body
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
        """Abort a WebSocket whose write buffer has had the same size for `write_timeout`."""
        size = connection.transport.get_write_buffer_size()
        if not size:
            return
        before = blocked.get(connection)
        since = now if before is None or before[0] != size else before[1]
        if now - since > self.limits.write_timeout:
            connection.transport.abort()
        else:
            self._blocked[connection] = (size, since)

    def list_http(self) -> Iterable[LimitedHttpProtocol]:
        """The connections that aren't WebSockets."""
        return [each for each in self.all if isinstance(each, LimitedHttpProtocol)]
