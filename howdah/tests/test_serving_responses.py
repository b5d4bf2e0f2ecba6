"""The bytes of responses. uvicorn's own protocol, with the same applications, is the reference and the control."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import cache
from typing import Any, TypeAlias, cast

import pytest
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from howdah.fastapi.in_progress import LimitRequests, RequestsInProgress
from howdah.serving import ServerLimits
from howdah.serving._scope_keys import ADMIT_KEY
from howdah_tests.support.raw_http import RunningServer, running_server, wait_until
from howdah_tests.support.served_apps import PROTOCOLS, MakeProtocol

Route: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[Any]]

LENGTH_5 = (b"content-length", b"5")
CHUNKED = (b"transfer-encoding", b"chunked")


def start(*headers: tuple[bytes, bytes], status: int = 200) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers}


def part(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


def sending(*messages: Message, then: BaseException | object = None) -> Route:
    """A route that sends the messages, and then raises or returns."""

    async def send_messages(_scope: Scope, _receive: Receive, send: Send) -> object:
        for message in messages:
            await send(message)
        if isinstance(then, BaseException):
            raise then
        return then

    return send_messages


async def read_body(receive: Receive) -> bytes:
    body, has_more = b"", True
    while has_more:
        message = await receive()
        body += message["body"]
        has_more = message["more_body"]
    return body


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the request."""
    body = await read_body(receive)
    seen = {
        key: value
        for key, value in scope.items()
        if key not in {"client", "server", "state", "howdah.reports_disconnects"}
    }
    answer = repr((sorted(seen.items()), body)).encode()
    await send(start((b"content-length", str(len(answer)).encode())))
    await send(part(answer))


