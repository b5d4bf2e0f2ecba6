"""Compare the limits of HTTP servers: python -m benchmarks.server_limits

Each server has the strictest options that it offers, and gets the same bad clients. The table has the result of each
client: a status, `closed` without a response, or `held` if nothing happened within the window. It is not a part of
`make bench`, because speed isn't compared. The comparison `servers` measures the speed.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import psutil

_WINDOW_SECONDS: Final = 6.0
_LIMIT_SECONDS: Final = 2
_GET: Final = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
_POST: Final = b"POST / HTTP/1.1\r\nHost: test\r\n"
_CONNECTIONS: Final = 300
_STOPS: Final = 3
_LOAD_SECONDS: Final = 0.5
_MB: Final = 1_000_000

_APP: Final = "benchmarks.server_limits:app"
_SERVERS: Final = {
    "howdah.serving": ("-m", "benchmarks.server_limits", "--serve", "{port}"),
    "uvicorn, httptools": (
        *("-m", "uvicorn", _APP, "--port", "{port}", "--http", "httptools", "--log-level", "critical"),
        *("--timeout-keep-alive", str(_LIMIT_SECONDS), "--limit-concurrency", "200", "--no-access-log"),
        *("--timeout-graceful-shutdown", str(_LIMIT_SECONDS)),
    ),
    "uvicorn, h11": (
        *("-m", "uvicorn", _APP, "--port", "{port}", "--http", "h11", "--log-level", "critical", "--no-access-log"),
        *("--timeout-keep-alive", str(_LIMIT_SECONDS), "--limit-concurrency", "200"),
        *("--h11-max-incomplete-event-size", "16384", "--timeout-graceful-shutdown", str(_LIMIT_SECONDS)),
    ),
    "granian": (
        *("-m", "granian", _APP, "--port", "{port}", "--interface", "asgi", "--no-ws", "--log-level", "critical"),
        *("--http1-header-read-timeout", str(_LIMIT_SECONDS * 1000), "--http1-buffer-size", "16384"),
        *("--backpressure", "200", "--workers-kill-timeout", str(_LIMIT_SECONDS)),
    ),
    "hypercorn": (
        *("-m", "hypercorn", _APP, "--bind", "127.0.0.1:{port}", "--log-level", "CRITICAL", "--worker-class", "uvloop"),
        *("--keep-alive", str(_LIMIT_SECONDS), "--read-timeout", str(_LIMIT_SECONDS)),
        *("--graceful-timeout", str(_LIMIT_SECONDS)),
    ),
}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Read the body and answer. `/big` sends 50 MB."""
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    has_more = True
    while has_more:
        message = await receive()
        has_more = message.get("more_body", False)
    body = b"x" * 50_000_000 if scope["path"] == "/big" else b"ok"
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@dataclass(frozen=True, slots=True)
class _Server:
    port: int
    process: psutil.Process

    def memory(self) -> int:
        processes = [self.process, *self.process.children(recursive=True)]
        return int(sum(each.memory_info().rss for each in processes)) // _MB


