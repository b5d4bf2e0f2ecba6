"""Applications for the tests of `howdah.fastapi`, and clients of them."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from howdah import Database
from howdah.fastapi import add_error_handlers, get_database

USERS = "/users"

# All clients share it. Otherwise each client would read all root certificates, which takes 20 ms.
_TLS = ssl.create_default_context()


def create_app(database: Database) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        yield {"database": database, "reports": database}

    app = FastAPI(lifespan=lifespan)
    add_error_handlers(app)
    return app


def create_bare_app(database: Database | None = None) -> FastAPI:
    """An application without a lifespan, for `asgi_client`."""
    app = FastAPI()
    add_error_handlers(app)
    if database is not None:
        app.dependency_overrides[get_database] = lambda: database
    return app


@asynccontextmanager
async def http_client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, which runs behind uvicorn."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5))
        running = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            while not server.started:
                await asyncio.sleep(0.005)
            address = f"http://127.0.0.1:{listening.getsockname()[1]}"
            async with httpx.AsyncClient(base_url=address, timeout=20, verify=_TLS) as client:
                yield client
        finally:
            server.should_exit = True
            await running


@asynccontextmanager
async def asgi_client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application without a server. An unexpected error gets the response that a server would send."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
