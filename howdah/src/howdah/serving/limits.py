"""The limits of a server."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Final

PROBE_PATHS: Final = frozenset({"/healthz", "/readyz"})
METRICS_PATH: Final = "/metrics"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Limits for the clients of a server. Sizes are in bytes, times in seconds. Raises `ValueError`.

    - `max_connections` are served at a time. Those with an incomplete header don't count. For a further one, the
      connection that has been idle longest is closed, or, if none has been idle for a second, it gets a 503.
    - `reserved_connections` are accepted in addition, for requests to `reserved_paths` only.
    - `max_unfinished_connections` may have an incomplete header for more than a second. If there are more, the oldest
      of them get a 503.
    - `max_header_bytes` and `max_headers` limit the request line and the headers (431). The former also limits the
      bytes of a chunked body that aren't data, such as trailers (400).
    - `header_timeout` is the time from the first byte of a request, or from the connection, to the end of the header
      (408).
    - `body_timeout` is the longest time without a byte of the body, while the application waits for one (408).
    - `write_timeout` is the time in which the client must read the contents of the server's write buffer, up to
      64 KiB. After that the connection is aborted.
    - `keep_alive_timeout` closes a connection without a request. It must be longer than that of a proxy in front of
      the server. Otherwise the proxy may use a connection that is being closed. nginx has 75 s, an AWS ALB
      60 s.
    - `max_pipelined_requests` may wait for the one in progress. Then the connection is closed after their responses.
    - `max_websocket_message_bytes` limits a message of a WebSocket, which is otherwise closed with the code 1009.
    """

    max_connections: int = 1_000
    reserved_connections: int = 50
    reserved_paths: frozenset[str] = PROBE_PATHS | {METRICS_PATH}
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
        check_positive(self)


def check_positive(limits: Any) -> None:
    """Raise `ValueError` unless each number of the dataclass is finite and more than 0."""
    for field in fields(limits):
        value = getattr(limits, field.name)
        if isinstance(value, int | float) and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{field.name} of {type(limits).__name__} must be more than 0, not {value!r}")
