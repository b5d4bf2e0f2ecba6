"""A proxy in front of PostgreSQL that loses responses, or freezes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

from sqlalchemy import URL, make_url

COMMIT = b"Q\x00\x00\x00\x0cCOMMIT;\x00"
"""The message that asyncpg sends for COMMIT, as a simple query."""


class Proxy:
    """Forwards everything. A message that contains `lost_bytes` is executed, but both connections end before its
    response. `times` limits how often this happens. After `freeze` nothing is forwarded until `thaw`."""

    def __init__(self, url: URL, server: URL) -> None:
        self.url = url
        self.lost_bytes: bytes | None = None
        self.times: int | None = None
        self.lost = 0
        self._server = server
        self._moving = asyncio.Event()
        self._moving.set()
        self._serving: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        task.add_done_callback(lambda _: writer.close())  # also if `close` cancels the task before it runs

    def freeze(self) -> None:
        self._moving.clear()

    def thaw(self) -> None:
        self._moving.set()

    async def close(self) -> None:
        """Break all connections."""
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await _connect(self._server)
        is_losing = asyncio.Event()

        async def requests() -> None:
            while data := await reader.read(65_536):
                if self.lost_bytes is not None and self.lost_bytes in data and self.times != 0:
                    self.times = None if self.times is None else self.times - 1
                    is_losing.set()
                await self._moving.wait()
                to_server.write(data)

        async def responses() -> None:
            while data := await from_server.read(65_536):
                if is_losing.is_set():
                    self.lost += 1
                    return
                await self._moving.wait()
                writer.write(data)

        with closing(to_server), closing(writer):  # closes both, even if `close` cancels one of these waits
            tasks = [asyncio.create_task(requests()), asyncio.create_task(responses())]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        for each in (writer, to_server):
            with suppress(OSError):
                await each.wait_closed()


@asynccontextmanager
async def run_lossy_proxy(url: str, folder: Path) -> AsyncIterator[Proxy]:
    """A proxy in front of the server of this URL, on a socket in the folder."""
    server = make_url(url)
    proxy = Proxy(server.set(host=None, port=None, query={"host": str(folder)}), server)
    listening = await asyncio.start_unix_server(proxy.accept, folder / ".s.PGSQL.5432")
    try:
        yield proxy
    finally:
        listening.close()
        await proxy.close()
        await listening.wait_closed()


async def _connect(url: URL) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    folder = url.query.get("host")
    if folder is not None and str(folder).startswith("/"):
        return await asyncio.open_unix_connection(Path(str(folder)) / f".s.PGSQL.{url.query.get('port', 5432)}")
    return await asyncio.open_connection(url.host or str(folder), url.port or 5432)
