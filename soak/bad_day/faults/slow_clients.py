"""Clients that are slow, stop, or never read.

`max_hold_seconds` is the service's limit (`soak.bad_day.deployment`), and a few seconds more.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import orjson

from soak.bad_day.faults.fault import Attackers
from soak.bad_day.timeline import Tolerance
from soak.bad_day.wire import open_streams
from soak.identity import ADMIN_LINE

UNFINISHED = "unfinished"
"""The prefix of the email addresses in uploads that are never finished."""
_SMALL_BUFFER = 4_096


class StalledUploads(Attackers):
    """Bulk uploads that stop after 1,001 lines."""

    name = "stalled-uploads"
    count = 30
    max_hold_seconds = 8

    async def attack(self, rng: random.Random) -> None:
        address = f"{UNFINISHED}-{rng.getrandbits(64):x}"
        lines = b"".join(
            orjson.dumps({"email": f"{address}-{n}@example.com", "name": "A"}) + b"\n" for n in range(1001)
        )
        head = (
            b"POST /users/bulk HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-ndjson\r\n"
            b"Transfer-Encoding: chunked\r\n%b\r\n" % ADMIN_LINE
        )
        async with _connection(self) as (reader, writer):
            writer.write(head + b"%x\r\n%b\r\n" % (len(lines), lines))
            await writer.drain()
            await reader.read()  # until the service closes the connection


class SlowExports(Attackers):
    """Exports that are read at 20 kB/s."""

    name = "slow-exports"
    count = 30

    async def attack(self, rng: random.Random) -> None:
        async with _connection(self, receive_bytes=_SMALL_BUFFER) as (reader, writer):
            writer.write(b"GET /orders/export HTTP/1.1\r\nHost: 127.0.0.1\r\n%b\r\n" % ADMIN_LINE)
            while await reader.read(2_000):
                await asyncio.sleep(0.1)


class UnreadAnswers(Attackers):
    """Pipelined requests whose answers are never read.

    Until the buffers of all connections are full, these are thousands of long lists. That is more than the service can
    handle, so it must reject some requests.
    """

    name = "unread-answers"
    count = 40
    tolerance = Tolerance(max_unavailable=0.4)

    async def attack(self, rng: random.Random) -> None:
        async with _connection(self, receive_bytes=_SMALL_BUFFER) as (_, writer):
            transport = writer.transport
            assert isinstance(transport, asyncio.ReadTransport)
            transport.pause_reading()
            path = rng.choice((b"/accounts", b"/transfers", b"/users", b"/orders"))
            for _ in range(200):  # more than the kernel buffers
                writer.write(b"GET %b?limit=200 HTTP/1.1\r\nHost: 127.0.0.1\r\n%b\r\n" % (path, ADMIN_LINE))
            await asyncio.sleep(self.seconds)


class SlowHeaders(Attackers):
    """Slowloris: headers that never end."""

    name = "slow-headers"
    count = 300
    max_hold_seconds = 8

    async def attack(self, rng: random.Random) -> None:
        async with _connection(self) as (reader, writer):
            writer.write(b"GET /users HTTP/1.1\r\nHost: 127.0.0.1\r\n")
            await _send_slowly(reader, writer, b"X-Header: 1\r\n", lambda: rng.uniform(0.5, 1.5))


class SlowBodies(Attackers):
    """Bodies that are sent byte by byte."""

    name = "slow-bodies"
    count = 50
    max_hold_seconds = 11

    async def attack(self, rng: random.Random) -> None:
        async with _connection(self) as (reader, writer):
            writer.write(
                b"POST /transfers HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                b"Idempotency-Key: %x\r\nContent-Length: 500\r\n%b\r\n{" % (rng.getrandbits(64), ADMIN_LINE)
            )
            await _send_slowly(reader, writer, b" ", lambda: rng.uniform(0.2, 1.0))


class IdleConnections(Attackers):
    """Connections without a request."""

    name = "idle-connections"
    count = 600

    async def attack(self, rng: random.Random) -> None:
        async with _connection(self) as (reader, _):
            await reader.read()


@asynccontextmanager
async def _connection(
    fault: Attackers, receive_bytes: int | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that is cut at the end."""
    reader, writer = await open_streams(fault.target.deployment.address, receive_bytes=receive_bytes)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def _send_slowly(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, part: bytes, choose_pause: Callable[[], float]
) -> None:
    """Send the part again and again, until the service ends the connection."""
    ended = asyncio.ensure_future(reader.read())  # `at_eof` would be false while the response is unread
    try:
        while not ended.done():
            writer.write(part)
            await writer.drain()
            await asyncio.wait([ended], timeout=choose_pause())
        await ended
    finally:
        ended.cancel()
