"""A migrated database for every test, and the service on real HTTP."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
import pytest_asyncio
import uvicorn
from fastapi import FastAPI

from shop import migrations
from shop.app import create_app


@pytest.fixture(scope="session")
def migrate() -> Callable[[str], None]:
    return migrations.upgrade


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """The application behind uvicorn on a free port of the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=10))
        running = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            while not server.started:
                if running.done():
                    await running
                await asyncio.sleep(0.005)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                yield client
        finally:
            server.should_exit = True
            await running


@pytest_asyncio.fixture
async def client(committed_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the service on a database of its own."""
    async with served(create_app(committed_url)) as client:
        yield client
