"""The limits for clients of a server, on real sockets. The control tests use uvicorn without limits."""

from __future__ import annotations

import asyncio
import json
import selectors
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager

import pytest

from howdah.serving import ServerLimits
from howdah.serving._protocol import LimitedHttpProtocol, Phase
from howdah_tests.support.raw_http import GET, POST, EchoApp, Peer, RunningServer, running_server, wait_until

LIMITS = ServerLimits(
    max_connections=20,
    reserved_connections=10,
    max_unfinished_connections=15,
    header_timeout=0.2,
    body_timeout=0.2,
    write_timeout=0.2,
    keep_alive_timeout=0.5,
)
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def limited() -> Iterator[RunningServer]:
    with running_server(EchoApp(), LIMITS) as server:
        yield server


@pytest.fixture(scope="module")
def unlimited() -> Iterator[RunningServer]:
    with running_server(EchoApp(), None) as server:
        yield server


@pytest.fixture(autouse=True)
async def no_connections(limited: RunningServer) -> AsyncIterator[None]:
    yield
    limited.app.released.set()
    await wait_until(lambda: not limited.connections and not limited.app.running)
    limited.app.released.clear()


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        pytest.param([b"GET / HTTP/1.1\r\nHost"], 408, "header-timeout", id="a header that stalls"),
        pytest.param([GET[:-2], b"X: " + b"a" * 20_000 + b"\r\n\r\n"], 431, "header-too-large", id="a long header"),
        pytest.param([GET[:-2] + b"X: " + b"a" * 100_000], 431, "header-too-large", id="a header without an end"),
        pytest.param([GET[:-2] + b"X: a\r\n" * 10_000 + b"\r\n"], 431, "header-too-large", id="10,000 headers"),
        pytest.param([GET[:-2] + b"X: a\r\n" * 101 + b"\r\n"], 431, "header-too-large", id="101 short headers"),
        pytest.param([b"GET /" + b"a" * 20_000 + GET[5:]], 431, "header-too-large", id="a long path"),
        pytest.param([b"\r\n" * 20_000], 431, "header-too-large", id="empty lines"),
        pytest.param([POST + b"Content-Length: 9\r\n\r\nabc"], 408, "body-timeout", id="a body that stalls"),
        pytest.param([CHUNKED + b"3\r\nab"], 408, "body-timeout", id="a chunk that stalls"),
        pytest.param([CHUNKED, b"3;" + b"a" * 99_000], 400, "invalid-request", id="a long chunk extension"),
        pytest.param([CHUNKED, b"0\r\n", b"X: a\r\n" * 9_000], 400, "invalid-request", id="many trailers"),
        pytest.param([b"HELLO\r\n\r\n"], 400, "invalid-request", id="not HTTP"),
        pytest.param([CHUNKED[:-2] + b"Content-Length: 3\r\n\r\n"], 400, "invalid-request", id="two lengths"),
        pytest.param([POST + b"Transfer-Encoding: gzip\r\n\r\n"], 400, "invalid-request", id="an unknown encoding"),
    ],
)
async def test_a_request_that_exceeds_a_limit_is_a_problem(
    limited: RunningServer, sent: list[bytes], status: int, code: str
) -> None:
    async with limited.connect() as peer:
        for part in sent:
            await peer.send(part)
            await asyncio.sleep(0)
        assert await peer.read_problem() == (status, code)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(GET[:-2] + b"X: a\r\n" * 10_000 + b"\r\n", id="10,000 headers"),
        pytest.param(GET[:-2] + b"X: " + b"a" * 1_000_000 + b"\r\n\r\n", id="a long header"),
        pytest.param(CHUNKED + b"3;" + b"a" * 1_000_000 + b"\r\nabc\r\n0\r\n\r\n", id="a long chunk extension"),
    ],
)
async def test_control_uvicorn_accepts_what_exceeds_the_limits(unlimited: RunningServer, sent: bytes) -> None:
    async with unlimited.connect(sent) as peer:
        assert (await peer.read())[0] == 200


async def test_control_uvicorn_waits_for_a_header_a_body_and_a_reader(unlimited: RunningServer) -> None:
    big = GET.replace(b"/", b"/big", 1)
    async with AsyncExitStack() as stack:
        for sent in (b"", b"GET / HTTP/1.1\r\nHost", POST + b"Content-Length: 9\r\n\r\nabc", big):
            await stack.enter_async_context(unlimited.connect(sent))
        await asyncio.sleep(1)  # twice the longest limit of the other tests
        assert unlimited.connections == 4


async def test_a_request_at_the_limits_is_answered(limited: RunningServer) -> None:
    header = b"".join(b"X: %s\r\n" % (b"a" * 150) for _ in range(99))
    assert 15_000 < len(header) < 16_300
    async with limited.connect(GET[:-2] + header + b"\r\n") as peer:
        assert (await peer.read())[0] == 200


