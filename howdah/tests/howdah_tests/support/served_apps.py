"""An application behind uvicorn, and clients that use its socket directly."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import orjson
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from howdah.serving import ServerLimits
from howdah.serving._connections import Connections
from howdah.serving._protocol import LimitedHttpProtocol
from howdah.serving.draining import StopState

MakeProtocol: TypeAlias = Callable[..., HttpToolsProtocol]


def make_serving_protocol(*arguments: Any, **options: Any) -> HttpToolsProtocol:
    """A connection of `howdah.serving`."""
    group = Connections(ServerLimits(), StopState())
    return LimitedHttpProtocol(*arguments, group=group, **options)


PROTOCOLS: dict[str, MakeProtocol] = {"serving": make_serving_protocol, "plain uvicorn": HttpToolsProtocol}


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: Any


class RawClient:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self._writer = reader, writer

    def send(self, method: str, path: str, *, body: bytes = b"", headers: str = "") -> None:
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        self._writer.write(f"{method} {path} HTTP/1.1\r\nHost: test\r\n{headers}{length}\r\n".encode() + body)

    def send_bytes(self, data: bytes) -> None:
        self._writer.write(data)

    async def read(self, *, has_body: bool = True) -> Answer:
        """The next response, which has a `Content-Length`."""
        async with asyncio.timeout(10):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
            body = await self.reader.readexactly(int(headers["content-length"])) if has_body else b""
        return Answer(int(lines[0].split()[1]), headers, orjson.loads(body) if body[:1] == b"{" else body)

    async def get(self, path: str) -> Answer:
        self.send("GET", path)
        return await self.read()

    def close(self) -> None:
        self._writer.close()

    async def aclose(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


class ServedApp:
    """The address of a running application."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._clients: list[RawClient] = []

    async def connect(self) -> RawClient:
        client = RawClient(*await asyncio.open_connection("127.0.0.1", self._port))
        self._clients.append(client)
        return client

    async def close_clients(self) -> None:
        for client in self._clients:
            await client.aclose()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[RawClient]:
        client = await self.connect()
        try:
            yield client
        finally:
            client.close()


@asynccontextmanager
async def served(app: FastAPI, protocol: MakeProtocol) -> AsyncIterator[ServedApp]:
    """Serve the application in this event loop."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(
            app, http=cast(Any, protocol), log_config=None, access_log=False, timeout_graceful_shutdown=5
        )
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            while not server.started:
                await asyncio.sleep(0.005)  # the server can't notify
            served_app = ServedApp(listening.getsockname()[1])
            try:
                yield served_app
            finally:
                await served_app.close_clients()
        finally:
            server.should_exit = True
            await running
