"""Short reads, each by itself: connections are kept between them, so that a read is one trip and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from howdah.errors import Conflict, ConnectionLost

ResultT = TypeVar("ResultT")

# One that has rested for longer goes through the pool, which asks whether it is still there.
_RESTED_SECONDS: Final = 1.0


@dataclass(slots=True)
class _Kept:
    connection: AsyncConnection
    opened: float
    used: float


class Readers:
    """At most `keep` connections of the engine that stay out of its pool between reads, each for at most `recycle`
    seconds (-1: any time)."""

    def __init__(self, engine: AsyncEngine, *, keep: int, recycle: float) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._keep, self._recycle = keep, recycle
        self._resting: list[_Kept] = []
        self._closed = False

    @property
    def resting(self) -> int:
        """How many are kept that nobody uses now."""
        return len(self._resting)

    async def read(self, work: Callable[[AsyncConnection], Awaitable[ResultT]]) -> ResultT:
        """What `work` returns, which only reads: on a kept connection that turns out to be lost, or to have plans from
        before a migration, it is begun again on another one."""
        kept = await self._rested()
        if kept is not None:
            try:
                return await self._do(kept, work)
            except (ConnectionLost, Conflict):
                await self._give_back()
        now = time.monotonic()
        return await self._do(_Kept(await self._engine.connect(), now, now), work)

    async def close(self) -> None:
        """Give all connections back, those in use when they are done."""
        self._closed = True
        await self._give_back()

    async def _rested(self) -> _Kept | None:
        if not self._resting:
            return None
        kept, now = self._resting.pop(), time.monotonic()
        if now - kept.used < _RESTED_SECONDS and not 0 <= self._recycle <= now - kept.opened:
            return kept
        await _close(kept)
        return None

    async def _do(self, kept: _Kept, work: Callable[[AsyncConnection], Awaitable[ResultT]]) -> ResultT:
        try:
            result = await work(kept.connection)
        except BaseException:
            await _close(kept)
            raise
        if self._closed or len(self._resting) >= self._keep:
            await _close(kept)
        else:
            kept.used = time.monotonic()
            self._resting.append(kept)
        return result

    async def _give_back(self) -> None:
        while self._resting:
            await _close(self._resting.pop())


async def _close(kept: _Kept) -> None:
    await asyncio.shield(asyncio.ensure_future(kept.connection.close()))
