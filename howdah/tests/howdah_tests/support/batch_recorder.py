"""An `apply` for a Coalescer that records its batches and can hold them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence


class BatchRecorder:
    """Returns the items in capitals. With `waiting`, each batch waits for `release`."""

    def __init__(self, *, waiting: bool = True) -> None:
        self.batches: list[list[str]] = []
        self.running = self.max_running = 0
        self._passes = asyncio.Semaphore(0) if waiting else None

    async def __call__(self, items: Sequence[str]) -> list[str]:
        self.batches.append(list(items))
        self.running += 1
        self.max_running = max(self.max_running, self.running)
        try:
            if self._passes is not None:
                await self._passes.acquire()
            return [item.upper() for item in items]
        finally:
            self.running -= 1

    def release(self, count: int) -> None:
        assert self._passes is not None
        for _ in range(count):
            self._passes.release()

    async def wait_for_batches(self, count: int) -> None:
        await until(lambda: len(self.batches) >= count)


async def until(condition: Callable[[], bool]) -> None:
    """Yield to the event loop until the condition is true."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)
