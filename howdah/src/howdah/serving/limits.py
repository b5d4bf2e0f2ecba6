"""The limits of a server."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

_PATHS_OF_PROBES = frozenset({"/healthz", "/readyz", "/metrics"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What a client may use of a server. Sizes are in bytes, times in seconds. Raises `ValueError`.

    - `max_connections` are served at a time. If all of them have a request in progress, a further one gets a 503. If
      some are idle or haven't sent a complete header, the oldest of those is closed instead.
    - `reserved_connections` are accepted on top of that, for requests to `reserved_paths` only.
    - `max_unfinished_connections` may have an incomplete header. If there are more, the oldest one gets a 503.
    - `max_header_bytes` and `max_headers` limit the request line and the headers (431), and also what a chunked body
      has besides its data, such as trailers (400).
    - `header_timeout` is the time from the first byte of a request, or from the connection, to the end of the header
      (408).
    - `body_timeout` is the longest time without a byte of the body, while the application waits for one (408).
    - `write_timeout` is the time in which the client must read what fills the server's buffer: up to 64 KiB. After
      that the connection is aborted.
    - `keep_alive_timeout` closes a connection without a request. It must be longer than that of a proxy in front of
      the server, because otherwise the proxy may use a connection that is being closed. nginx has 75 s, an AWS ALB
      60 s.
    - `max_pipelined_requests` may wait for the one in progress. Then the connection is closed after their responses.
    - `max_websocket_message_bytes` limits a message of a WebSocket, which is otherwise closed with the code 1009.
    """

    max_connections: int = 1_000
    reserved_connections: int = 50
    reserved_paths: frozenset[str] = _PATHS_OF_PROBES
    max_unfinished_connections: int = 200
    max_header_bytes: int = 16_384
    max_headers: int = 100
    header_timeout: float = 10.0
    body_timeout: float = 15.0
    write_timeout: float = 30.0
    keep_alive_timeout: float = 90.0
    max_pipelined_requests: int = 16
    max_websocket_message_bytes: int = 1_048_576

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{field.name} must be more than 0, not {value!r}")
