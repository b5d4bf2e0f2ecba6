"""A load generator with an open loop: requests are sent at a fixed rate, whether or not earlier ones are answered.

`python -m benchmarks.open_loop PORT RATE SECONDS METHOD PREFIX IDS` prints one line of JSON.

With a closed loop (wrk), a slow server gets fewer requests, so it is never overloaded. The clients of a public service
don't wait for each other. The latency is measured from the time at which a request was due, so a delay of the generator
counts as well ("coordinated omission").

A request that isn't answered within the timeout is abandoned: its connection is closed, as a client would do.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, cast

import uvloop

TIMEOUT_SECONDS: Final = 1.0
"""The client's timeout. A response after that is of no use."""

_MAX_CONNECTIONS: Final = 4_000
_TICK_SECONDS: Final = 0.001
_OK: Final = b"2"
_SHED: Final = b"503"


class Summary:
    """What happened to the requests of one run."""

    def __init__(self) -> None:
        self.sent = self.timeouts = self.broken = 0
        self.accepted: list[float] = []
        self.rejected: list[float] = []
        self.others: dict[str, int] = {}

    def to_json(self, seconds: float) -> dict[str, Any]:
        accepted, rejected = sorted(self.accepted), sorted(self.rejected)
        return {
            "sent": self.sent,
            "goodput": len(accepted) / seconds,
            "accepted": len(accepted),
            "p50": _quantile(accepted, 0.5),
            "p99": _quantile(accepted, 0.99),
            "rejected": len(rejected),
            "rejection_p50": _quantile(rejected, 0.5),
            "rejection_p99": _quantile(rejected, 0.99),
            "timeouts": self.timeouts,
            "broken": self.broken,
            "others": self.others,
        }


class Connection(asyncio.Protocol):
    """One connection of the generator. It has at most one request in progress."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self.transport: asyncio.Transport | None = None
        self.due = 0.0
        self.is_busy = True
        self._received = b""
        self._length = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports aren't instances of it
        if self._generator.is_expired(self):
            self.transport.abort()
        else:
            self.transport.write(self._generator.next_request())

    def data_received(self, data: bytes) -> None:
        if self._received:
            data = self._received + data
        head_end = data.find(b"\r\n\r\n")
        if head_end < 0:
            self._received = data
            return
        start = data.lower().find(b"content-length: ", 0, head_end)
        length = int(data[start + 16 : data.find(b"\r", start)]) if start > 0 else 0
        if len(data) < head_end + 4 + length:
            self._received = data
            return
        self._received = b""
        self._generator.answered(self, data[9:12], b"connection: close" in data[:head_end].lower())

    def connection_lost(self, error: Exception | None) -> None:
        self._generator.lost(self)


class Generator:
    """Sends requests at a rate, over as many connections as are needed."""

    def __init__(self, port: int, rate: float, make_request: Callable[[], bytes], timeout: float) -> None:
        self._port, self._rate, self._timeout = port, rate, timeout
        self.next_request = make_request
        self.summary = Summary()
        self._idle: list[Connection] = []
        self._in_progress: deque[tuple[float, Connection]] = deque()
        self._waiting: deque[float] = deque()
        self._connections: set[Connection] = set()
        self._connecting: set[asyncio.Task[Any]] = set()
        self._now = time.perf_counter

    async def run(self, seconds: float) -> Summary:
        """Send requests for this long, and wait until the last ones are answered or timed out."""
        started = self._now()
        sent, total = 0, int(self._rate * seconds)
        while sent < total or self._in_progress or self._waiting:
            now = self._now()
            due = min(total, int((now - started) * self._rate) + 1)
            while self._waiting and (self._idle or len(self._connections) < _MAX_CONNECTIONS):
                self._send(self._waiting.popleft())
            while sent < due:
                self._send(started + sent / self._rate)
                sent += 1
            self._abandon_late(now)
            await asyncio.sleep(_TICK_SECONDS)
        self.summary.sent = sent
        for each in list(self._connections):
            if each.transport is not None:
                each.transport.abort()
        return self.summary

    def _send(self, due: float) -> None:
        if self._idle:
            connection = self._idle.pop()
            connection.due, connection.is_busy = due, True
            self._in_progress.append((due, connection))
            assert connection.transport is not None
            connection.transport.write(self.next_request())
        elif len(self._connections) < _MAX_CONNECTIONS:
            connection = Connection(self)
            connection.due = due
            self._connections.add(connection)
            self._in_progress.append((due, connection))
            task = asyncio.ensure_future(self._connect(connection))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)
        else:
            self._waiting.append(due)

    async def _connect(self, connection: Connection) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: connection, "127.0.0.1", self._port)
        except OSError:
            self.lost(connection)

    def is_expired(self, connection: Connection) -> bool:
        return not connection.is_busy

    def answered(self, connection: Connection, status: bytes, is_closing: bool) -> None:
        if not connection.is_busy:
            return
        seconds = self._now() - connection.due
        connection.is_busy = False
        if seconds > self._timeout:
            self.summary.timeouts += 1
        elif status.startswith(_OK):
            self.summary.accepted.append(seconds)
        elif status == _SHED:
            self.summary.rejected.append(seconds)
        else:
            text = status.decode()
            self.summary.others[text] = self.summary.others.get(text, 0) + 1
        if is_closing:
            assert connection.transport is not None
            connection.transport.close()
            self._connections.discard(connection)
        elif self._waiting:
            self._idle.append(connection)
            self._send(self._waiting.popleft())
        else:
            self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if connection.is_busy:
            connection.is_busy = False
            self.summary.broken += 1
        elif connection in self._idle:
            self._idle.remove(connection)

    def _abandon_late(self, now: float) -> None:
        """Close the connections of requests that have had their time, and forget those that are answered."""
        limit = now - self._timeout
        while self._in_progress:
            due, connection = self._in_progress[0]
            is_over = not connection.is_busy or connection.due != due
            if not is_over and due > limit:
                return
            self._in_progress.popleft()
            if not is_over:
                connection.is_busy = False
                self.summary.timeouts += 1
                self._connections.discard(connection)
                if connection.transport is not None:
                    connection.transport.abort()
        while self._waiting and self._waiting[0] <= limit:
            self._waiting.popleft()
            self.summary.timeouts += 1


def make_requests(method: str, prefix: str, ids: Sequence[str]) -> Callable[[], bytes]:
    """A function that returns the bytes of the next request: a GET of a random id, or a POST of a transfer."""
    draw, count = random.Random().random, len(ids)
    tail = b" HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nUser-Agent: open-loop\r\n\r\n"
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
            f"Idempotency-Key: {run}-{number}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    return get if method == "GET" else post


def _quantile(ordered: Sequence[float], part: float) -> float | None:
    return ordered[int(len(ordered) * part)] if ordered else None


def main() -> None:
    port, rate, seconds, method, prefix, ids = sys.argv[1:]
    requests = make_requests(method, prefix, Path(ids).read_text().split())

    async def run() -> dict[str, Any]:
        generator = Generator(int(port), float(rate), requests, TIMEOUT_SECONDS)
        return (await generator.run(float(seconds))).to_json(float(seconds))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(run())))


if __name__ == "__main__":
    main()
