"""A stop of the server under load, with slow requests, and with an application that doesn't stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx
import pytest
from fastapi import FastAPI

from howdah import Database
from howdah._log_writer import ThreadedWriter
from howdah.fastapi import configure_app
from howdah.serving import ServerLimits, is_draining, serve
from howdah.serving._server import DrainingServer
from howdah.serving._signals import end_process
from howdah_tests.support.raw_http import GET, EchoApp, RunningServer, running_server, wait_until

WAIT = GET.replace(b"/", b"/wait", 1)


def stop(server: RunningServer, *, pause: float = 0.0, idle_seconds: float = 0.3) -> None:
    """Stop as after SIGTERM."""
    assert isinstance(server.server, DrainingServer)
    server.server._is_interactive = False
    server.server._pause = pause
    server.server._idle_seconds = idle_seconds
    server.server.request_stop()


async def until_refused(port: int) -> None:
    """Wait until the server accepts no connections."""
    with suppress(ConnectionRefusedError):
        async with asyncio.timeout(10):
            while True:
                with suppress(TimeoutError):  # the attempt was ignored; the kernel would repeat it after a second
                    opened = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), 0.05)
                    opened[1].close()
                await asyncio.sleep(0.01)


async def send_requests(server: RunningServer, answered: list[int], failures: list[str]) -> None:
    """Send requests over connections that are kept alive, until the server refuses connections. Retries nothing."""
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        except ConnectionRefusedError:
            return
        except OSError as error:
            failures.append(f"connecting: {error!r}")
            return
        try:
            is_open = True
            while is_open:
                writer.write(GET)
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                answered.append(length)
                is_open = b"connection: close" not in head
        except (OSError, EOFError) as error:
            failures.append(repr(error))
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def stop_under_load(limits: ServerLimits | None, *, pause: float) -> list[str]:
    """The failures of requests while the server stops."""
    answered: list[int] = []
    failures: list[str] = []
    with running_server(EchoApp(), limits) as server:
        clients = [asyncio.create_task(send_requests(server, answered, failures)) for _ in range(20)]
        await wait_until(lambda: len(answered) > 100)
        if limits is None:
            server.server.should_exit = True
        else:
            stop(server, pause=pause)
        await asyncio.wait_for(asyncio.gather(*clients), 20)
    return failures


async def test_a_stop_under_load_fails_no_request() -> None:
    runs = [stop_under_load(ServerLimits(), pause=pause) for pause in (0.0, 0.0, 0.2)]
    assert await asyncio.gather(*runs) == [[]] * 3


async def test_control_a_stop_of_uvicorn_fails_requests() -> None:
    for _ in range(10):
        if await stop_under_load(None, pause=0.0):
            return
    pytest.fail("no request failed")


async def test_readyz_fails_first_while_requests_are_served() -> None:
    app = FastAPI()
    configure_app(app, database=lambda: Database("postgresql://nobody@127.0.0.1:1/none"), metrics=False)
    with running_server(app, ServerLimits()) as server:
        base = f"http://127.0.0.1:{server.port}"
        async with httpx.AsyncClient(base_url=base) as client:
            assert "connection" not in (await client.get("/healthz")).headers
            stop(server, pause=0.5)
            response = await client.get("/readyz")
            assert (response.status_code, response.json()["detail"]) == (503, "the process is being stopped")
            assert response.headers["connection"] == "close"
            response = await client.get("/healthz")  # over a new connection
            assert (response.status_code, response.headers["connection"]) == (200, "close")
            await until_refused(server.port)


def test_without_the_server_nothing_is_draining() -> None:
    assert not is_draining({"type": "http"})
    assert not is_draining({"type": "http", "state": {}})


async def test_a_request_in_progress_is_finished_and_its_connection_closed() -> None:
    with running_server(EchoApp(), ServerLimits()) as server:
        async with server.connect(WAIT) as running, server.connect(GET) as idle:
            await idle.read()
            await wait_until(lambda: server.app.running == 1)
            stop(server)
            assert await idle.is_closed()
            await until_refused(server.port)
            server.app.released.set()
            status, headers, _ = await running.read()
            assert (status, headers["connection"]) == (200, "close")


async def test_a_request_on_an_idle_connection_is_answered_after_the_stop_began() -> None:
    with running_server(EchoApp(), ServerLimits()) as server:
        async with server.connect(GET) as idle:
            await idle.read()
            stop(server, idle_seconds=5)
            await until_refused(server.port)
            await idle.send(GET)
            status, headers, _ = await idle.read()
            assert (status, headers["connection"]) == (200, "close")


@pytest.mark.parametrize("waiting", [pytest.param(b"", id="alone"), pytest.param(GET, id="with another one behind it")])
async def test_a_request_that_takes_too_long_gets_503(waiting: bytes) -> None:
    with running_server(EchoApp(), ServerLimits()) as server:
        assert isinstance(server.server, DrainingServer)
        server.server._timeout = 1.0
        async with server.connect(WAIT + waiting) as running:
            await wait_until(lambda: server.app.running == 1)
            stop(server)
            assert await running.read_problem() == (503, "stopping")
            await wait_until(lambda: not server.app.running)


_PROGRAM = """
import asyncio, sys, time
sys.path[:0] = ["howdah/tests"]
from howdah.serving import bind_socket, serve
from howdah_tests.support.raw_http import EchoApp