async def ignore_body(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send(start(LENGTH_5))
    await send(part(b"hello"))


FAILURE = ValueError("a failure of the application")

ROUTES: dict[str, Route] = {
    "length": sending(start((b"Content-Type", b"text/plain"), LENGTH_5, (b"x-empty", b"")), part(b"hello")),
    "parts": sending(start(LENGTH_5), part(b"he", more=True), part(b"", more=True), part(b"llo", more=True), part(b"")),
    "chunks": sending(start(), part(b"he", more=True), part(b"", more=True), part(b"llo" * 99, more=True), part(b"")),
    "empty chunks": sending(start(), part(b"")),
    "declared chunks": sending(start((b"transfer-encoding", b"Chunked")), part(b"hello")),
    "both framings": sending(start(LENGTH_5, (b"transfer-encoding", b"chunked")), part(b"hello")),
    "large": sending(start(), part(b"x" * 300_000, more=True), part(b"y" * 300_000)),
    "no content": sending(start(status=204), part(b"")),
    "not modified": sending(start((b"etag", b'"1"'), status=304), part(b"")),
    "unknown status": sending(start(LENGTH_5, status=299), part(b"hello")),
    "close": sending(start(LENGTH_5, (b"connection", b"Keep-Alive, Close")), part(b"hello")),
    "fails": sending(then=FAILURE),
    "fails after a part": sending(start(LENGTH_5), part(b"he", more=True), then=FAILURE),
    "does nothing": sending(),
    "ends early": sending(start(LENGTH_5), part(b"he", more=True)),
    "body first": sending(part(b"hello")),
    "too long": sending(start(LENGTH_5), part(b"he", more=True), part(b"llo!")),
    "too short": sending(start(LENGTH_5), part(b"he", more=True), part(b"l")),
    "starts twice": sending(start(LENGTH_5), part(b"hello", more=True), start(LENGTH_5)),
    "ignore the body": ignore_body,
}


async def app(scope: Scope, receive: Receive, send: Send) -> Any:
    if scope["type"] == "lifespan":
        raise RuntimeError("it has no lifespan")
    return await ROUTES.get(scope["path"].strip("/").replace("-", " "), echo)(scope, receive, send)


@pytest.fixture(scope="module")
def ours() -> Iterator[RunningServer]:
    with running_server(app, ServerLimits()) as server:
        yield server


@pytest.fixture(scope="module")
def uvicorns() -> Iterator[RunningServer]:
    with running_server(app, None) as server:
        yield server


async def exchange(server: RunningServer, sent: bytes) -> bytes:
    """All that the server sends until it closes the connection."""
    async with asyncio.timeout(10), server.connect(sent) as peer:
        received = await peer.reader.read()
    return re.sub(rb"date: [^\r]*", b"date: now", received)


def request(path: str, *, method: str = "GET", headers: str = "", body: bytes = b"", version: str = "1.1") -> bytes:
    return f"{method} {path} HTTP/{version}\r\nHost: test\r\n{headers}\r\n".encode() + body


LAST = request("/last", headers="Connection: close\r\n")
LONG: Any = {"method": "POST", "headers": "Content-Length: 200000\r\n", "body": b"z" * 200_000}


@pytest.mark.parametrize(
    "sent",
    [
        *(pytest.param(request("/" + name.replace(" ", "-")) + LAST, id=name) for name in ROUTES),
        *(
            pytest.param(request("/" + name.replace(" ", "-"), method="HEAD") + LAST, id=f"HEAD {name}")
            for name in ("length", "parts", "chunks", "fails", "not modified", "large")
        ),
        *(
            pytest.param(request(path) + LAST, id=path)
            for path in (
                "/?a=%20&b",
                "/a?",
                "/%C3%A9/%2F?%",
                "//a//b",
                "/a#b?c",
                "http://test/a?b",
                "/?a=1#b",
                "/a;b=c",
            )
        ),
        pytest.param(request("*", method="OPTIONS") + LAST, id="OPTIONS *"),
        pytest.param(request("/a", version="1.0"), id="HTTP/1.0"),
        pytest.param(request("/a", version="1.0", headers="Connection: keep-alive\r\n"), id="HTTP/1.0 keep-alive"),
        pytest.param(request("/chunks", version="1.0"), id="HTTP/1.0 chunks"),
        pytest.param(request("/close") + LAST, id="a request after the last response"),
        pytest.param(request("/a") + request("/chunks") + request("/length") + LAST, id="pipelined"),
        pytest.param(request("/a", **LONG) + LAST, id="a long body"),
        # The response is complete before the request.
        pytest.param(request("/ignore-the-body", **LONG) + LAST, id="a long body that isn't read"),
        pytest.param(
            request(
                "/a", method="POST", headers="Transfer-Encoding: chunked\r\n", body=b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
            )
            + LAST,
            id="a body in chunks",
        ),
        pytest.param(
            request("/a", method="POST", headers="Expect: 100-Continue\r\nContent-Length: 2\r\nConnection: close\r\n")
            + b"ab",
            id="Expect",
        ),
        pytest.param(request("/a", headers="X-Twice: 1\r\nx-twice: 2\r\nX-Empty:\r\n") + LAST, id="repeated headers"),
    ],
)
async def test_the_bytes_are_those_of_uvicorn(ours: RunningServer, uvicorns: RunningServer, sent: bytes) -> None:
    expected, received = await exchange(uvicorns, sent), await exchange(ours, sent)
    assert received == expected


@pytest.mark.parametrize(
    ("route", "plain"),
    [
        pytest.param(sending(start(LENGTH_5), then=FAILURE), b"HTTP/1.1 200", id="fails"),
        pytest.param(sending(start(LENGTH_5)), b"HTTP/1.1 200", id="ends"),
        pytest.param(sending(start(LENGTH_5), part(b"too long")), b"HTTP/1.1 200", id="too long"),
        pytest.param(sending(start(LENGTH_5), part(b"no")), b"HTTP/1.1 200", id="too short"),
        pytest.param(sending(start(LENGTH_5), start(LENGTH_5)), b"HTTP/1.1 200", id="starts twice"),
        pytest.param(sending(start(status=204), part(b"content")), b"HTTP/1.1 204", id="content after 204"),
        pytest.param(sending(start(LENGTH_5, status=204), part(b"hello")), b"HTTP/1.1 204", id="a length after 204"),
        pytest.param(sending(start(CHUNKED, status=204), part(b"hello")), b"HTTP/1.1 204", id="chunks after 204"),
        pytest.param(sending(start(status=103), part(b"")), b"HTTP/1.1 103", id="an interim status"),
        pytest.param(sending(start((b"", b"a")), part(b"")), b"HTTP/1.1 200", id="an empty name"),
        pytest.param(sending(start((b"x", b"a\r\nSet-Cookie: b=c"))), b"", id="a line break in a value"),
        pytest.param(sending(start((b"x", b"a\nb"))), b"", id="a line feed in a value"),
        pytest.param(sending(start((b"x", b"a\0"))), b"", id="a NUL in a value"),
        pytest.param(sending(start((b"x\r\ny", b"a"))), b"", id="a line break in a name"),
        pytest.param(sending(start((b"x:", b"a"))), b"", id="a colon in a name"),
        pytest.param(sending(start((b"content-length", b"many"))), b"", id="a length that is no number"),
    ],
)
async def test_a_response_that_fails_before_its_first_byte_is_a_500(
    ours: RunningServer, uvicorns: RunningServer, monkeypatch: pytest.MonkeyPatch, route: Route, plain: bytes
) -> None:
    monkeypatch.setitem(ROUTES, "failing", route)
    failing = request("/failing", headers="Connection: close\r\n")
    assert await exchange(ours, failing) == await exchange(uvicorns, request("/fails"))
    assert (await exchange(uvicorns, failing))[:12] == plain, "control: uvicorn has sent the head, or sends nothing"


@pytest.mark.parametrize(
    "route",
    [
        pytest.param(sending(start(LENGTH_5), part(b"hello"), then=FAILURE), id="an error, as in a background task"),
        pytest.param(sending(start(LENGTH_5), part(b"hello"), then=1), id="a value is returned"),
        pytest.param(sending(start(LENGTH_5), part(b"hello"), part(b"")), id="another message"),
    ],
)
async def test_an_error_after_the_response_does_not_concern_the_next_request(
    ours: RunningServer, uvicorns: RunningServer, monkeypatch: pytest.MonkeyPatch, route: Route
) -> None:
    monkeypatch.setitem(ROUTES, "failing", route)
    sent = request("/failing") + LAST
    assert (await exchange(ours, sent)).count(b"HTTP/1.1 200") == 2
    assert (await exchange(uvicorns, sent)).count(b"HTTP/1.1 200") == 1, "control"


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_the_body_of_a_request_with_an_unknown_upgrade_is_no_request(is_chunked: bool, is_split: bool) -> None:
    """For uvicorn the body is the next request. A proxy that passes the header on has checked only the first one."""
    seen: dict[str, list[tuple[str, bytes]]] = {}
    inner = request("/inner")
    headers = "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    headers += "Transfer-Encoding: chunked\r\n" if is_chunked else f"Content-Length: {len(inner)}\r\n"
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner) if is_chunked else inner
    for kind, make_protocol in PROTOCOLS.items():
        requests: list[tuple[str, bytes]] = seen.setdefault(kind, [])

        async def note(scope: Scope, receive: Receive, send: Send, requests: Any = requests) -> None:
            requests.append((scope["path"], await read_body(receive)))
            await ROUTES["no content"](scope, receive, send)

        protocol, transport = connect(make_protocol, note)
        data = request("/outer", method="POST", headers=headers)
        for part_of_data in (data, body + LAST) if is_split else (data + body + LAST,):
            protocol.data_received(part_of_data)
        async with asyncio.timeout(5):
            while len(requests) < (2 if kind == "serving" else 1):
                await asyncio.sleep(0)
        transport.close()
    assert seen["serving"] == [("/outer", inner), ("/last", b"")]
    assert seen["plain uvicorn"][0] == ("/outer", b""), "control"


