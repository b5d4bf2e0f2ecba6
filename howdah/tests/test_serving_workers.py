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
from howdah_tests.support.worker_client import TLS, Load, WorkerService, running_workers


@pytest.fixture(scope="module")
def service() -> Iterator[WorkerService]:
    """A service with two workers. All tests but the last one leave two workers that serve."""
    with running_workers("--pause", "0.8", "--timeout", "30", "--hang-timeout", "1.5") as service:
        yield service


def wait_for(is_true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(httpx.TransportError):  # a connection to a worker that was killed a moment ago
            if is_true():
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_open_connections_are_divided_evenly(service: WorkerService) -> None:
    clients = [httpx.Client(base_url=service.url, verify=TLS) for _ in range(20)]
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


def test_a_program_that_a_worker_starts_inherits_no_connection(service: WorkerService) -> None:
    assert service.get("/inherited") == {"descriptors": []}


def test_metrics_are_summed(service: WorkerService) -> None:
    before = service.count_answers()
    for _ in range(10):
        service.get()
    metrics = service.read_metrics()
    assert service.count_answers() == before + 10
    assert metrics["howdah_workers"] == metrics["processes"] == 2


async def test_a_worker_that_hangs_is_replaced_and_counters_do_not_fall(service: WorkerService) -> None:
    """It is also the control of the reload: requests fail when a worker is replaced abruptly."""
    old = {*service.list_workers()}
    failures = service.read_metrics()["howdah_worker_failures_total"]
    async with Load(service.port).running(4) as load:
        await asyncio.to_thread(wait_for, lambda: load.answers >= 4)
        before = await asyncio.to_thread(service.count_answers)
        with pytest.raises(httpx.RemoteProtocolError):  # when the worker is killed
            await asyncio.to_thread(service.get, "/block")
        await asyncio.to_thread(wait_for, lambda: service.read_metrics()["howdah_workers"] == 2)
    assert load.failures
    assert service.read_metrics()["howdah_worker_failures_total"] == failures + 1
    assert service.count_answers() >= before > 0
    assert len(old & {*service.list_workers()}) == 1
    assert "is killed: its event loop was blocked for 1.5 s" in service.log
    assert re.search(r'worker_service.py", line \d+ in __call__', service.log)
    assert "SIGKILL: another one starts in 0 s" in service.log


def test_after_a_reload_with_broken_code_the_old_workers_go_on(service: WorkerService) -> None:
    old = service.list_workers()
    service.broken.touch()
    service.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "the new worker didn't start: the old ones go on" in service.log)
    service.broken.unlink()
    assert "RuntimeError: the new code is broken" in service.log
    assert "another one starts" not in service.log.partition("reloading: ")[2]
    assert service.list_workers() == old
    assert service.get()["pid"] in old


async def test_a_reload_under_load_fails_no_request(service: WorkerService) -> None:
    before, old = service.count_answers(), {*service.list_workers()}
    async with Load(service.port).running(8) as load, httpx.AsyncClient(base_url=service.url, verify=TLS) as client:
        await asyncio.to_thread(wait_for, lambda: load.answers >= 8)
        service.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(60):
            while old & {*service.list_workers()}:
                assert (await client.get("/readyz")).status_code == 200
                await asyncio.sleep(0.1)
        answers = load.answers
        await asyncio.to_thread(wait_for, lambda: load.answers >= answers + 8)
    assert load.failures == []
    assert not load.was_refused
    assert service.count_answers() == before + load.answers
    assert len(service.list_workers()) == 2


async def test_a_stop_drains_all_workers_after_a_pause_in_which_readyz_fails(service: WorkerService) -> None:
    """It is the last test with this service."""
    workers = service.list_workers()
    async with Load(service.port).running(4) as load, Load(service.port, "/wait").running(4) as slow:
        await asyncio.to_thread(wait_for, lambda: load.answers >= 4 and slow.sent >= 4)
        answers = load.answers
        service.process.send_signal(signal.SIGTERM)
        for worker in workers:
            os.kill(worker, signal.SIGINT)  # as a terminal does
        draining: set[int] = set()
        async with httpx.AsyncClient(base_url=service.url, verify=TLS) as client:
            while draining != {*workers}:  # within the pause
                response = await client.get("/readyz")
                if response.status_code == 503:
                    draining.add(response.json()["pid"])
        assert await asyncio.to_thread(service.process.wait, 40) == 0
    assert load.failures + slow.failures == []
    assert load.answers >= answers + 4
    assert slow.answers >= 4
    assert service.process.stdout is not None
    assert service.process.stdout.read() == "closed\n"


def test_workers_end_if_their_parent_is_killed_even_if_one_hangs() -> None:
    with running_workers("--timeout", "0.5", "--pause", "0") as service:
        workers = [psutil.Process(pid) for pid in service.list_workers()]
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"{service.url}/block", timeout=0.1, verify=TLS)
        service.process.kill()
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert len(workers) == 2
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
    with pytest.raises(ValueError, match="workers must be at least 1, not 0"):
        serve(print, workers=0)


def test_a_function_that_returns_no_application_is_refused() -> None:
    with pytest.raises(TypeError, match="must return an ASGI application, not None"):
        serve(lambda: None, workers=1, port=0)


def test_a_function_that_workers_cannot_import_is_refused() -> None:
    with pytest.raises(TypeError, match=r"serve needs a function of a module .*, not <function .*lambda"):
        serve(lambda: None, workers=2, port=0)