class App(EchoApp):
    async def _answer(self, scope, receive, send):
        if scope["path"] == "/block":
            print("blocked", flush=True)
            time.sleep(60)
        if scope["path"] == "/wait":
            print("waiting", flush=True)
        await super()._answer(scope, receive, send)

bound = bind_socket("127.0.0.1", 0)
print(bound.getsockname()[1], flush=True)
serve(App(), sockets=[bound], stop_pause=float(sys.argv[1]), stop_timeout=float(sys.argv[2]))
if len(sys.argv) > 3:
    time.sleep(60)
print("closed", flush=True)
"""


@asynccontextmanager
async def running_program(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A process that serves. Yields it and its port."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PROGRAM, *arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        port = int(await process.stdout.readline())
        async with asyncio.timeout(10):
            while True:  # it is bound, but doesn't listen yet
                with suppress(ConnectionRefusedError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                await asyncio.sleep(0.02)
        writer.close()
        yield process, port
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def test_the_process_ends_in_time_although_the_event_loop_or_the_caller_hangs() -> None:
    async with running_program("0", "0.5") as (blocked, port), running_program("0", "0.5", "hang") as (hanging, _):
        assert blocked.stdout is not None
        assert blocked.stderr is not None
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET.replace(b"/", b"/block", 1))
        assert await blocked.stdout.readline() == b"blocked\n"
        started = time.monotonic()
        for each in (blocked, hanging):
            each.send_signal(signal.SIGTERM)
        assert [await blocked.wait(), await hanging.wait()] == [1, 1]
        assert time.monotonic() - started < 5
        assert b"did not stop within 0.5 s" in await blocked.stderr.read()
        writer.close()


async def test_ctrl_c_skips_the_pause_and_a_second_signal_cancels_requests() -> None:
    async with running_program("20", "60") as (process, port):
        assert process.stdout is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(WAIT)
        assert await process.stdout.readline() == b"waiting\n"
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)  # from the terminal and from a parent process
        await until_refused(port)
        assert process.returncode is None
        await asyncio.sleep(0.6 - (time.monotonic() - started))  # later than the same signal from two senders
        process.send_signal(signal.SIGINT)
        assert (await reader.readline()).startswith(b"HTTP/1.1 503")
        assert await process.wait() == 0
        assert await process.stdout.read() == b"closed\n"
        assert time.monotonic() - started < 10
        writer.close()


def test_the_pause_is_a_part_of_the_timeout() -> None:
    with pytest.raises(ValueError, match=r"stop_timeout \(5 s\) includes stop_pause \(5 s\)"):
        serve(EchoApp(), stop_pause=5, stop_timeout=5)


def test_the_last_line_is_written_before_the_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log's lines are written by a thread, which ends with the process."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    writer = ThreadedWriter(writing, lambda _: b"")
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: writer.write(record.getMessage().encode()))
    logger = logging.getLogger("howdah.serving")
    seen: list[bytes] = []
    monkeypatch.setattr("howdah.serving._signals.os._exit", lambda _: seen.append(os.read(reading, 1000)))
    logger.addHandler(handler)
    try:
        end_process(time.monotonic(), 10)
    finally:
        logger.removeHandler(handler)
        writer.close()
        os.close(reading)
        os.close(writing)
    assert seen[0].startswith(b"the process did not stop within 10 s")
