"""Faults of the service's own process: killed, replaced, or with a log that nobody reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from soak.bad_day.faults.fault import Fault
from soak.bad_day.timeline import UNLIMITED, Tolerance


class KilledService(Fault):
    """SIGKILL of the service. It is started again after that."""

    name = "killed-service"
    groups = frozenset({"process"})
    tolerance = Tolerance(
        max_unavailable=UNLIMITED, may_be_unready=True, may_break_connections=True, recovery_seconds=15
    )

    @asynccontextmanager
    async def inflict(self) -> AsyncIterator[None]:
        service = self.target.deployment.current
        await asyncio.to_thread(service.kill)
        service.start()
        yield
        await service.wait_until_ready()


class RollingRestart(Fault):
    """A new process starts, the clients move to it, and the old one is stopped. No request may be lost."""

    name = "rolling-restart"
    groups = frozenset({"process"})

    @asynccontextmanager
    async def inflict(self) -> AsyncIterator[None]:
        try:
            seconds = await self.target.deployment.replace()
        except TimeoutError as error:
            self.target.violations.add("rolling restart: the new process isn't ready", str(error))
        else:
            if seconds is None:
                bound = self.target.deployment.stop_bound
                self.target.violations.add("rolling restart: no stop", f"killed {bound:g} s after SIGTERM")
        yield


class StopWhileFrozen(Fault):
    """SIGTERM while PostgreSQL is frozen. The process ends in time, and is started again."""

    name = "stop-while-frozen"
    groups = frozenset({"process", "server"})
    tolerance = KilledService.tolerance

    @asynccontextmanager
    async def inflict(self) -> AsyncIterator[None]:
        cluster, deployment = self.target.cluster, self.target.deployment
        cluster.freeze()
        try:
            await asyncio.sleep(self.rng.uniform(0.5, 2.0))
            if await deployment.stop(deployment.current) is None:
                bound = deployment.stop_bound
                self.target.violations.add(f"{self.name}: no stop", f"killed {bound:g} s after SIGTERM")
        finally:
            cluster.thaw()
        deployment.current.start()
        yield
        await deployment.current.wait_until_ready()


class UnreadLog(Fault):
    """The log is a pipe that nobody reads."""

    name = "unread-log"
    groups = frozenset({"process"})

    @asynccontextmanager
    async def inflict(self) -> AsyncIterator[None]:
        pipe = self.target.deployment.pipe
        pipe.pause()
        try:
            yield
        finally:
            pipe.resume()
