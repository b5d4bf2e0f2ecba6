"""An HTTP client of an application, in the event loop of the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import httpx
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from howdah.database import Database

_BASE_URL: Final = "http://test"
# A request may wait for a lock (`lock_timeout`, 5 s) or a statement (`statement_timeout`, 30 s).
_MAX_WAIT_SECONDS: Final = 40.0

_applications: Final[WeakKeyDictionary[httpx.AsyncClient, ASGIApp]] = WeakKeyDictionary()


@asynccontextmanager
async def open_client(
    app: FastAPI, databases: Mapping[str, Database], *, is_serial: bool = False
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, which uses these databases ("main", and further ones by name).

    The application's lifespan runs until the end of the `async with` block. With `is_serial` concurrent requests are
    handled one after the other, because their sessions share a connection.
    """
    import httpx

    from howdah.fastapi.application import replace_databases

    lock = asyncio.Lock()

    with replace_databases(app, databases):
        async with _run_lifespan(app) as state:

            async def app_with_state(scope: Scope, receive: Receive, send: Send) -> None:
                async with _wait_for(lock) if is_serial else nullcontext():
                    await app({**scope, "state": state.copy()}, receive, send)

            transport = httpx.ASGITransport(app_with_state)
            async with httpx.AsyncClient(transport=transport, base_url=_BASE_URL) as client:
                _applications[client] = app_with_state
                yield client


def find_application(client: httpx.AsyncClient) -> ASGIApp:
    """The application of a client that `open_client` has opened. httpx can't open its WebSockets."""
    if client not in _applications:
        raise TypeError("only a client of open_client, or of the fixtures, can open a WebSocket")
    return _applications[client]


@asynccontextmanager
async def _wait_for(lock: asyncio.Lock) -> AsyncIterator[None]:
    """Hold the lock. Raises `RuntimeError` if the request that holds it doesn't end in time."""
    try:
        async with asyncio.timeout(_MAX_WAIT_SECONDS):
            await lock.acquire()
    except TimeoutError as error:
        raise RuntimeError(
            f"a request of `client` has waited {_MAX_WAIT_SECONDS:g} s for an earlier one, because requests share the "
            "connection of `database`: use `committed_client` if they must run at the same time"
        ) from error
    try:
        yield
    finally:
        lock.release()


@asynccontextmanager
async def _run_lifespan(app: ASGIApp) -> AsyncIterator[dict[str, Any]]:
    """The state that the application's lifespan yields. The lifespan ends at the end of the `async with` block.

    It runs in a task of its own, as it does in a server. pytest-asyncio runs the beginning and the end of a fixture in
    different tasks, which a task group in the lifespan doesn't allow.
    """
    state: dict[str, Any] = {}
    messages: asyncio.Queue[Message] = asyncio.Queue()
    started = asyncio.Event()

    async def send(message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            started.set()

    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": state}
    running = asyncio.ensure_future(app(scope, messages.get, send))
    messages.put_nowait({"type": "lifespan.startup"})
    starting = asyncio.ensure_future(started.wait())
    await asyncio.wait([running, starting], return_when=asyncio.FIRST_COMPLETED)
    starting.cancel()
    if running.done():
        await running  # raises the error of the startup
    try:
        yield state
    finally:
        messages.put_nowait({"type": "lifespan.shutdown"})
        await running
