"""What all faults have in common."""

from __future__ import annotations

import asyncio
import math
import random
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

from soak.bad_day.cluster import Cluster
from soak.bad_day.deployment import Deployment
from soak.bad_day.model import Model
from soak.bad_day.timeline import Timeline, Tolerance
from soak.bad_day.violations import Violations

_RECONNECT_SECONDS = 0.3


@dataclass(frozen=True)
class Target:
    """The service, its servers and the state of the run, which the faults use."""

    cluster: Cluster
    deployment: Deployment
    model: Model
    timeline: Timeline
    violations: Violations
    folder: Path
    """A directory for files of the faults."""
    slack: float = 1.0
    """Multiplies the bounds, for a busy machine."""
    locks: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    """One lock for each group of faults."""


class Fault(ABC):
    """A fault that lasts for some seconds. All random choices are made in its constructor."""

    name: ClassVar[str]
    groups: ClassVar[frozenset[str]] = frozenset()
    """Two faults that have a group in common never overlap."""
    tolerance: ClassVar[Tolerance] = Tolerance()
    needs_small_disk: ClassVar[bool] = False

    def __init__(self, target: Target, rng: random.Random, seconds: float) -> None:
        self.target = target
        self.rng = rng
        self.seconds = seconds

    @property
    def details(self) -> str:
        """The random choices, for the log."""
        return ""

    @abstractmethod
    def inflict(self) -> AbstractAsyncContextManager[None]:
        """The fault is active inside the `async with` block, and is repaired at its end."""

    async def clean_up(self) -> None:  # noqa: B027 (most faults have nothing to do)
        """Prepare for the next fault of this kind, after the repair."""


class Attackers(Fault):
    """A fault that clients cause. `count` clients repeat the same attack."""

    count: ClassVar[int]
    max_hold_seconds: ClassVar[float] = math.inf
    """The service must end the connection of a client within this time."""

    @abstractmethod
    async def attack(self, rng: random.Random) -> None:
        """The attack of one client, on one connection. Errors of the connection are ignored."""

    @property
    def details(self) -> str:
        return f"{self.count} clients"

    @asynccontextmanager
    async def inflict(self) -> AsyncIterator[None]:
        async with running(*(partial(self._repeat, random.Random(self.rng.random())) for _ in range(self.count))):
            yield

    async def _repeat(self, rng: random.Random) -> None:
        while True:
            started = time.monotonic()
            try:
                await self.attack(rng)
            except (OSError, EOFError):
                pass  # the service rejected the client, as it should
            finally:
                held = time.monotonic() - started
                if held > self.max_hold_seconds * self.target.slack:
                    self.target.violations.add(f"{self.name}: not ended", f"a connection was held for {held:.1f} s")
            await asyncio.sleep(_RECONNECT_SECONDS * rng.uniform(0.5, 1.5))


@asynccontextmanager
async def running(*functions: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run these functions during the block, and cancel them at its end."""
    tasks = [asyncio.ensure_future(function()) for function in functions]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
