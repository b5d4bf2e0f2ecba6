"""uvloop accepts one connection in each iteration of the event loop. `Acceptor` accepts all waiting connections."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from typing import cast

import pytest
import uvloop

from howdah.serving import ServerLimits, bind_socket
from howdah.serving._accepting import Acceptor, Connector
from howdah.serving._supervisor import Supervisor
from howdah.serving._worker_process import WorkerProcess

CLIENTS = 300
FEW_ITERATIONS = 20


async def count_iterations(*, has_acceptor: bool) -> int:
    """The number of iterations of the event loop until all waiting clients are accepted."""
    accepted: list[asyncio.BaseTransport] = []

    class Accepted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.append(transport)

    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0), backlog=2 * CLIENTS) as listening:
        clients = [socket.create_connection(listening.getsockname()) for _ in range(CLIENTS)]
        server = await loop.create_server(Accepted, sock=listening, backlog=2 * CLIENTS)
        acceptor = Acceptor([listening.fileno()], Connector(Accepted).connect)
        if has_acceptor:
            acceptor.start()
        iterations = 0
        while len(accepted) < CLIENTS:
            iterations += 1
            await asyncio.sleep(0)
        acceptor.stop()
        for transport in accepted:
            transport.abort()  # type: ignore[attr-defined]
        for client in clients:
            client.close()
        server.close()
        await asyncio.sleep(0)
    return iterations


def test_waiting_connections_are_accepted_in_few_iterations() -> None:
    assert uvloop.run(count_iterations(has_acceptor=True)) <= FEW_ITERATIONS


def test_control_uvloop_alone_needs_an_iteration_for_each() -> None:
    assert uvloop.run(count_iterations(has_acceptor=False)) >= CLIENTS


async def test_the_loop_of_asyncio_needs_no_acceptor() -> None:
    assert not Acceptor.is_needed()


def test_a_stop_accepts_the_waiting_connections() -> None:
    """Otherwise the kernel would reset them when the socket is closed."""

    async def run() -> int:
        accepted = 0

        class Accepted(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                nonlocal accepted
                accepted += 1
                transport.close()

        with socket.create_server(("127.0.0.1", 0), backlog=2 * CLIENTS) as listening:
            clients = [socket.create_connection(listening.getsockname()) for _ in range(CLIENTS)]
            acceptor = Acceptor([listening.fileno()], Connector(Accepted).connect)
            acceptor.start()
            acceptor.stop()
            while accepted < CLIENTS:
                await asyncio.sleep(0)
            for client in clients:
                client.close()
        return accepted

    assert uvloop.run(run()) == CLIENTS


class FullWorker:
    """A worker whose socket is full: it takes no connection until the attempt with this number."""

    is_open = True
    load = (False, 0)

    def __init__(self, first_attempt: int) -> None:
        self._attempts_left = first_attempt
        self.taken = 0

    def pass_connection(self, accepted: socket.socket) -> bool:
        self._attempts_left -= 1
        self.taken += self._attempts_left <= 0
        return self._attempts_left <= 0


@pytest.mark.parametrize(("first_attempt", "taken"), [(1, CLIENTS), (4, CLIENTS), (1_000_000, 0)])
async def test_a_stop_passes_the_last_connections_to_workers_that_are_full_at_first(
    first_attempt: int, taken: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("howdah.serving._supervisor._LAST_CONNECTIONS_SECONDS", 5.0 if taken else 0.05)
    bound = bind_socket("127.0.0.1", 0)
    supervisor = Supervisor(
        print, workers=1, sockets=[bound], limits=ServerLimits(), pause=0.0, timeout=5.0, hang_timeout=5.0
    )
    worker = FullWorker(first_attempt)
    supervisor._workers = cast(list[WorkerProcess], [worker])
    supervisor._listen()
    with ExitStack() as clients:
        for _ in range(CLIENTS):
            clients.enter_context(socket.create_connection(bound.getsockname()))
        await supervisor._stop_listening()
    assert worker.taken == taken
    assert [each.getMessage() for each in caplog.records] == (
        [] if taken else ["1 connections are closed, because no worker took them"]
    )
    for accepted in supervisor._undelivered:
        accepted.close()


@pytest.mark.parametrize("error", [24, 23])  # EMFILE, ENFILE
def test_without_free_file_descriptors_it_tries_again_later(error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("howdah.serving._accepting._FULL_SECONDS", 0.01)

    async def run() -> None:
        made = asyncio.Event()

        class Accepted(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                made.set()
                transport.close()

        class FullAtFirst(socket.socket):
            failures = 0

            def accept(self) -> tuple[socket.socket, object]:
                if self.failures < 3:
                    self.failures += 1
                    raise OSError(error, "too many open files")
                return super().accept()

        monkeypatch.setattr("howdah.serving._accepting.socket.socket", FullAtFirst)
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        acceptor = Acceptor([listening.fileno()], Connector(Accepted).connect)
        acceptor.start()
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        async with asyncio.timeout(10):
            await made.wait()
            await reader.read()
        writer.close()
        acceptor.stop()
        listening.close()

    uvloop.run(run())


def test_responses_do_not_wait_for_acknowledgements() -> None:
    """With Nagle's algorithm a response on a reused connection may be 40 ms late."""
    with bind_socket("127.0.0.1", 0) as bound:
        bound.listen()
        with socket.create_connection(bound.getsockname()), bound.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
