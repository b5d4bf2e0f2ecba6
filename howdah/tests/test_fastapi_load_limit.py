"""The limit of requests in progress: which requests are admitted, which ones wait, and which ones are rejected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from howdah import Database
from howdah.fastapi import LoadLimit, configure_app
from howdah.fastapi.load_limit import LoadLimiter, Overloaded
from howdah_tests.support.served_apps import PROTOCOLS, MakeProtocol, RawClient, served
from howdah_tests.support.waiting import until

# A long wait, because on a busy machine a test may take a second.
ONE = LoadLimit(min_in_progress=1, max_in_progress=1, max_waiting=1, max_wait_seconds=30)


@pytest.fixture(params=[*PROTOCOLS.values()], ids=[*PROTOCOLS])
def protocol(request: pytest.FixtureRequest) -> MakeProtocol:
    found: MakeProtocol = request.param
    return found


class HeldApp:
    """An application with a route that answers when it is released, and one that streams until then."""

    def __init__(self, database_url: str, load_limit: LoadLimit | None) -> None:
        self.app = FastAPI()
        self.released = asyncio.Event()
        self.started = 0
        configure_app(self.app, database=lambda: Database(database_url), load_limit=load_limit, request_log=False)

        @self.app.get("/held")
        @self.app.head("/held")
        @self.app.post("/held")
        async def hold() -> dict[str, Any]:
            self.started += 1
            await self.released.wait()
            return {}

        @self.app.get("/stream")
        async def stream() -> StreamingResponse:
            async def parts() -> AsyncIterator[bytes]:
                yield b"first"
                await self.released.wait()

            return StreamingResponse(parts())

        @self.app.post("/upload")
        async def upload(request: Request) -> dict[str, Any]:
            async for _ in request.stream():
                self.started += 1
            return {}

    async def until_started(self, count: int) -> None:
        async def is_started() -> bool:
            return self.started == count

        await until(is_started)


async def read_metric(client: RawClient, name: str) -> float:
    body = (await client.get("/metrics")).body.decode()
    return float(next(line.split()[1] for line in body.splitlines() if line.startswith(f"{name} ")))


async def until_metric(client: RawClient, name: str, value: float) -> None:
    async def has_value() -> bool:
        return await read_metric(client, name) == value

    await until(has_value)


async def test_the_excess_is_rejected_at_once_and_probes_are_answered(
    database_url: str, protocol: MakeProtocol
) -> None:
    held = HeldApp(database_url, ONE)
    async with served(held.app, protocol) as server, server.client() as other:
        running, waiting = await server.connect(), await server.connect()
        running.send("GET", "/held")
        await held.until_started(1)
        waiting.send("GET", "/held")
        await until_metric(other, "howdah_requests_waiting", 1)

        rejected = await other.get("/held")
        assert rejected.status == 503
        assert rejected.headers["retry-after"] in {"1", "2", "3"}
        assert rejected.headers["content-type"] == "application/problem+json"
        assert rejected.body["type"] == "urn:howdah:problem:overloaded"
        other.send("HEAD", "/held")
        assert (await other.read(has_body=False)).status == 503
        other.send("POST", "/held", body=b"ignored")
        assert (await other.read()).status == 503
        assert (await other.get("/healthz")).status == 200  # on the same connection
        assert (await other.get("/readyz")).status == 200
        assert await read_metric(other, "howdah_requests_rejected_total") == 3
        assert held.started == 1

        held.released.set()
        assert (await running.read()).status == (await waiting.read()).status == 200
        assert (await other.get("/held")).status == 200
        for client in (running, waiting):
            client.close()


async def test_control_without_a_limit_every_request_starts(database_url: str, protocol: MakeProtocol) -> None:
    held = HeldApp(database_url, None)
    async with served(held.app, protocol) as server:
        clients = [await server.connect() for _ in range(3)]
        for client in clients:
            client.send("GET", "/held")
        await held.until_started(3)
        held.released.set()
        for client in clients:
            assert (await client.read()).status == 200
            client.close()


async def test_pipelined_requests_are_answered_in_order(database_url: str, protocol: MakeProtocol) -> None:
    held = HeldApp(database_url, ONE)
    async with served(held.app, protocol) as server, server.client() as other:
        running, waiting = await server.connect(), await server.connect()
        running.send("GET", "/held")
        await held.until_started(1)
        waiting.send("GET", "/held")
        await until_metric(other, "howdah_requests_waiting", 1)
        request = b"GET %b HTTP/1.1\r\nHost: test\r\n\r\n"
        paths = [b"/held", b"/healthz", b"/held", b"/held", b"/healthz", b"/held"]
        other.send_bytes(b"".join(request % path for path in paths))
        assert [(await other.read()).status for _ in paths] == [503, 200, 503, 503, 200, 503]
        held.released.set()
        running.close()
        waiting.close()


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        pytest.param(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n", [503], id="a plain request"),
        pytest.param(b"GET /held HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n", [503], id="keep-alive"),
        pytest.param(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", [200], id="a probe"),
        pytest.param(b"GET /healthz?a=b HTTP/1.1\r\nHost: a\r\n\r\n", [200], id="a probe with a query"),
        pytest.param(
            b"GET /held HTTP/1.1\r\nHost: a\r\n\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
            [503, 200],
            id="two requests in one packet",
        ),
        pytest.param(
            b"GET /held HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n\r\n\r\n", [503], id="a body like an end"
        ),
        pytest.param(b"GET /held HTTP/1.1\r\nHost: a\r\ncOnTENT-length : 4\r\n\r\n", [400], id="an invalid length"),
        pytest.param(
            b"GET /held HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", [503], id="a chunked body"
        ),
        pytest.param(b"GET /held HTTP/1.1\nHost: a\n\nGET /x HTTP/1.1\r\n\r\n", [400], id="bare line feeds"),
    ],
)
async def test_the_server_sends_one_response_for_each_request(
    database_url: str, monkeypatch: pytest.MonkeyPatch, sent: bytes, statuses: list[int]
) -> None:
    monkeypatch.setattr(LoadLimiter, "is_full", lambda _: True)
    held = HeldApp(database_url, ONE)
    async with served(held.app, PROTOCOLS["serving"]) as server, server.client() as client:
        assert (await client.get("/healthz")).status == 200  # the first request is always parsed
        client.send_bytes(sent)
        assert [(await client.read()).status for _ in statuses] == statuses
        if statuses[-1] != 400:
            assert (await client.get("/healthz")).status == 200  # nothing is left over


async def test_a_request_that_waits_too_long_is_rejected(database_url: str, protocol: MakeProtocol) -> None:
    held = HeldApp(database_url, LoadLimit(min_in_progress=1, max_in_progress=1, max_wait_seconds=0.05))
    async with served(held.app, protocol) as server, server.client() as running, server.client() as waiting:
        running.send("GET", "/held")
        await held.until_started(1)
        assert (await waiting.get("/held")).status == 503
        held.released.set()
        assert (await running.read()).status == 200
    assert held.started == 1


async def test_a_stream_and_a_slow_upload_do_not_count(database_url: str, protocol: MakeProtocol) -> None:
    held = HeldApp(database_url, ONE)
    async with served(held.app, protocol) as server, server.client() as other:
        stream, upload = await server.connect(), await server.connect()
        stream.send("GET", "/stream")
        await until_metric(other, "howdah_requests_in_progress", 0)
        upload.send_bytes(b"POST /upload HTTP/1.1\r\nHost: test\r\nContent-Length: 6\r\n\r\nabc")
        await held.until_started(1)
        await until_metric(other, "howdah_requests_in_progress", 0)
        held.released.set()
        assert (await other.get("/held")).status == 200
        upload.send_bytes(b"def")
        assert (await upload.read()).status == 200
        await until_metric(other, "howdah_requests_in_progress", 0)
        stream.close()
        upload.close()


async def test_a_waiting_request_leaves_the_queue_if_its_client_disconnects(
    database_url: str, protocol: MakeProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("howdah.fastapi.in_progress._WATCHED_AFTER_SECONDS", 0.05)
    held = HeldApp(database_url, LoadLimit(min_in_progress=1, max_in_progress=1, max_wait_seconds=60))
    async with served(held.app, protocol) as server, server.client() as other, server.client() as running:
        running.send("GET", "/held")
        await held.until_started(1)
        clients = [await server.connect() for _ in range(5)]
        for client in clients:
            client.send("GET", "/held")
        await until_metric(other, "howdah_requests_waiting", 5)
        for client in clients:
            client.close()
        await until_metric(other, "howdah_requests_waiting", 0)
        assert await read_metric(other, "howdah_requests_abandoned_total") == 5
        held.released.set()
        assert (await running.read()).status == 200
    assert held.started == 1


SLOW = LoadLimit(min_in_progress=1, max_in_progress=1, target_seconds=1)


class Waiting:
    """A limiter with one request in progress, and others that wait."""

    def __init__(self, options: LoadLimit, count: int) -> None:
        self.limiter = LoadLimiter(options)
        self._count = count
        self.tasks: list[asyncio.Task[None]] = []
        self._ticks = 0

    async def __aenter__(self) -> Waiting:
        self.now = asyncio.get_running_loop().time()
        self.limiter.start_interval(self.now)
        self.start(self._count)
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def start(self, count: int) -> None:
        loop = asyncio.get_running_loop()
        self.tasks += [loop.create_task(self.limiter.enter()) for _ in range(count)]

    def tick(self, seconds: float) -> None:
        """Let so many seconds pass since the beginning, in intervals of a tick."""
        while self._ticks < round(seconds * 10):
            self._ticks += 1
            self.limiter.tick(self.now + self._ticks / 10)


class TestLimiter:
    """The limiter alone, with times that the test chooses."""

    async def complete(self, limiter: LoadLimiter, count: int, seconds: float) -> None:
        for _ in range(count):
            await limiter.enter()
        for _ in range(count):
            limiter.leave(seconds)

    async def test_the_limit_shrinks_to_the_minimum_if_requests_take_long(self) -> None:
        limiter = LoadLimiter(LoadLimit(target_seconds=0.1, min_in_progress=8))
        for tick in range(1, 40):
            await self.complete(limiter, 8, 0.4)
            await asyncio.sleep(0)
            limiter.tick(tick / 10)
        assert limiter.status().limit == 8

    async def test_the_limit_grows_while_it_is_reached(self) -> None:
        limiter = LoadLimiter(LoadLimit(target_seconds=0.1, min_in_progress=8, max_in_progress=150))
        for tick in range(1, 10):
            waiters = [asyncio.create_task(limiter.enter()) for _ in range(limiter.status().limit + 2)]

            async def is_reached() -> bool:
                return limiter.status().in_progress >= limiter.status().limit

            await until(is_reached)
            for _ in waiters:
                limiter.leave(0.01)
            await asyncio.gather(*waiters)
            limiter.tick(tick / 10)
        assert limiter.status().limit == 150

    async def test_the_limit_stays_if_it_is_not_reached(self) -> None:
        limiter = LoadLimiter(LoadLimit())
        before = limiter.status().limit
        for tick in range(1, 40):
            await self.complete(limiter, 8, 0.001)
            await asyncio.sleep(0)
            limiter.tick(tick / 10)
        assert limiter.status().limit == before

    async def test_requests_are_started_in_small_groups_in_order_of_arrival(self) -> None:
        limiter = LoadLimiter(LoadLimit())
        started: list[int] = []

        async def start(number: int) -> None:
            await limiter.enter()
            started.append(number)

        tasks = [asyncio.create_task(start(number)) for number in range(100)]
        await asyncio.sleep(0)
        assert len(started) == 16
        await asyncio.gather(*tasks)
        assert started == [*range(100)]

    async def test_a_request_that_is_cancelled_when_it_is_admitted_leaves(self) -> None:
        limiter = LoadLimiter(LoadLimit(min_in_progress=1, max_in_progress=1))
        await limiter.enter()
        waiter = asyncio.create_task(limiter.enter())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        limiter.leave(0.01)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert (limiter.status().in_progress, limiter.status().waiting) == (0, 0)

    async def test_expected_requests_count_until_their_tasks_have_started(self) -> None:
        limiter = LoadLimiter(LoadLimit(min_in_progress=1, max_in_progress=1, max_waiting=1))
        limiter.expect()
        assert not limiter.is_full()
        limiter.expect()
        assert limiter.is_full()
        await asyncio.sleep(0)
        assert not limiter.is_full()

    async def test_a_full_limiter_rejects(self) -> None:
        limiter = LoadLimiter(LoadLimit(min_in_progress=1, max_in_progress=1, max_waiting=1))
        await limiter.enter()
        waiter = asyncio.create_task(limiter.enter())
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await limiter.enter()
        limiter.leave(0.01)
        await waiter

    async def test_a_burst_may_wait_whatever_the_throughput_is(self) -> None:
        async with Waiting(SLOW, 513) as waiting:
            assert waiting.limiter.is_full()
            assert (waiting.limiter.status().waiting, waiting.limiter.status().rejected) == (512, 0)

    async def test_a_standing_queue_is_shortened_and_new_requests_are_rejected(self) -> None:
        async with Waiting(SLOW, 513) as waiting:
            waiting.tick(0.9)
            assert (waiting.limiter.status().waiting, waiting.limiter.status().rejected) == (16, 496)
            with pytest.raises(Overloaded):
                await waiting.limiter.enter()
            waiting.tick(1.5)
            assert waiting.limiter.status().waiting == 16  # they may still be a burst
            waiting.tick(1.7)
            assert waiting.limiter.status().waiting == 0

    async def test_more_requests_than_a_burst_are_rejected_at_once(self) -> None:
        async with Waiting(SLOW, 514) as waiting:
            assert (waiting.limiter.status().waiting, waiting.limiter.status().rejected) == (16, 497)
            await asyncio.sleep(0)
            assert [task.done() for task in waiting.tasks] == [True] + 16 * [False] + 497 * [True]  # the oldest wait
            with pytest.raises(Overloaded):
                await waiting.limiter.enter()

    async def test_a_queue_that_was_empty_may_have_a_burst_again(self) -> None:
        async with Waiting(SLOW, 513) as waiting:
            waiting.tick(0.9)
            for _ in range(17):
                waiting.limiter.leave(0.01)
                await asyncio.sleep(0)
            assert waiting.limiter.status().waiting == 0
            waiting.tick(1.0)
            assert not waiting.limiter.is_full()
            await waiting.limiter.enter()
            waiting.start(512)
            await asyncio.sleep(0)
            assert waiting.limiter.status().waiting == 512

    async def test_a_pause_of_the_process_is_no_overload(self) -> None:
        async with Waiting(SLOW, 40) as waiting:
            waiting.limiter.tick(waiting.now + 60)
            waiting.limiter.tick(waiting.now + 60.1)
            assert (waiting.limiter.status().waiting, waiting.limiter.status().rejected) == (39, 0)

    @pytest.mark.parametrize(
        "options",
        [
            pytest.param({"target_seconds": 0}, id="no target"),
            pytest.param({"max_wait_seconds": float("nan")}, id="not a number"),
            pytest.param({"min_in_progress": 9, "max_in_progress": 8}, id="minimum above maximum"),
        ],
    )
    def test_impossible_limits_are_rejected(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(options))):
            LoadLimit(**options)
