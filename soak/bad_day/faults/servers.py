"""Faults of PostgreSQL: frozen and killed processes, a full disk, and a failover."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from soak.bad_day.cluster import SERVICE_NAME, signal_backend, stop_backends
from soak.bad_day.faults.fault import Fault, running
from soak.bad_day.timeline import UNLIMITED, Tolerance

_TERMINATE_SECONDS = 0.1
_LOST = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)


class _ServerFault(Fault):
    groups = frozenset({"server"})
    tolerance = Tolerance(max_unavailable=UNLIMITED, may_be_unready=True, recovery_seconds=15)


class FrozenBackends(_ServerFault):
    """SIGSTOP of some backends of the service. Locks that they hold stay held."""

    name = "frozen-backends"

    @asynccontextmanager
    async def inflict(self) -> AsyncIterator[None]:
        stopped: list[int] = []
        try:
            with contextlib.suppress(*_LOST):
                stopped = stop_backends(await self.target.cluster.read_backends(), self.rng, self.rng.randint(2, 6))
            yield
        finally:
            for pid in stopped:
                signal_backend(pid, signal.SIGCONT)


class FrozenServer(_ServerFault):
    """SIGSTOP of all of PostgreSQL's processes. Connections are accepted by the kernel, and nobody answers."""

    name = "frozen-server"

    @asynccontextmanager
    async def inflict(self) -> AsyncIterator[None]:
        self.target.cluster.freeze()
        try:
            with self.target.timeline.database_unusable():
                yield
        finally:
            self.target.cluster.thaw()


class KilledBackend(_ServerFault):
    """SIGKILL of a backend. PostgreSQL ends all sessions, and recovers."""

    name = "killed-backend"

    @asynccontextmanager
    async def inflict(self) -> AsyncIterator[None]:
        with contextlib.suppress(*_LOST):
            backends = await self.target.cluster.read_backends()
            if backends:
                signal_backend(self.rng.choice(backends), signal.SIGKILL)
        yield


class KilledPostmaster(_ServerFault):
    """SIGKILL of the postmaster. It is started again after that."""

    name = "killed-postmaster"

    @asynccontextmanager
    async def inflict(self) -> AsyncIterator[None]:
        await asyncio.to_thread(self.target.cluster.kill_and_restart)
        yield


class TerminatedBackends(_ServerFault):
    """`pg_terminate_backend` of one of the service's backends, every 100 ms."""

    name = "terminated-backends"

    @asynccontextmanager
    async def inflict(self) -> AsyncIterator[None]:
        async with running(self._terminate):
            yield

    async def _terminate(self) -> None:
        while True:
            with contextlib.suppress(*_LOST):
                async with self.target.cluster.connect() as connection:
                    while True:
                        await connection.fetchval(
                            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1 "
                            "ORDER BY random() LIMIT 1",
                            SERVICE_NAME,
                        )
                        await asyncio.sleep(_TERMINATE_SECONDS)
            await asyncio.sleep(_TERMINATE_SECONDS)


class FullDisk(_ServerFault):
    """The disk has no byte left. If PostgreSQL ends because of that, it is started again when there is space."""

    name = "full-disk"
    needs_small_disk = True
    tolerance = Tolerance(max_unavailable=UNLIMITED, may_be_unready=True, recovery_seconds=20)

    @asynccontextmanager
    async def inflict(self) -> AsyncIterator[None]:
        cluster = self.target.cluster
        try:
            await asyncio.to_thread(cluster.fill_disk)
            yield
        finally:
            cluster.free_disk()
            await asyncio.to_thread(cluster.ensure_running)


class Failover(_ServerFault):
    """The address moves to the standby, which is promoted some seconds later. Then a new standby is built.

    Until the promotion, sessions can only read.
    """

    name = "failover"

    @asynccontextmanager
    async def inflict(self) -> AsyncIterator[None]:
        cluster = self.target.cluster
        if cluster.standby is None or not await cluster.wait_until_caught_up():
            self.target.violations.add("failover: no standby", "it wasn't built, or isn't streaming")
            yield
            return
        cluster.move_address()
        await asyncio.to_thread(cluster.stop_primary)
        with self.target.timeline.database_unusable():
            yield
        await cluster.promote()

    async def clean_up(self) -> None:
        await asyncio.to_thread(self.target.cluster.build_standby)
