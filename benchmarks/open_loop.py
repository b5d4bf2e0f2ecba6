"""A load generator with an open loop: requests are sent at a fixed rate, whether or not earlier ones are answered.

`python -m benchmarks.open_loop PORT RATE SECONDS METHOD PREFIX IDS AUTHORIZATION` prints one line of JSON.

With a closed loop (wrk), a slow server gets fewer requests, so it is never overloaded. The clients of a public service
don't wait for each other. The latency is measured from the time at which a request was due. Otherwise a request that is
sent late would seem fast ("coordinated omission").

The connections are opened before the first request, as a proxy does. A request that isn't answered within the timeout
is abandoned: its connection is closed and replaced, as a client or a proxy would do.
"""

from __future__ import annotations

import gc
import json
import random
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

TIMEOUT_SECONDS: Final = 1.0
"""The client's timeout. A response after that is of no use."""

CONNECTIONS: Final = 1_000
_OPENED_AT_A_TIME: Final = 50
_TICK_SECONDS: Final = 0.001
_MAX_LATE_SECONDS: Final = 0.05
_RECEIVED_BYTES: Final = 65_536
# The first request of a connection that is opened before the run. A server may close connections that send nothing.
_FIRST_REQUEST: Final = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Summary:
    """What happened to the requests of one run."""

    def __init__(self) -> None:
        self.sent = self.late = self.timeouts = self.broken = 0
        self.accepted: list[float] = []
        self.rejected: list[float] = []
        self.others: dict[str, int] = {}

    def to_json(self, seconds: float) -> dict[str, Any]:
        """The figures. `late` counts requests that the generator itself sent more than 50 ms late."""
        accepted, rejected = sorted(self.accepted), sorted(self.rejected)
        return {
            "sent": self.sent,
            "late": self.late,
            "goodput": len(accepted) / seconds,
            "p50": _quantile(accepted, 0.5),
            "p99": _quantile(accepted, 0.99),
            "rejected": len(rejected),
            "rejection_p50": _quantile(rejected, 0.5),
            "rejection_p99": _quantile(rejected, 0.99),
            "timeouts": self.timeouts,
            "broken": self.broken,
            "others": self.others,
        }


