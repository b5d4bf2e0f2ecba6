"""The load generator of the HTTP benchmarks: failures of requests, servers and processes are reported."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / "benchmarks" / "comparison.py").exists():
    pytest.skip("the benchmarks are not part of the wheel", allow_module_level=True)

sys.path.append(str(ROOT))
try:
    from benchmarks import http_load, processes
    from benchmarks.comparison import ContenderFailed, Measured
finally:
    sys.path.remove(str(ROOT))

SUMMARY = {
    "requests": 1000,
    "us": 5_000_000,
    "p50": 2_000,
    "p99": 9_000,
    "status": 0,
    "connect": 0,
    "read": 0,
    "write": 0,
    "timeout": 0,
    "statuses": "",
}


def test_the_figures_of_a_window_are_the_time_per_request_and_the_latencies() -> None:
    assert http_load.read_summary(SUMMARY, 5, 64) == Measured(0.005, latency=(0.002, 0.009))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"requests": 0, "p50": 0, "p99": 0}, "no answer in 5 s at 256 connections"),
        ({"requests": 0, "connect": 2}, "no answer in 5 s at 256 connections (2 connect errors)"),
        ({"status": 3, "statuses": "500, 503"}, "3 of 1,000 requests failed: 500, 503"),
        ({"status": 3}, "3 of 1,000 requests failed: status of 400 or more"),
        ({"read": 1}, "1 of 1,001 requests failed: 1 read error"),
        ({"status": 1, "statuses": "500", "timeout": 2}, "3 of 1,000 requests failed: 500, 2 timeout errors"),
    ],
)
def test_a_window_without_answers_or_with_errors_is_a_failure(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ContenderFailed) as caught:
        http_load.read_summary(SUMMARY | changed, 5, 256)
    assert str(caught.value) == message


async def test_a_process_that_fails_is_reported_with_the_last_line_of_its_log() -> None:
    script = "import sys; sys.exit('first line\\nlast line')"
    with pytest.raises(ContenderFailed) as caught:
        await processes.run_process("load", sys.executable, "-c", script)
    assert str(caught.value) == "load ended with exit code 1: last line"


async def test_a_process_that_does_not_end_is_killed_with_the_time_limit(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    script = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    started = time.monotonic()
    running = asyncio.create_task(processes.run_process("load", sys.executable, "-c", script, str(file)))
    while not (file.exists() and file.read_text()):
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    pid = int(file.read_text())
    while is_running(pid):
        await asyncio.sleep(0.01)
    assert time.monotonic() - started < 30


# Its child uses CPU time, and ends before the line is written.
PARENT = """
import subprocess, sys, time
burn = "import time\\nwhile time.process_time() < 0.3: pass"
subprocess.run([sys.executable, "-c", burn], check=True)
print(time.process_time(), flush=True)
sys.stdin.read()
"""


async def test_the_cpu_time_of_a_server_includes_its_children_that_have_ended() -> None:
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    own_seconds = float(await asyncio.wait_for(server.stdout.readline(), 30))

    used = processes.cpu_seconds(server.pid)

    await server.communicate(b"")
    assert used - own_seconds > 0.25


# Responds to GET /ok/…, responds to /error/… with 500, ends at /crash/…, and never responds to other paths.
SERVER = """
import asyncio, os, sys

async def serve(reader, writer):
    while line := await reader.readline():
        while (await reader.readline()).strip():
            pass
        path = line.split()[1]
        if path.startswith(b"/crash/"):
            sys.stderr.write("out of memory")
            sys.stderr.flush()
            os._exit(3)
        if path.startswith((b"/ok/", b"/error/")):
            status = b"200 OK" if path.startswith(b"/ok/") else b"500 Internal Server Error"
            writer.write(b"HTTP/1.1 " + status + b"\\r\\nContent-Length: 2\\r\\n\\r\\n{}")

async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1])) as server:
        await server.serve_forever()

asyncio.run(main())
"""


# In a new process, because the tables of the benchmarks and those of the tests have the same names.
NAMES = """
from types import SimpleNamespace
from benchmarks.shop_http import ShopHttp
for is_quick in (False, True):
    compared = ShopHttp(SimpleNamespace(url="postgresql:///x"), 1, is_quick=is_quick)
    names = [each.name for each in compared.contenders()]
    assert len({*names}) == len(names), names
    for goal in compared.goals():
        assert {goal.contender, goal.against} <= {*names}, goal
"""


async def test_each_goal_of_shop_http_compares_two_of_its_contenders() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", NAMES), cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, errors.decode()


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
async def test_a_failing_route_does_not_affect_the_next_route_of_the_same_server(tmp_path: Path) -> None:
    program = tmp_path / "server.py"
    program.write_text(SERVER)

    async def failure_and_next(path: str) -> tuple[str, Measured]:
        server = http_load.HttpServer(
            str(program), "{port}", url="postgresql:///unused", ids=[1, 2, 3], window_seconds=1
        )
        try:
            with pytest.raises(ContenderFailed) as caught:
                await server.measure_load(f"/{path}/", 4)
            return str(caught.value), await server.measure_load("/ok/", 4)
        finally:
            await server.stop()

    found = await asyncio.gather(*(failure_and_next(path) for path in ("silent", "error", "crash")))

    (silent, _), (error, _), (crash, _) = found
    assert silent == "no answer in 1 s at 4 connections"
    assert error.endswith("requests failed: 500")
    assert crash == "the server ended with exit code 3: out of memory"
    assert all(measured.seconds < 1 for _, measured in found)


def is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
