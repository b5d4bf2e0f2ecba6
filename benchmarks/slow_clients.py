"""slow-clients: the throughput of a route while other clients send and receive very slowly."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import make_url

from benchmarks.comparison import Comparison, Contender, ContenderFailed, Goal, Measured
from benchmarks.http_load import QUICK_WINDOW_SECONDS, WINDOW_SECONDS, HttpServer, skip_reason
from benchmarks.identity import AUTHORIZATION
from benchmarks.postgres import connect_driver
from benchmarks.processes import run_module

if TYPE_CHECKING:
    from benchmarks.postgres import Connections

_CONNECTIONS: Final = 64
_SLOW_CLIENTS: Final = 200
_STALLED_AFTER_LINES: Final = 1_001
_EXPORT_BYTES_PER_SECOND: Final = 20_000
_PIPELINED_LISTS: Final = 40
_ACCOUNTS: Final = 1_000
_RECEIVE_BUFFER_BYTES: Final = 2_048
"""Larger buffers of the kernel would hold a whole response, so the service would not notice the slow client."""
_SETTLING_SECONDS: Final = 180
"""The first responses fill the buffers of the kernel. Until then these clients are as much work as fast ones. So the
measurement begins when ten requests in a row have been answered quickly, or after this time."""
_QUICK_SECONDS: Final = 0.1
_QUICK_ANSWERS: Final = 10
_RECONNECT_SECONDS: Final = 1


class SlowClients(Comparison):
    name = "slow-clients"
    description = (
        f"`GET /users/{{{{id}}}}` of `shop serve` over {_CONNECTIONS} connections, alone and with {_SLOW_CLIENTS} slow "
        f"clients: uploads to `/users/bulk` that stall after {_STALLED_AFTER_LINES:,} lines, exports of {{size}} "
        f"orders read at {_EXPORT_BYTES_PER_SECOND // 1000} kB/s, and {_PIPELINED_LISTS} pipelined lists that are "
        "never read. A slow client connects again when the service has disconnected it"
    )
    unit = "requests"
    size = 20_000
    quick_size = 5_000
    has_warm_up = False
    max_seconds = 300.0
    _ALONE, _WITH_SLOW_CLIENTS = "no slow clients", f"{_SLOW_CLIENTS} slow clients"
    _USERS: Final = 2_000

    def __init__(self, connections: Connections, size: int, *, rounds: int = 5, is_quick: bool = False) -> None:
        super().__init__(connections, size, rounds=rounds, is_quick=is_quick)
        url = make_url(connections.url)
        self.database = f"{url.database}_slow"
        self.url = url.set(database=self.database).render_as_string(hide_password=False)

    async def skip_reason(self) -> str | None:
        return skip_reason()

    async def set_up(self) -> None:
        await self._drop_database()
        await self.connections.driver.execute(f'CREATE DATABASE "{self.database}"')
        ids = [f"00000000-0000-7000-8000-{number:012x}" for number in range(1, self._USERS + 1)]
        self.server = HttpServer(
            *("-c", "from shop.cli import main; main()", "serve", "--port", "{port}"),
            url=self.url,
            ids=ids,
            authorization=AUTHORIZATION,
            window_seconds=QUICK_WINDOW_SECONDS if self.is_quick else WINDOW_SECONDS,
        )
        await run_module("benchmarks.transfer_loads", self.url, "fill", str(_ACCOUNTS))  # migrates
        await self.server.start()
        async with connect_driver(self.url) as connection:
            await connection.execute(
                """
                INSERT INTO users (id, email, name, created_at, updated_at, version)
                SELECT id, 'customer-' || number || '@example.com', 'Customer ' || number, now(), now(), 1
                FROM unnest($1::uuid[]) WITH ORDINALITY AS input (id, number)
                """,
                ids,
            )
            await connection.execute(
                """
                INSERT INTO orders (id, user_id, status, currency, total_cents, placed_at, created_at, updated_at,
                    version)
                SELECT gen_random_uuid(), ($1::uuid[])[1 + n % cardinality($1::uuid[])], 'paid', 'GBP', n,
                    now() - n * interval '1 minute', now(), now(), 1
                FROM generate_series(1, $2::int) AS n
                """,
                ids,
                self.count,
            )
            await connection.execute("VACUUM ANALYZE")

    async def tear_down(self) -> None:
        if hasattr(self, "server"):
            await self.server.stop()
        await self._drop_database()

    async def _drop_database(self) -> None:
        await self.connections.driver.execute(f'DROP DATABASE IF EXISTS "{self.database}" WITH (FORCE)')

    def contenders(self) -> list[Contender]:
        return [
            Contender(self._ALONE, "baseline", lambda: self.server.measure_load("/users/", _CONNECTIONS), 1),
            Contender(self._WITH_SLOW_CLIENTS, "howdah", self._measure_with_slow_clients, 1),
        ]

    def goals(self) -> list[Goal]:
        return [Goal(self._WITH_SLOW_CLIENTS, "times as fast", 0.8, self._ALONE)]

    async def reset(self, contender: Contender) -> None:
        """Nothing to restore: every round with slow clients begins with a new process of the service."""

    async def verify(self, contender: Contender, returned: Any) -> None:
        """`measure_load` raises an error if a request fails."""

    async def _measure_with_slow_clients(self) -> Measured:
        try:
            async with self.server.replaced_on_failure(), _slow_clients(self.server.port):
                await self._settle()
                return await self.server.measure_load("/users/", _CONNECTIONS, is_shared=True)
        finally:
            await self.server.stop_process()

    async def _settle(self) -> None:
        """Wait until the service answers quickly."""
        await asyncio.sleep(_RECONNECT_SECONDS)
        deadline, quick = time.monotonic() + _SETTLING_SECONDS, 0
        while quick < _QUICK_ANSWERS and time.monotonic() < deadline:
            started = time.monotonic()
            with suppress(ContenderFailed):
                await self.server.get_body("/users/00000000-0000-7000-8000-000000000001")
            quick = quick + 1 if time.monotonic() - started < _QUICK_SECONDS else 0
            await asyncio.sleep(_QUICK_SECONDS)


@asynccontextmanager
async def _slow_clients(port: int) -> AsyncIterator[None]:
    """Slow clients of all kinds, until the end of the block."""
    kinds = (_stall_upload, _read_export_slowly, _stall_upload, _read_export_slowly, _ignore_lists)
    tasks = [
        asyncio.create_task(_connect_for_ever(port, kinds[number % len(kinds)])) for number in range(_SLOW_CLIENTS)
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _connect_for_ever(port: int, use: Callable[[socket.socket], Awaitable[None]]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            connection.setblocking(False)
            with suppress(OSError):
                await loop.sock_connect(connection, ("127.0.0.1", port))
                await use(connection)
        await asyncio.sleep(_RECONNECT_SECONDS)


async def _stall_upload(connection: socket.socket) -> None:
    """Send the beginning of a body, and then nothing until the service closes the connection."""
    loop, name = asyncio.get_running_loop(), id(connection)
    headers = "Content-Type: application/x-ndjson\r\nContent-Length: 1000000\r\n"
    await loop.sock_sendall(connection, _head("POST /users/bulk", headers))
    for number in range(_STALLED_AFTER_LINES):
        row = {"email": f"slow-{name}-{number}@example.com", "name": "Slow"}
        await loop.sock_sendall(connection, json.dumps(row).encode() + b"\n")
    await _read(connection, bytes_per_second=_EXPORT_BYTES_PER_SECOND)


async def _read_export_slowly(connection: socket.socket) -> None:
    request = _head("GET /orders/export", "Connection: close\r\n")
    await asyncio.get_running_loop().sock_sendall(connection, request)
    await _read(connection, bytes_per_second=_EXPORT_BYTES_PER_SECOND)


async def _ignore_lists(connection: socket.socket) -> None:
    lists = b"".join(_head(f"GET /{name}?limit=1000") for name in ("accounts", "orders"))
    await asyncio.get_running_loop().sock_sendall(connection, lists * (_PIPELINED_LISTS // 2))
    await asyncio.get_running_loop().create_future()


def _head(request: str, headers: str = "") -> bytes:
    return f"{request} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {AUTHORIZATION}\r\n{headers}\r\n".encode()


async def _read(connection: socket.socket, *, bytes_per_second: int) -> None:
    """Read until the service closes the connection."""
    while await asyncio.get_running_loop().sock_recv(connection, bytes_per_second):  # noqa: ASYNC110
        await asyncio.sleep(1)
