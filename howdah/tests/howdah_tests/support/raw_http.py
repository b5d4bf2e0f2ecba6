"""A server with a small ASGI application, and clients that write bytes to its socket."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

from howdah.serving import ServerLimits, bind_socket
from howdah.serving._server import build_server

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: test\r\n"


class EchoApp:
    """Answers with the number of bytes of the body, and the names of the headers.

    `/wait` answers when `released` is set, `/big` sends 50 MB, and `/unread` doesn't read the body.
    """

    def __init__(self) -> None:
        self.released = threading.Event()
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{message['type']}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        self.running += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            self.running -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        size, has_more = 0, scope["path"] != "/unread"
        while has_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size += len(message["body"])
            has_more = message["more_body"]
        while scope["path"] == "/wait" and not self.released.is_set():
            await asyncio.sleep(0.01)
        names = [name.decode() for name, _ in scope["headers"]]
        body = b"x" * 50_000_000 if scope["path"] == "/big" else json.dumps({"size": size, "headers": names}).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Peer:
    """One connection to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        """Write the data. A server that has closed the connection is no error."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except ConnectionError:
            pass

    async def read(self) -> tuple[int, dict[str, str], bytes]:
        """The status, the headers and the body of one response."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        return int(head[0].split()[1]), headers, await self.reader.readexactly(int(headers.get("content-length", 0)))

    async def read_problem(self) -> tuple[int, str]:
        """The status and the code of a response with problem details, after which the server closes the connection."""
        status, headers, body = await self.read()
        assert headers["content-type"] == "application/problem+json"
        assert headers["connection"] == "close"
        assert await self.is_closed()
        problem = json.loads(body)
        assert problem["status"] == status
        assert problem["detail"]
        return status, problem["type"].removeprefix("urn:howdah:problem:")

    async def is_closed(self, within: float = 5.0) -> bool:
        """Whether the server closes the connection. It must not send anything before."""
        try:
            return await asyncio.wait_for(self.reader.read(1), within) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def close(self) -> None:
        self.writer.close()


class RunningServer:
    def __init__(self, port: int, app: Any, server: uvicorn.Server) -> None:
        self.port, self.app, self.server = port, app, server

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)

    @asynccontextmanager
    async def connect(self, data: bytes = b"") -> AsyncIterator[Peer]:
        peer = Peer(*await asyncio.open_connection("127.0.0.1", self.port))
        try:
            await peer.send(data)
            yield peer
        finally:
            peer.close()
            # The event loop closes the socket now. Later it would be blocked by the wait for the end of the server.
            await asyncio.sleep(0)


@contextmanager
def running_server(app: Any, limits: ServerLimits | None) -> Iterator[RunningServer]:
    """Serve the application in a thread: with Howdah's server, or without limits with uvicorn's own server."""
    with closing(bind_socket("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
        server: uvicorn.Server
        if limits is None:
            server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1))
        else:
            server = build_server(app, limits=limits, pause=0, timeout=5)
            server._is_interactive = True  # so that idle connections don't delay the end of a test
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                thread.join(0.005)
            yield RunningServer(port, app, server)
        finally:
            server.should_exit = True
            thread.join()


async def wait_until(is_true: Callable[[], bool]) -> None:
    """Wait for a condition of the server, which runs in another thread."""
    async with asyncio.timeout(10):
        while not is_true():
            await asyncio.sleep(0.01)