async def test_connect_is_rejected(ours: RunningServer) -> None:
    """The parser takes it for an upgrade, too."""
    received = await exchange(ours, b"CONNECT test:80 HTTP/1.1\r\nHost: test\r\n\r\n" + LAST)
    assert re.findall(rb"HTTP/1.1 \d+", received) == [b"HTTP/1.1 400"]


async def test_a_304_may_have_the_length_of_a_representation(
    ours: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ROUTES, "known", sending(start(LENGTH_5, status=304), part(b"")))
    received = await exchange(ours, request("/known") + LAST)
    assert b"content-length: 5\r\n\r\nHTTP/1.1 200" in received


class RecordingTransport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.writes.append(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


@cache
def _configure(application: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(cast(Any, application), log_config=None, access_log=False, proxy_headers=False)


async def until_closed(transport: RecordingTransport) -> None:
    async with asyncio.timeout(10):
        while not transport.is_closed:
            await asyncio.sleep(0)


def connect(make_protocol: MakeProtocol, application: ASGIApp) -> tuple[asyncio.Protocol, RecordingTransport]:
    """A connection without a socket."""
    protocol, transport = make_protocol(_configure(application), ServerState(), {}), RecordingTransport()
    protocol.connection_made(transport)
    return protocol, transport


@pytest.mark.parametrize("name", ["length", "chunks", "no content", "large"])
async def test_the_head_and_the_first_part_of_the_body_are_one_write(name: str) -> None:
    counts = {}
    for kind, make_protocol in PROTOCOLS.items():
        protocol, transport = connect(make_protocol, app)
        protocol.data_received(request("/" + name.replace(" ", "-"), headers="Connection: close\r\n"))
        await until_closed(transport)
        counts[kind] = len([each for each in transport.writes if each])
    parts = {"length": 1, "chunks": 3, "no content": 0, "large": 2}[name]
    assert counts == {"serving": max(1, parts), "plain uvicorn": 1 + parts}


async def test_the_target_of_a_request_is_read_as_uvicorn_does() -> None:
    scopes: list[Scope] = []

    async def note(scope: Scope, _receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await ROUTES["no content"](scope, _receive, send)

    for target in (template.replace(b"_", bytes([each])) for template in (b"/_?a", b"/a?_") for each in range(256)):
        seen = []
        for make_protocol in PROTOCOLS.values():
            protocol, transport = connect(make_protocol, note)
            scopes.clear()
            protocol.data_received(b"GET %b HTTP/1.1\r\nConnection: close\r\n\r\n" % target)
            await until_closed(transport)
            seen.append([(each["path"], each["raw_path"], each["query_string"]) for each in scopes])
        assert seen[0] == seen[1], target


class RejectingAll:
    """The application's admission under overload."""

    def is_full(self) -> bool:
        return True

    def reject(self, _path: str) -> bytes:
        return b"content-length: 0\r\n\r\n"

    def admit(self, _scope: Scope) -> bytes:
        return self.reject("")


@pytest.mark.parametrize("count", [1, 2])  # one request is rejected without being parsed
async def test_no_request_is_read_from_a_client_that_does_not_read_its_rejections(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    reads: list[str] = []
    monkeypatch.setattr(RecordingTransport, "pause_reading", lambda _: reads.append("pause"))
    monkeypatch.setattr(RecordingTransport, "resume_reading", lambda _: reads.append("resume"))
    protocol = PROTOCOLS["serving"](_configure(app), ServerState(), {ADMIT_KEY: RejectingAll()})
    transport = RecordingTransport()
    protocol.connection_made(transport)
    protocol.data_received(request("/a"))
    await asyncio.sleep(0)
    assert reads == []
    protocol.pause_writing()
    protocol.data_received(request("/a") * count)
    await asyncio.sleep(0)
    assert reads == ["pause"]
    protocol.resume_writing()
    assert reads == ["pause", "resume"]
    assert b"".join(transport.writes).count(b"HTTP/1.1 503") == 1 + count


async def test_an_absolute_target_without_a_path_is_the_root(ours: RunningServer) -> None:
    received = await exchange(ours, request("http://test", headers="Connection: close\r\n"))
    assert b"('path', '/'), ('query_string', b''), ('raw_path', b'/')" in received


async def test_an_error_of_the_server_itself_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_self: object, _name: bytes, _value: bytes) -> None:
        raise FAILURE

    monkeypatch.setattr("howdah.serving._parsing.ParsingProtocol.on_header", fail)
    protocol, transport = connect(PROTOCOLS["serving"], app)
    protocol.data_received(LAST)
    assert transport.is_closed
    assert [each.exc_info[1] for each in caplog.records if each.exc_info] == [FAILURE]


async def test_a_task_that_is_cancelled_before_its_first_step_is_forgotten() -> None:
    protocol, _ = connect(PROTOCOLS["serving"], app)
    assert isinstance(protocol, HttpToolsProtocol)
    protocol.data_received(LAST)
    (task,) = protocol.tasks
    task.cancel()
    await asyncio.wait([task])
    protocol.connection_lost(None)
    assert not protocol.tasks


async def test_a_stream_begins_before_its_first_part(ours: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    released = asyncio.Event()
    server_loop: list[asyncio.AbstractEventLoop] = []

    async def wait(_scope: Scope, _receive: Receive, send: Send) -> None:
        server_loop.append(asyncio.get_running_loop())
        await send(start((b"content-type", b"text/event-stream")))
        await released.wait()
        await send(part(b"data: 1\n\n"))

    monkeypatch.setitem(ROUTES, "stream", wait)
    async with asyncio.timeout(10), ours.connect(request("/stream")) as peer:
        head = await peer.reader.readuntil(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head
        server_loop[0].call_soon_threadsafe(released.set)
        assert await peer.reader.readuntil(b"0\r\n\r\n") == b"9\r\ndata: 1\n\n\r\n0\r\n\r\n"


async def test_a_response_is_produced_as_fast_as_the_client_reads_it(
    ours: RunningServer, uvicorns: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, sent = 200, 0

    async def stream(_scope: Scope, _receive: Receive, send: Send) -> None:
        nonlocal sent
        await send(start())
        for _ in range(parts):
            await send(part(b"x" * 100_000, more=True))
            sent += 1
        await send(part(b""))

    monkeypatch.setitem(ROUTES, "stream", stream)
    for server in (uvicorns, ours):
        sent = 0
        async with asyncio.timeout(10), server.connect(request("/stream")) as peer:
            await peer.reader.readuntil(b"\r\n\r\n")
            before = -1
            while before != sent:  # until the kernel's buffers are full
                before = sent
                await asyncio.sleep(0.1)
            assert 0 < sent < parts
            size, end = 0, b""
            while end != b"\r\n0\r\n\r\n":
                received = await peer.reader.read(1_000_000)
                size += received.count(b"x")
                end = (end + received)[-7:]
        assert size == parts * 100_000


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(request("/held"), id="after the start of the response"),
        pytest.param(request("/held", method="POST", headers="Content-Length: 9\r\n", body=b"abc"), id="in the body"),
        pytest.param(request("/held") + request("/later"), id="with a request in the pipeline"),
    ],
)
async def test_the_application_learns_that_the_client_has_gone(
    ours: RunningServer, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    received: list[str] = []

    async def hold(_scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        while received[-1:] != ["http.disconnect"]:
            received.append((await receive())["type"])
        await send(part(b"for nobody"))

    monkeypatch.setitem(ROUTES, "held", hold)
    async with ours.connect(sent):
        await wait_until(lambda: bool(received))
    await wait_until(lambda: received == ["http.request", "http.disconnect"])
    await wait_until(lambda: not ours.server.server_state.tasks)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(request("/"), id="a request"),
        pytest.param(request("/", method="POST", headers="Content-Length: 9\r\n", body=b"abc"), id="a part of a body"),
    ],
)
async def test_the_work_for_a_client_that_has_gone_is_cancelled(sent: bytes) -> None:
    events: list[str] = []

    async def work(scope: Scope, receive: Receive, _send: Send) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("it has no lifespan")
        await receive()
        events.append("began")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            events.append("cancelled")
            raise

    with running_server(LimitRequests(work, RequestsInProgress(None, cancel_abandoned=True)), ServerLimits()) as server:
        async with server.connect(sent):
            await wait_until(lambda: events == ["began"])
        await wait_until(lambda: events == ["began", "cancelled"])
        await wait_until(lambda: not server.server.server_state.tasks)
