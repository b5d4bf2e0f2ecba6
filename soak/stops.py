"""Stop `shop serve` under load, again and again. No request may fail.

    python -m soak.stops --stops 20 --clients 32
    python -m soak.stops --workers 2

Clients send requests over keep-alive connections, and never send a request twice. They connect again after a response
with `Connection: close`, and end when the service refuses connections. Half of the stops have a pause. With
`--workers`, all workers are replaced (SIGHUP) before each stop. The run passes if no connection was reset or closed
without a response, every response is 200, and the exit code of the service is 0.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import psutil

from soak.identity import ADMIN, ADMIN_LINE
from soak.server import ShopServer, shop_server
from soak.service import Service

_LOAD_SECONDS = 1.0
_END_SECONDS = 60.0
_RELOAD_SECONDS = 300.0  # the clients and the new workers share the processors


@dataclass
class Stops:
    """The results of all clients, in all stops."""

    answers: int = 0
    connections: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """From SIGTERM to the end of the process."""


async def run_client(port: int, request: bytes, stops: Stops) -> None:
    """Send requests until the service refuses connections."""
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            return
        except OSError as error:
            stops.failures[f"connect: {error!r}"] += 1
            return
        stops.connections += 1
        try:
            is_open = True
            while is_open:
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
                stops.answers += 1
                if not head.startswith(b"http/1.1 200"):
                    stops.failures[head[:12].decode()] += 1
                is_open = b"connection: close" not in head
        except (OSError, EOFError) as error:
            stops.failures[f"request: {error!r}"] += 1
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def reload(service: Service) -> None:
    """Replace all workers, and wait until they have ended."""
    old = {each.pid for each in psutil.Process(service.pid).children()}
    (tracker,) = (
        each.pid for each in psutil.Process(service.pid).children() if "resource_tracker" in each.cmdline()[-1]
    )
    service.send_signal(signal.SIGHUP)
    async with asyncio.timeout(_RELOAD_SECONDS):
        while {each.pid for each in psutil.Process(service.pid).children()} & old != {tracker}:
            await asyncio.sleep(0.1)


async def stop_once(server: ShopServer, pause: float, options: argparse.Namespace, stops: Stops) -> None:
    """Start the service, send requests to it, reload it if it has several workers, and stop it."""
    service = Service(
        server.url,
        server.folder / "service.log",
        SHOP_SHUTDOWN_PAUSE=str(pause),
        SHOP_WORKERS=str(options.workers),
    )
    service.start()
    try:
        await service.wait_until_ready()
        async with httpx.AsyncClient(base_url=service.address, headers=ADMIN, timeout=30) as client:
            email = f"user-{time.monotonic_ns()}@example.com"
            user = str((await client.post("/users", json={"email": email, "name": "Ada"})).json()["id"])
        request = b"GET /users/%b HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % (user.encode(), ADMIN_LINE)
        tasks = [asyncio.create_task(run_client(service.port, request, stops)) for _ in range(options.clients)]
        await asyncio.sleep(_LOAD_SECONDS)
        if options.workers > 1:
            await reload(service)
        started = time.monotonic()
        service.send_signal(signal.SIGTERM)
        await asyncio.wait_for(asyncio.gather(*tasks), _END_SECONDS)
        code = await asyncio.to_thread(service.wait)
        stops.seconds.append(time.monotonic() - started)
        if code:
            stops.failures[f"exit code {code}"] += 1
    finally:
        service.kill()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args(arguments)
    stops = Stops()
    with shop_server({"max_connections": "500"}) as server:
        for number in range(options.stops):
            asyncio.run(stop_once(server, float(number % 2), options, stops))
    print(f"{options.stops} stops, {stops.connections:,} connections, {stops.answers:,} answers")
    print(f"from SIGTERM to the end: {min(stops.seconds):.1f} s to {max(stops.seconds):.1f} s")
    for failure, count in stops.failures.most_common():
        print(f"FAILED {count} times: {failure}")
    print("no request failed" if not stops.failures else "requests failed")
    return 1 if stops.failures else 0


if __name__ == "__main__":
    sys.exit(main())
