"""The service over real HTTP: in this process, or in another one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from shop.postgres import as_service_login


@asynccontextmanager
async def http_client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, which runs behind uvicorn in this event loop."""
    with _listening() as listening:
        server = _server(app)
        running = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            while not server.started:
                if running.done():
                    await running
                await asyncio.sleep(0.005)
            async with client_of(_address(listening)) as client:
                yield client
        finally:
            server.should_exit = True
            await running


@contextmanager
def serve_in_thread(app: FastAPI) -> Iterator[str]:
    """The address of the application, which runs behind uvicorn in its own thread and event loop."""
    with _listening() as listening:
        server = _server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.005)
            yield _address(listening)
        finally:
            server.should_exit = True
            thread.join()


def client_of(address: str, **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=address, timeout=30, limits=httpx.Limits(max_connections=None), **options)


def _listening() -> socket.socket:
    # asyncio disables Nagle's algorithm only for a socket with an explicit protocol; it delays a request by 40 ms
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    return listening


def _address(listening: socket.socket) -> str:
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


def _server(app: FastAPI) -> uvicorn.Server:
    return uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=10))


@asynccontextmanager
async def run_shop_serve(url: str, log: Path, **settings: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run `shop serve`, which logs to the file. Returns its process and its address once it is ready.

    `url` has the login of the owner. The service migrates with it, and logs in as `shop_service`.
    """
    with _listening() as unused:
        port = unused.getsockname()[1]
    environment = (
        os.environ
        | {"SHOP_DATABASE_URL": as_service_login(url), "SHOP_OWNER_DATABASE_URL": url}
        | {"SHOP_LOG_FORMAT": "json", "SHOP_SHUTDOWN_PAUSE": "0"}
        | settings
    )
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from shop.cli import main; main()", "serve", "--port", str(port)),
            env=environment,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=errors,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        async with client_of(address) as client, asyncio.timeout(30):
            while True:
                assert process.returncode is None, log.read_text()
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get("/readyz")).status_code == 200:
                        break
                await asyncio.sleep(0.02)
        yield process, address
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
