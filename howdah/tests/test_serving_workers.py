"""Several worker processes on one port: the distribution, replaced workers, reloads, stops, and summed metrics."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

import httpx
import psutil
import pytest

from howdah.serving import serve
from howdah_tests.support.worker_client import Load, WorkerService, running_workers


@pytest.fixture(scope="module")
def service() -> Iterator[WorkerService]:
    """A service with two workers, which the tests share: they kill and replace workers, but don't stop it."""
    with running_workers("--metrics", "--pause", "0.8") as service:
        yield service


def wait_for(is_true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(httpx.TransportError):  # a connection to a worker that was killed a moment ago
            if is_true():
                return
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_open_connections_are_divided_evenly(service: WorkerService) -> None:
    clients = [httpx.Client(base_url=service.url) for _ in range(20)]
    try:
        counts = Counter(client.get("/pid").json()["pid"] for client in clients)
        assert [*counts.values()] == [10, 10]
        (busy, _), _ = counts.most_common()
        for client in clients:  # one worker loses its connections, and gets the next ones
            if client.get("/pid").json()["pid"] == busy:
                client.close()
        wait_for(lambda: service.get()["pid"] == busy)
        assert {service.get()["pid"] for _ in range(5)} == {busy}
    finally:
        for client in clients:
            client.close()


def test_a_second_socket_has_its_own_port_in_every_worker(service: WorkerService) -> None:
    for port in (service.port, service.second_port):
        assert {service.get(port=port)["port"] for _ in range(4)} == {port}


def test_metrics_are_summed(service: WorkerService) -> None:
    before = service.count_requests()
    for _ in range(10):
        service.get()
    metrics = service.read_metrics()
    assert service.count_requests() == before + 10
    assert metrics["howdah_workers"] == 2
    assert metrics['howdah_pool_connections{database="main",state="limit"}'] == 60
    assert time.time() - 300 < metrics["process_start_time_seconds"] < time.time()


async def test_a_killed_worker_is_replaced_and_counters_do_not_fall(service: WorkerService) -> None:
    """It is also the control of the reload: requests fail when a worker is replaced abruptly."""
    killed, other = service.list_workers()
    failures = service.read_metrics()["howdah_worker_failures_total"]
    async with Load(service.port).running(8) as load:
        await asyncio.sleep(0.1)
        before = await asyncio.to_thread(service.count_requests)
        os.kill(killed, signal.SIGKILL)
        replaced = lambda: service.read_metrics()["howdah_worker_failures_total"] == failures + 1  # noqa: E731
        await asyncio.to_thread(wait_for, replaced)
        await asyncio.to_thread(wait_for, lambda: service.read_metrics()["howdah_workers"] == 2)
    assert load.failures
    assert service.count_requests() >= before > 0
    assert killed not in service.list_workers()
    assert other in service.list_workers()
    wait_for(lambda: "SIGKILL: another one starts in 0 s" in service.log)


def test_after_a_reload_with_broken_code_the_old_workers_go_on(service: WorkerService) -> None:
    old = service.list_workers()
    service.broken.touch()
    service.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "the new worker didn't start: the old ones go on" in service.log)
    service.broken.unlink()
    assert "RuntimeError: the new code is broken" in service.log
    assert service.list_workers() == old
    assert service.get()["pid"] in old


async def test_a_reload_under_load_fails_no_request(service: WorkerService) -> None:
    before, old = service.count_requests(), {*service.list_workers()}
    async with Load(service.port).running(8) as load, httpx.AsyncClient(base_url=service.url) as client:
        await asyncio.sleep(0.1)
        service.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(60):
            while old & {*service.list_workers()}:
                assert (await client.get("/healthz")).status_code == 200
                await asyncio.sleep(0.1)
        await asyncio.sleep(0.1)
    assert load.failures == []
    assert service.count_requests() == before + load.answers
    assert len(service.list_workers()) == 2


async def test_a_stop_drains_all_workers_after_a_pause_in_which_readyz_fails(service: WorkerService) -> None:
    """It is the last test with this service."""
    async with Load(service.port).running(4) as load, Load(service.port, "/wait").running(4) as slow:
        await asyncio.sleep(0.1)
        service.process.send_signal(signal.SIGTERM)
        for worker in service.list_workers():
            os.kill(worker, signal.SIGINT)  # as a terminal does
        await asyncio.sleep(0.3)  # within the pause
        async with httpx.AsyncClient(base_url=service.url) as client:
            for _ in range(2):  # one connection to each worker
                assert (await client.get("/readyz")).json()["detail"] == "the process is being stopped"
        assert await asyncio.to_thread(service.process.wait, 10) == 0
    assert load.failures + slow.failures == []
    assert load.answers > 50
    assert slow.answers >= 4
    assert service.process.stdout is not None
    assert service.process.stdout.read() == "closed\n"


@pytest.fixture(scope="module")
def unreliable() -> Iterator[WorkerService]:
    """A service that soon kills its workers if they hang."""
    with running_workers("--hang-timeout", "1", "--timeout", "0.5", "--pause", "0") as service:
        yield service


def test_a_worker_that_hangs_is_killed_and_its_stack_is_logged(unreliable: WorkerService) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        unreliable.get("/block")
    wait_for(lambda: "is killed: its event loop was blocked for 1 s" in unreliable.log)
    assert re.search(r'worker_service.py", line \d+ in __call__', unreliable.log)


def test_workers_end_if_their_parent_is_killed_even_if_one_hangs(unreliable: WorkerService) -> None:
    workers = [psutil.Process(pid) for pid in unreliable.list_workers()]
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{unreliable.url}/block", timeout=0.1)
    unreliable.process.kill()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []


def test_a_worker_that_does_not_stop_in_time_is_killed_and_reported() -> None:
    with running_workers("--pause", "0", "--timeout", "1") as frozen:
        os.kill(frozen.list_workers()[0], signal.SIGSTOP)
        frozen.process.send_signal(signal.SIGTERM)
        assert frozen.process.wait(10) == 1
        assert "is killed: it didn't stop in time" in frozen.log


def test_a_worker_that_cannot_start_ends_the_service() -> None:
    with WorkerService("--second-fails") as service:
        assert service.process.wait(20) == 3
        assert "the second worker fails" in service.log
        assert "ended with the exit code 3 before it served connections" in service.log


def test_the_number_of_workers_must_be_positive() -> None:
    with pytest.raises(ValueError, match="workers must be at least 1"):
        serve(print, workers=0)


def test_a_function_that_workers_cannot_import_is_refused() -> None:
    with pytest.raises(TypeError, match=r"serve needs a function of a module .*, not <function .*lambda"):
        serve(lambda: None, workers=2, port=0)