async def test_the_first_byte_starts_the_time_of_a_later_header() -> None:
    with running_server(EchoApp(), ServerLimits(header_timeout=0.1)) as server:
        async with server.connect(GET) as peer:
            assert (await peer.read())[0] == 200
            await asyncio.sleep(0.2)  # longer than the limit for the header
            await peer.send(GET)
            assert (await peer.read())[0] == 200
            await peer.send(GET[:10])
            assert await peer.read_problem() == (408, "header-timeout")


async def test_a_connection_without_a_request_is_closed_without_a_response(limited: RunningServer) -> None:
    async with limited.connect() as new, limited.connect(GET) as used:
        await used.read()
        assert await new.is_closed()
        assert await used.is_closed()


async def test_a_body_may_take_long_if_bytes_arrive() -> None:
    with running_server(EchoApp(), ServerLimits(body_timeout=0.5)) as server:
        async with server.connect(POST + b"Content-Length: 6\r\n\r\n") as peer:
            for _ in range(6):
                await asyncio.sleep(0.1)
                await peer.send(b"a")
            assert json.loads((await peer.read())[2])["size"] == 6


async def test_chunks_of_one_byte_are_accepted(limited: RunningServer) -> None:
    async with limited.connect(CHUNKED + b"1\r\na\r\n" * 20_000 + b"0\r\n\r\n") as peer:
        assert json.loads((await peer.read())[2])["size"] == 20_000


async def test_trailers_are_not_headers(limited: RunningServer, unlimited: RunningServer) -> None:
    body = b"1\r\na\r\n0\r\nX-Client-Id: eve\r\n\r\n"
    async with limited.connect(CHUNKED + body) as peer, unlimited.connect(CHUNKED + body) as control:
        assert "x-client-id" not in json.loads((await peer.read())[2])["headers"]
        assert "x-client-id" in json.loads((await control.read())[2])["headers"]


async def test_a_client_that_does_not_read_is_disconnected(limited: RunningServer) -> None:
    async with limited.connect(GET.replace(b"/", b"/big", 1)):
        await wait_until(lambda: limited.connections == 1)
        await wait_until(lambda: limited.connections == 0 and limited.app.running == 0)


async def test_300_stalled_headers_do_not_keep_others_out(limited: RunningServer) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(300):
            await stack.enter_async_context(limited.connect(b"GET / HTTP/1.1\r\n"))
        await wait_until(lambda: limited.connections > 10)
        for path in (b"/healthz", b"/"):
            async with limited.connect(GET.replace(b"/", path, 1)) as peer:
                assert (await peer.read())[0] == 200


async def test_a_burst_of_new_connections_has_a_second_for_its_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("howdah.serving._connections._MIN_UNFINISHED_SECONDS", 30.0)  # for a slow machine
    with running_server(EchoApp(), ServerLimits()) as server, ExitStack() as stack:
        burst = _connect_burst(server, stack)
        await wait_until(lambda: server.connections == len(burst))
        for each in burst:
            each.sendall(GET)
        statuses = await asyncio.to_thread(lambda: [each.recv(12)[9:] for each in burst])
    assert statuses == [b"200"] * len(burst)


def test_control_without_that_time_connections_of_a_burst_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("howdah.serving._connections._MIN_UNFINISHED_SECONDS", -1.0)
    with running_server(EchoApp(), ServerLimits()) as server, ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for each in _connect_burst(server, stack):
            selector.register(each, selectors.EVENT_READ)
        rejected = [key.fileobj for key, _ in selector.select(10)]  # nothing was sent
        assert {each.recv(12)[9:] for each in rejected if isinstance(each, socket.socket)} == {b"503"}


def _connect_burst(server: RunningServer, stack: ExitStack) -> list[socket.socket]:
    address = ("127.0.0.1", server.port)
    return [stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(500)]


async def test_incomplete_headers_take_no_connection_from_requests() -> None:
    with running_server(EchoApp(), ServerLimits(max_connections=5, reserved_connections=5)) as server:
        async with AsyncExitStack() as stack:
            stalled = [await stack.enter_async_context(server.connect(GET[:5])) for _ in range(5)]
            await wait_until(lambda: server.connections == 5)
            peers = [await stack.enter_async_context(server.connect(GET)) for _ in range(5)]
            assert [(await each.read())[0] for each in peers] == [200] * 5
            for each in stalled:
                await each.send(GET[5:])
                assert await each.read_problem() == (503, "too-many-connections")


