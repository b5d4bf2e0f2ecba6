"""HTTP/1.1 on a socket.

A client library would hide whether a connection was closed or reset, and whether that was before or after the first
byte of a response. It would also take more CPU time than the service that is tested.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

import httptools

from soak.identity import ADMIN

_READ_BYTES: Final = 65_536


class NoAnswer(Exception):
    """There was no complete response."""


class Refused(NoAnswer):
    """The connection was not accepted."""


class Closed(NoAnswer):
    """The server closed the connection before the end of the response."""


class Reset(NoAnswer):
    """The server reset the connection before the end of the response."""


@dataclass(frozen=True)
class Answer:
    """A complete response. The names of the headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Address:
    host: str
    port: int


async def open_streams(
    address: Address, *, receive_bytes: int | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect. With `receive_bytes`, only about this much is buffered here, so the server must wait for the client."""
    connected = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connected.setblocking(False)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if receive_bytes is not None:  # before connecting, because it limits the receive window of TCP
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    try:
        await asyncio.get_running_loop().sock_connect(connected, (address.host, address.port))
        return await asyncio.open_connection(sock=connected, limit=receive_bytes or _READ_BYTES)
    except BaseException:
        connected.close()
        raise


def build_request(method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None) -> bytes:
    """The bytes of a request of the admin. A request with a body has a `Content-Length`."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: 127.0.0.1",
        *(f"{name}: {text}" for name, text in (ADMIN | dict(headers or {})).items()),
    ]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


class _Response:
    """The parser's callbacks."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.parts: list[bytes] = []
        self.is_complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self.parts.append(body)

    def on_message_complete(self) -> None:
        self.is_complete = True


class Connection:
    """A keep-alive connection for one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._is_closing = False

    @classmethod
    async def open(cls, address: Address) -> Self:
        """Raises `Refused`."""
        try:
            return cls(*await open_streams(address))
        except OSError as error:
            raise Refused(str(error)) from error

    @property
    def is_usable(self) -> bool:
        """False if the server has closed the connection or said that it will."""
        return not (self._is_closing or self._reader.at_eof() or self._writer.is_closing())

    async def send(self, request: bytes) -> Answer:
        """Send a request, and return its response. Raises `Closed` or `Reset`. The connection is unusable then."""
        response = _Response()
        parser = httptools.HttpResponseParser(response)
        received = 0
        try:
            self._writer.write(request)
            while not response.is_complete:
                part = await self._reader.read(_READ_BYTES)
                if not part:
                    raise Closed(f"after {received} bytes of the response")
                received += len(part)
                parser.feed_data(part)
        except OSError as error:
            self.abort()
            raise Reset(f"after {received} bytes of the response: {error}") from error
        except BaseException:
            self.abort()
            raise
        self._is_closing = response.headers.get("connection", "").lower() == "close"
        answer = Answer(parser.get_status_code(), response.headers, b"".join(response.parts))
        if self._is_closing:
            self.abort()
        return answer

    def abort(self) -> None:
        """Close the connection, and discard what wasn't sent."""
        self._is_closing = True
        self._writer.transport.abort()


async def fetch(address: Address, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
    """Send one request on a connection of its own. Raises `NoAnswer`."""
    connection = await Connection.open(address)
    try:
        names = {name.replace("_", "-"): text for name, text in headers.items()}
        return await connection.send(build_request(method, path, {"Connection": "close", **names}, body))
    finally:
        connection.abort()
