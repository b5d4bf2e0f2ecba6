"""Two applications that differ only in the mark `direct`, each behind a server. Both must give the same responses."""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, TypeVar

import structlog
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from howdah.fastapi import direct, direct_routes
from howdah.fastapi._routes import iterate_all_routes
from howdah.serving import ServerLimits
from howdah_tests.support.raw_http import RunningServer, running_server

EndpointT = TypeVar("EndpointT", bound=Callable[..., Any])

Mark: TypeAlias = Callable[[Any], Any]
"""`direct`, or a decorator that does nothing."""

ServedBy: TypeAlias = Literal["direct", "fastapi", "layers"]
"""The part of the first application that answers: a direct route, FastAPI's router, or a layer before both."""

_ROUTED: Final[dict[ServedBy, tuple[int, int]]] = {"direct": (0, 1), "fastapi": (1, 1), "layers": (0, 0)}
# Values that are random, or that depend on the time.
_VARYING: Final = {"date", "x-request-id", "retry-after", "ratelimit"}
_VARYING_LOG_FIELDS: Final = {"ms", "request_id"}


def leave(endpoint: EndpointT) -> EndpointT:
    """The other mark: the route stays with FastAPI."""
    return endpoint


MARKS: Final[dict[str, Mark]] = {"direct": direct, "fastapi": leave}


def request(
    method: str,
    target: str,
    *headers: str,
    body: bytes | None = None,
    host: str = "test",
) -> bytes:
    """The bytes of a request, after whose response the server closes the connection."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def json_request(method: str, target: str, body: bytes, *headers: str) -> bytes:
    return request(method, target, "Content-Type: application/json", *headers, body=body)


@dataclass(frozen=True)
class Exchange:
    """A response, and its entries in the log. `routed` is the number of calls of FastAPI's router."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    log: list[dict[str, Any]]
    warnings: list[str]
    routed: int

    def describe(self) -> dict[str, Any]:
        """Everything that must be the same on both paths."""
        return {
            "status": self.status,
            "headers": [(name, "" if name in _VARYING else value) for name, value in self.headers],
            "body": self.body,
            "log": [_describe_entry(each) for each in self.log],
            "warnings": self.warnings,
        }

    def header(self, name: str) -> str:
        return ", ".join(value for each, value in self.headers if each == name)


class PathPair:
    """The two applications. The first one has direct routes."""

    def __init__(self, sides: Sequence[Side]) -> None:
        self.sides = sides
        self.first, self.second = sides

    def find_difference(self, raw: bytes, *, served: ServedBy = "direct", logged: int = 1) -> Any:
        """Send the request to both. The differences, each with both values, or None."""
        exchanges = [side.exchange(raw, logged) for side in self.sides]
        first, second = (each.describe() for each in exchanges)
        found = {key: (first[key], second[key]) for key in first if first[key] != second[key]}
        routed = (exchanges[0].routed, exchanges[1].routed)
        return found or (None if routed == _ROUTED[served] else {"routed": routed})

    def find_differences(self, requests: Iterable[bytes], **options: Any) -> dict[bytes, Any]:
        found = {raw: self.find_difference(raw, **options) for raw in requests}
        return {raw: difference for raw, difference in found.items() if difference is not None}