async def test_busy_connections_leave_a_reserve_for_probes(limited: RunningServer) -> None:
    async with AsyncExitStack() as stack:
        busy = [
            await stack.enter_async_context(limited.connect(GET.replace(b"/", b"/wait", 1)))
            for _ in range(LIMITS.max_connections)
        ]
        await wait_until(lambda: limited.app.running == len(busy))
        for _ in range(50):  # more than the reserve, one after the other
            async with limited.connect(GET) as rejected, limited.connect(GET.replace(b"/", b"/healthz", 1)) as probe:
                status, headers, _ = await rejected.read()
                assert status == 503
                assert 1 <= int(headers["retry-after"]) <= 3
                assert (await probe.read())[:1] == (200,)
                assert await probe.is_closed()
        limited.app.released.set()
        assert [(await each.read())[0] for each in busy] == [200] * len(busy)


async def test_connections_that_were_accepted_together_are_not_too_slow(limited: RunningServer) -> None:
    """While the event loop is blocked, more clients send a request than connections may be unfinished."""
    count = LIMITS.max_unfinished_connections + 3
    blocked, released = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        released.wait(5)

    async with limited.connect() as first, AsyncExitStack() as stack:
        await wait_until(lambda: limited.connections == 1)
        [protocol] = limited.server.server_state.connections
        protocol.loop.call_soon_threadsafe(block)
        await asyncio.to_thread(blocked.wait)
        peers = [await stack.enter_async_context(limited.connect(GET)) for _ in range(count)]
        released.set()
        assert [(await each.read())[0] for each in peers] == [200] * count
        await first.send(GET)
        assert (await first.read())[0] == 200


async def test_an_idle_connection_is_closed_for_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("howdah.serving._connections._MIN_IDLE_SECONDS", -1.0)
    async with _three_idle_connections() as (server, [oldest, second, _]):
        async with server.connect(GET) as new:
            assert (await new.read())[0] == 200
        assert await oldest.is_closed()
        await second.send(GET)
        assert (await second.read())[0] == 200


async def test_a_connection_that_has_just_become_idle_is_not_closed_for_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("howdah.serving._connections._MIN_IDLE_SECONDS", 30.0)  # for a slow machine
    async with _three_idle_connections() as (server, idle):
        async with server.connect(GET) as new:
            assert await new.read_problem() == (503, "too-many-connections")
        for each in idle:
            await each.send(GET)
            assert (await each.read())[0] == 200


@asynccontextmanager
async def _three_idle_connections() -> AsyncIterator[tuple[RunningServer, list[Peer]]]:
    """A server that has as many connections as it allows, and the connections. The first one became idle first."""
    with running_server(EchoApp(), ServerLimits(max_connections=3, reserved_connections=3)) as server:
        async with AsyncExitStack() as stack:
            idle = []
            for _ in range(3):
                idle.append(await stack.enter_async_context(server.connect(GET)))
                await idle[-1].read()
            await wait_until(lambda: all(map(_is_idle, server.server.server_state.connections)))
            yield server, idle


def _is_idle(connection: object) -> bool:
    return isinstance(connection, LimitedHttpProtocol) and connection.phase is Phase.IDLE


async def test_pipelined_requests_are_limited(limited: RunningServer) -> None:
    async with limited.connect(GET * 500) as peer:
        for _ in range(LIMITS.max_pipelined_requests):
            assert (await peer.read())[1].get("connection") is None
        answered = 0
        while not peer.reader.at_eof() and (await peer.read())[1].get("connection") is None:
            answered += 1
        assert await peer.is_closed()
        assert answered <= 1


async def test_an_error_after_pipelined_requests_does_not_overtake_their_responses(limited: RunningServer) -> None:
    async with limited.connect(GET.replace(b"/", b"/wait", 1) + b"HELLO\r\n\r\n") as peer:
        await wait_until(lambda: limited.app.running == 1)
        limited.app.released.set()
        status, headers, _ = await peer.read()
        assert (status, headers["connection"]) == (200, "close")
        assert await peer.is_closed()


async def test_a_body_that_nobody_reads_is_discarded_and_the_connection_stays(limited: RunningServer) -> None:
    size = 2_000_000
    async with limited.connect(b"POST /unread HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % size) as peer:
        assert (await peer.read())[0] == 200
        await peer.send(b"a" * size)
        await peer.send(GET)
        assert (await peer.read())[0] == 200


async def test_a_client_that_expects_100_and_gets_a_response_is_disconnected(limited: RunningServer) -> None:
    head = b"POST /unread HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
    async with limited.connect(head) as peer:
        status, headers, _ = await peer.read()
        assert (status, headers["connection"]) == (200, "close")
        assert await peer.is_closed()


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_a_limit_must_be_a_positive_number(value: float) -> None:
    with pytest.raises(ValueError, match="header_timeout of ServerLimits must be more than 0"):
        ServerLimits(header_timeout=value)
