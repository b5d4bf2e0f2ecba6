"""Run contenders in other processes (`python -m benchmarks.memory …`), for example to measure their memory.

Such a process prints one JSON object at the end. `run_module` reads it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Literal

import psutil

from benchmarks.comparison import ContenderFailed, Measured

_SAMPLE_SECONDS: Final = 0.01
_MB: Final = 1_000_000


async def run_process(
    name: str, *command: str, env: Mapping[str, str] | None = None, reason: Literal["first", "last"] = "last"
) -> str:
    """Run a command and return its output.

    If the exit code isn't 0, it raises `ContenderFailed` with the first or the last line of standard error (`reason`).
    Python writes the reason in the last line.

    If the caller is cancelled, for example by a time limit, the process is killed.
    """
    process = await asyncio.create_subprocess_exec(
        *command, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        output, errors = await process.communicate()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    if process.returncode:
        log = errors.decode(errors="replace").strip()
        line = log.partition("\n")[0] if reason == "first" else log.rpartition("\n")[2]
        failed = ContenderFailed(f"{name} ended with exit code {process.returncode}: {line}")
        failed.add_note(log)
        raise failed
    return output.decode()


async def run_module(module: str, *arguments: str) -> Measured:
    """Run `python -m module arguments…` and return the figures that its `measure_block` has printed."""
    output = await run_process(module, sys.executable, "-m", module, *arguments)
    try:
        return Measured(**json.loads(output.rstrip().rpartition("\n")[2]))
    except (ValueError, TypeError) as error:
        raise ContenderFailed(f"{module} printed no figures") from error


def cpu_seconds(pid: int) -> float:
    """The CPU time that a process and its children have used, with the children that have ended."""
    process = psutil.Process(pid)
    while True:
        before = process.cpu_times()
        total = before.user + before.system + before.children_user + before.children_system
        for child in process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                times = child.cpu_times()
                total += times.user + times.system
        after = process.cpu_times()
        if (before.children_user, before.children_system) == (after.children_user, after.children_system):
            return float(total)
        # A child has ended in the meantime: its time would be missing, or be counted twice.


@asynccontextmanager
async def measure_block(*, from_zero: bool = False) -> AsyncIterator[Callable[[], None]]:
    """Print the seconds that the block takes, and the peak of resident memory. The memory at the start of the block is
    subtracted from the peak, unless `from_zero` is true. A call of the yielded function restarts the clock."""
    process = psutil.Process()
    peak = start = process.memory_info().rss

    async def sample() -> None:
        nonlocal peak
        while True:
            peak = max(peak, process.memory_info().rss)
            await asyncio.sleep(_SAMPLE_SECONDS)

    has_kernel_peak = _reset_kernel_peak()
    sampler = asyncio.create_task(sample())
    started = time.perf_counter()

    def restart_clock() -> None:
        nonlocal started
        started = time.perf_counter()

    yield restart_clock
    seconds = time.perf_counter() - started
    sampler.cancel()
    if has_kernel_peak:  # samples can miss a short peak
        peak = _kernel_peak()
    print(json.dumps({"seconds": seconds, "megabytes": (max(peak, start) - (0 if from_zero else start)) / _MB}))


def _reset_kernel_peak() -> bool:
    """Make Linux record the peak from now on. Returns false on other systems, where the peak must be sampled."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        _kernel_peak()
    except OSError:
        return False
    return True


def _kernel_peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
