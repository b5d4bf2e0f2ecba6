"""Work in a process of its own, so that its memory is its own: `python -m benchmarks.memory …` and the like.

The process prints one JSON object; `measured` reads it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from benchmarks.comparison import Measured

_EVERY_SECONDS = 0.01
_MB = 1_000_000


class Failed(Exception):
    """The process ended with an error."""


async def measured(module: str, *arguments: str) -> Measured:
    """Run the module with these arguments; what its `measuring` block took."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, errors = await process.communicate()
    if process.returncode != 0:
        raise Failed(f"{module} {' '.join(arguments)}:\n{errors.decode().strip()}")
    return Measured(**json.loads(out))


@asynccontextmanager
async def measuring(*, whole: bool = False) -> AsyncIterator[Callable[[], None]]:
    """Print the seconds that the block takes, and by how much its peak of resident memory exceeds that at its start;
    or `whole`, the peak itself. Calling what it yields starts the seconds anew."""
    process = psutil.Process()
    peak = start = process.memory_info().rss

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, process.memory_info().rss)
            await asyncio.sleep(_EVERY_SECONDS)

    reset = _reset_peak()
    watcher = asyncio.create_task(watch())
    started = time.perf_counter()

    def from_now() -> None:
        nonlocal started
        started = time.perf_counter()

    yield from_now
    seconds = time.perf_counter() - started
    watcher.cancel()
    if reset:  # the kernel misses nothing
        peak = _peak()
    print(json.dumps({"seconds": seconds, "megabytes": (max(peak, start) - (0 if whole else start)) / _MB}))


def _reset_peak() -> bool:
    """Have Linux count the peak from here; elsewhere it is sampled."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        _peak()
    except OSError:
        return False
    return True


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