class Side:
    """One of the two applications, and its server."""

    def __init__(
        self, server: RunningServer, entries: list[Any], warnings: list[str], begun: list[str], routed: list[str]
    ) -> None:
        self._server = server
        self._entries, self._warnings, self._begun, self._routed = entries, warnings, begun, routed

    @property
    def app(self) -> FastAPI:
        app: FastAPI = self._server.app
        return app

    @property
    def port(self) -> int:
        return self._server.port

    def exchange(self, raw: bytes, logged: int) -> Exchange:
        """Send the request, read the response to the end, and wait for the entries of the log."""
        self.forget()
        status, headers, body = self.send(raw)
        self.wait_for_log(logged)
        return Exchange(status, headers, body, [*self._entries], [*self._warnings], len(self._routed))

    def send(self, raw: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(raw)
            return parse(read_all(connection))

    def wait_for_log(self, logged: int) -> None:
        """Wait until so many requests have ended."""
        deadline = time.monotonic() + 5
        while self.count_ended() < logged:  # the server can't notify
            assert time.monotonic() < deadline, self._entries
            time.sleep(0.0005)

    def count_ended(self) -> int:
        return sum(each["event"] == "request" for each in self._entries)

    def list_statuses(self) -> list[int]:
        """The statuses in the log."""
        return [each["status"] for each in self._entries if each["event"] == "request"]

    def describe_log(self) -> list[dict[str, Any]]:
        """The entries of the log, without times."""
        return [_describe_entry(each) for each in self._entries]

    def has_begun(self) -> bool:
        """Whether the application was called since the last `forget`."""
        return bool(self._begun)

    def forget(self) -> None:
        """Forget everything that was noted so far."""
        for each in (self._entries, self._warnings, self._begun, self._routed):
            each.clear()

    def read_metrics(self) -> list[str]:
        """The counters and gauges of requests, without times."""
        _, _, body = self.send(request("GET", "/metrics"))
        lines = [line for line in body.decode().splitlines() if line.startswith("howdah_request")]
        return [line for line in lines if "_bucket" not in line and "_sum" not in line and "_created" not in line]


def read_all(connection: socket.socket) -> bytes:
    """All bytes until the server closes the connection."""
    parts = []
    while part := connection.recv(65_536):
        parts.append(part)
    return b"".join(parts)


def parse(response: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
    """The status, the headers and the body. The size lines of chunks stay in the body."""
    if not response:  # the server has closed the connection
        return 0, [], b""
    head, _, body = response.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]
    return int(status_line.split()[1]), headers, body


@contextmanager
def open_pair(create_app: Callable[[Mark], FastAPI]) -> Iterator[PathPair]:
    """Serve the application with direct routes, and without."""
    warnings: list[str] = []
    handler = _WarningList(warnings)
    with ExitStack() as stack:
        entries = stack.enter_context(structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]))
        logging.getLogger().addHandler(handler)
        stack.callback(logging.getLogger().removeHandler, handler)
        sides = []
        for mark in MARKS.values():
            app = create_app(mark)
            begun, routed = list[str](), note_routed(app)
            app.add_middleware(_NoteBegun, begun=begun)
            server = stack.enter_context(running_server(app, ServerLimits()))
            sides.append(Side(server, entries, warnings, begun, routed))
        yield PathPair(sides)


def list_direct_routes(app: FastAPI) -> set[str]:
    """The routes with the mark `direct`, such as `GET /orders/{order_id}`."""
    marked = [each for each in iterate_all_routes(app.routes) if direct_routes._is_marked(each)]
    return {f"{method} {each.path}" for each in marked for method in each.methods}


def note_routed(app: FastAPI) -> list[str]:
    """The routes of the requests that FastAPI's router gets. The list grows when they have been handled."""
    routes: list[str] = []
    inner = app.router.middleware_stack

    async def note(scope: Any, receive: Any, send: Any) -> None:
        try:
            await inner(scope, receive, send)
        finally:
            if scope["type"] == "http":
                found = scope.get("fastapi", {}).get("effective_route_context") or scope.get("route")
                routes.append(f"{scope['method']} {getattr(found, 'path', None)}")

    app.router.middleware_stack = note
    return routes


class _NoteBegun:
    """The outermost middleware."""

    def __init__(self, app: ASGIApp, begun: list[str]) -> None:
        self._app, self._begun = app, begun

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._begun.append(scope["path"])
        await self._app(scope, receive, send)


class _WarningList(logging.Handler):
    """Collects the warnings and errors of `logging`."""

    def __init__(self, warnings: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._warnings = warnings

    def emit(self, record: logging.LogRecord) -> None:
        self._warnings.append(f"{record.name}: {record.getMessage()}")


def _describe_entry(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of the log, without times. A traceback has only its errors, because the frames are others."""
    described = {key: value for key, value in entry.items() if key not in _VARYING_LOG_FIELDS}
    assert entry.get("request_id"), entry
    if "exception" in entry:
        described["exception"] = [line for line in entry["exception"].splitlines() if re.match(r"\S", line)]
    return described