class _Connection:
    """A connection of the generator. It has at most one request in progress."""

    __slots__ = ("due", "is_busy", "is_connected", "is_first", "number", "received", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect_ex(("127.0.0.1", port))
        self.number = self.socket.fileno()
        self.received = b""
        self.due = 0.0
        self.is_busy = self.is_connected = self.is_first = False


class Generator:
    """Sends requests at a rate, over as many connections as are needed."""

    def __init__(self, port: int, rate: float, make_request: Callable[[], bytes], timeout: float) -> None:
        self._port, self._rate, self._timeout = port, rate, timeout
        self._make_request = make_request
        self._summary = Summary()
        self._poll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        self._in_progress: deque[tuple[float, _Connection]] = deque()
        self._waiting: deque[float] = deque()  # the due times of the requests that have no connection yet

    def run(self, seconds: float) -> Summary:
        """Send requests for this long, and wait until the last ones are answered or abandoned."""
        self._open_connections()
        gc.disable()  # a collection would delay all requests that are due
        started = time.perf_counter()
        sent, total = 0, int(self._rate * seconds)
        while sent < total or self._in_progress or self._waiting:
            now = time.perf_counter()
            due = min(total, int((now - started) * self._rate) + 1)
            self._abandon(now - self._timeout)
            self._send_waiting()
            for number in range(sent, due):
                self._send(started + number / self._rate, now)
            sent = due
            self._receive(_TICK_SECONDS)
        self._summary.sent = sent
        for each in self._connections.values():
            each.socket.close()
        return self._summary

    def _open_connections(self) -> None:
        while len(self._idle) < CONNECTIONS:
            opened = [self._connect() for _ in range(_OPENED_AT_A_TIME)]
            for each in opened:
                each.is_first = each.is_busy = True
            while any(each.is_busy for each in opened):
                self._receive(_TICK_SECONDS)
        self._summary = Summary()

    def _connect(self) -> _Connection:
        connection = _Connection(self._port)
        self._connections[connection.number] = connection
        self._poll.register(connection.number, select.EPOLLOUT)
        return connection

    def _send(self, due: float, now: float) -> None:
        """Send a request, or note that it waits for a connection."""
        self._summary.late += now - due > _MAX_LATE_SECONDS
        if self._idle:
            connection = self._idle.pop()
        elif len(self._connections) < CONNECTIONS:
            connection = self._connect()
        else:
            self._waiting.append(due)
            return
        connection.due, connection.is_busy = due, True
        self._in_progress.append((due, connection))
        if connection.is_connected:
            self._write(connection)

    def _send_waiting(self) -> None:
        while self._waiting and (self._idle or len(self._connections) < CONNECTIONS):
            self._send(self._waiting.popleft(), 0.0)

    def _write(self, connection: _Connection) -> None:
        try:
            connection.socket.send(_FIRST_REQUEST if connection.is_first else self._make_request())
            connection.is_first = False
        except OSError:
            self._lose(connection)

    def _receive(self, timeout: float) -> None:
        """Wait for events of the connections at most this long, and handle them."""
        for number, event in self._poll.poll(timeout):
            connection = self._connections.get(number)
            if connection is None:
                continue
            if not connection.is_connected:
                if event & (select.EPOLLERR | select.EPOLLHUP):
                    self._lose(connection)
                    continue
                connection.is_connected = True
                self._poll.modify(number, select.EPOLLIN)
                if connection.is_busy:
                    self._write(connection)
                continue
            try:
                data = connection.socket.recv(_RECEIVED_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if data:
                self._read(connection, connection.received + data if connection.received else data)
            else:
                self._lose(connection)

    def _read(self, connection: _Connection, data: bytes) -> None:
        """Read a response. All responses of the server have a `Content-Length`."""
        head_end = data.find(b"\r\n\r\n")
        if head_end > 0:
            start = data.find(b"ontent-", 0, head_end)
            while start > 0 and data[start + 7 : start + 15].lower() != b"length: ":
                start = data.find(b"ontent-", start + 7, head_end)
            if len(data) >= head_end + 4 + int(data[start + 15 : data.find(b"\r", start)]):
                self._answered(connection, data[9:12], data.find(b"onnection: close", 0, head_end) > 0)
                return
        connection.received = data

    def _answered(self, connection: _Connection, status: bytes, is_closing: bool) -> None:
        """Count a complete response, and release its connection."""
        connection.received = b""
        if not connection.is_busy:  # the server closes an idle connection with a response
            self._lose(connection)
            return
        seconds = time.perf_counter() - connection.due
        connection.is_busy = False
        if seconds > self._timeout:
            self._summary.timeouts += 1
        elif status.startswith(b"2"):
            self._summary.accepted.append(seconds)
        elif status == b"503":
            self._summary.rejected.append(seconds)
        else:
            text = status.decode()
            self._summary.others[text] = self._summary.others.get(text, 0) + 1
        if is_closing:
            self._close(connection)
        else:
            self._idle.append(connection)

    def _abandon(self, limit: float) -> None:
        """Close the connections of requests that were due before `limit`, and forget requests that are answered."""
        while self._in_progress:
            due, connection = self._in_progress[0]
            is_over = not connection.is_busy or connection.due != due
            if not is_over and due > limit:
                break
            self._in_progress.popleft()
            if not is_over:
                self._summary.timeouts += 1
                connection.is_busy = False
                self._close(connection)
        while self._waiting and self._waiting[0] <= limit:
            self._waiting.popleft()
            self._summary.timeouts += 1

    def _lose(self, connection: _Connection) -> None:
        if connection.is_busy:
            connection.is_busy = False
            self._summary.broken += 1
        elif connection in self._idle:
            self._idle.remove(connection)
        self._close(connection)

    def _close(self, connection: _Connection) -> None:
        del self._connections[connection.number]
        connection.socket.close()


def make_requests(method: str, prefix: str, ids: Sequence[str], authorization: str) -> Callable[[], bytes]:
    """A function that returns the bytes of the next request: a GET of a random id, or a POST of a transfer."""
    credentials = f"Authorization: {authorization}\r\n"
    draw, count = random.Random().random, len(ids)
    tail = f" HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nUser-Agent: open-loop\r\n{credentials}\r\n".encode()
    gets = [f"GET {prefix}{each}".encode() + tail for each in ids] if method == "GET" else []
    run, number = f"{time.time_ns()}-{random.getrandbits(32)}", 0

    def get() -> bytes:
        return gets[int(draw() * count)]

    def post() -> bytes:
        nonlocal number
        number += 1
        source = int(draw() * count)
        target = source - 1 - int(draw() * (count - 1))
        body = f'{{"from_account_id":"{ids[source]}","to_account_id":"{ids[target]}","amount":1}}'
        return (
            f"POST {prefix} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Idempotency-Key: {run}-{number}\r\nContent-Length: {len(body)}\r\n{credentials}\r\n{body}"
        ).encode()

    return get if method == "GET" else post


def _quantile(ordered: Sequence[float], part: float) -> float | None:
    return ordered[int(len(ordered) * part)] if ordered else None


def main() -> None:
    port, rate, seconds, method, prefix, ids, authorization = sys.argv[1:]
    make_request = make_requests(method, prefix, Path(ids).read_text().split(), authorization)
    summary = Generator(int(port), float(rate), make_request, TIMEOUT_SECONDS).run(float(seconds))
    print(json.dumps(summary.to_json(float(seconds))))


if __name__ == "__main__":
    main()