async def _see(server: _Server, sent: bytes, *, later: bytes = b"") -> str:
    """Send these bytes, and return the client's result: a status, `closed`, `reset` or `held`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    started = time.perf_counter()
    try:
        writer.write(sent)
        if later:
            await asyncio.sleep(0.1)
            writer.write(later)
        line = await asyncio.wait_for(reader.readline(), _WINDOW_SECONDS)
        seen = line.split()[1].decode() if line else "closed"
    except TimeoutError:
        return "held"
    except (OSError, ValueError):
        seen = "reset"
    finally:
        writer.close()
    seconds = time.perf_counter() - started
    return f"{seen} after {seconds:.0f} s" if seconds > 0.5 else seen


async def _slow_header(server: _Server) -> str:
    return await _see(server, b"GET / HTTP/1.1\r\nHo")


async def _slow_second_header(server: _Server) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(_GET)
    await reader.readuntil(b"ok")
    writer.write(b"GET / HTTP/1.1\r\nHo")
    try:
        line = await asyncio.wait_for(reader.readline(), _WINDOW_SECONDS)
        return line.split()[1].decode() if line else "closed"
    except TimeoutError:
        return "held"
    finally:
        writer.close()


async def _slow_body(server: _Server) -> str:
    return await _see(server, _POST + b"Content-Length: 10\r\n\r\nabc")


async def _large_header(server: _Server) -> str:
    return await _see(server, _GET[:-2] + b"X: " + b"a" * 1_000_000 + b"\r\n\r\n")


async def _many_headers(server: _Server) -> str:
    return await _see(server, _GET[:-2] + b"X: a\r\n" * 10_000 + b"\r\n")


async def _chunk_extension(server: _Server) -> str:
    start = _POST + b"Transfer-Encoding: chunked\r\n\r\n3;"
    return await _see(server, start, later=b"a" * 1_000_000 + b"\r\nabc\r\n0\r\n\r\n")


async def _no_reader(server: _Server) -> str:
    """A client that requests 50 MB and reads nothing."""
    _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1_000)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(_GET.replace(b"/", b"/big", 1))
    await asyncio.sleep(_WINDOW_SECONDS)
    connections = [
        each
        for process in (server.process, *server.process.children(recursive=True))
        for each in process.net_connections()
        if each.status == psutil.CONN_ESTABLISHED
    ]
    writer.close()
    return f"held, {server.memory()} MB" if connections else "closed"


async def _stalled_connections(server: _Server) -> str:
    """The status of /healthz while 300 connections have an incomplete header."""
    stalled = []
    for _ in range(_CONNECTIONS):
        with suppress(OSError):
            stalled.append(await asyncio.open_connection("127.0.0.1", server.port))
            stalled[-1][1].write(b"GET / HTTP/1.1\r\n")
    await asyncio.sleep(0.2)
    seen = await _see(server, _GET.replace(b"/", b"/healthz", 1))
    for _, writer in stalled:
        writer.close()
    return seen


_CLIENTS: Final[dict[str, Callable[[_Server], Awaitable[str]]]] = {
    "first header stalls": _slow_header,
    "later header stalls": _slow_second_header,
    "body stalls": _slow_body,
    "header of 1 MB": _large_header,
    "10,000 headers": _many_headers,
    "chunk extension of 1 MB": _chunk_extension,
    "client reads nothing": _no_reader,
    "/healthz, 300 stalled headers": _stalled_connections,
}


async def _load(port: int, failures: list[str]) -> None:
    """Send requests over connections that are kept alive, until the server refuses connections."""
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            return
        except OSError:
            failures.append("connecting")
            return
        try:
            is_open = True
            while is_open:
                writer.write(_GET)
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(2)
                is_open = b"connection: close" not in head.lower()
        except (OSError, EOFError):
            failures.append("request")
        finally:
            writer.close()


async def _stop_under_load(name: str) -> str:
    """The failed requests of 20 connections during several stops."""
    failures: list[str] = []
    for _ in range(_STOPS):
        server = await _start(name)
        clients = [asyncio.create_task(_load(server.port, failures)) for _ in range(20)]
        await asyncio.sleep(_LOAD_SECONDS)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(asyncio.gather(*clients), 20)
        await asyncio.to_thread(_end, server)
    return str(len(failures))


async def _start(name: str) -> _Server:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    command = [sys.executable, *(each.format(port=port) for each in _SERVERS[name])]
    started = await asyncio.to_thread(
        subprocess.Popen, command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
    )
    async with asyncio.timeout(30):
        while True:
            with suppress(OSError):
                (await asyncio.open_connection("127.0.0.1", port))[1].close()
                return _Server(port, psutil.Process(started.pid))
            await asyncio.sleep(0.05)


def _end(server: _Server) -> None:
    processes = [server.process]
    with suppress(psutil.Error):
        processes += server.process.children(recursive=True)
        server.process.terminate()
        server.process.wait(10)
    for each in processes:
        with suppress(psutil.Error):
            each.kill()


async def main() -> None:
    """Print a table in Markdown."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4_096, hard)), hard))
    rows: dict[str, list[str]] = {client: [] for client in (*_CLIENTS, f"failed requests, {_STOPS} stops")}
    for name in _SERVERS:
        for client, see in _CLIENTS.items():
            server = await _start(name)
            rows[client].append(await see(server))
            await asyncio.to_thread(_end, server)
        rows[f"failed requests, {_STOPS} stops"].append(await _stop_under_load(name))
    print("| client |", " | ".join(_SERVERS), "|")
    print("| --- |" + " --- |" * len(_SERVERS))
    for client, seen in rows.items():
        print(f"| {client} | {' | '.join(seen)} |")


def _serve(port: int) -> None:
    from howdah.serving import ServerLimits, serve

    limits = ServerLimits(
        max_unfinished_connections=100,
        header_timeout=_LIMIT_SECONDS,
        body_timeout=_LIMIT_SECONDS,
        write_timeout=_LIMIT_SECONDS,
        keep_alive_timeout=_LIMIT_SECONDS,
    )
    serve(app, port=port, limits=limits, stop_pause=0, stop_timeout=_LIMIT_SECONDS * 2)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        _serve(int(sys.argv[2]))
    else:
        asyncio.run(main())
