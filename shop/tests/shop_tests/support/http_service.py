"""The service over real HTTP: in this process, or in another one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import uvicorn
from fastapi import FastAPI

from shop.app import create_app
from shop.keyrings import new_key
from shop.postgres import as_service_login
from shop_tests.support.identity import ADMIN, SIGNING_KEYS, TEST_SETTINGS, sign_in

# Otherwise each client reads the certificates of all authorities, which takes longer than most tests.
_TLS: Final = ssl.create_default_context()


def create_service(url: str, **settings: Any) -> FastAPI:
    """The application of Shop, which accepts the tokens of `sign_in`. It logs in as `shop_service`."""
    return create_app(as_service_login(url), TEST_SETTINGS.model_copy(update=settings))


@asynccontextmanager
async def http_client(app: FastAPI, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, which runs behind uvicorn in this event loop. The options are those of
    `client_of`."""
    with _listening() as listening:
        server = _server(app)
        running = asyncio.create_task(_serve(server, listening))
        try:
            while not server.started:
                if running.done():
                    await running
                await asyncio.sleep(0.005)
            async with client_of(_address(listening), **options) as client:
                yield client
        finally:
            server.should_exit = True
            await running


async def _serve(server: uvicorn.Server, listening: socket.socket) -> None:
    """Serve until the server ends. If the application doesn't start, uvicorn exits, which would end pytest."""
    try:
        await server.serve(sockets=[listening])
    except SystemExit as error:
        raise RuntimeError("the application didn't start: see the log") from error


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


def client_of(
    address: str, *, principal: Mapping[str, str] | None = None, signs_in: bool = True, **options: Any
) -> httpx.AsyncClient:
    """A client that sends the headers of `sign_in`. By default it is signed in as an admin."""
    headers = (principal or sign_in(ADMIN.role, ADMIN.user_id)) if signs_in else {}
    unlimited = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=address, headers=headers, timeout=30, limits=unlimited, verify=_TLS, **options)


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
    defaults = {
        "SHOP_DATABASE_URL": as_service_login(url),
        "SHOP_OWNER_DATABASE_URL": url,
        "SHOP_SIGNING_KEYS": SIGNING_KEYS,
        "SHOP_RATE_LIMITS": "off",
        "SHOP_ENCRYPTION_KEYS": new_key(),
        "SHOP_CONSOLE_MAILS": "on",
        "SHOP_LOG_FORMAT": "json",
        "SHOP_SHUTDOWN_PAUSE": "0",
    }
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from shop.cli import main; main()", "serve", "--port", str(port)),
            env=os.environ | defaults | settings,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=errors,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        async with client_of(address) as client, asyncio.timeout(90):  # on a busy machine
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
