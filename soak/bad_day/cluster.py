"""A primary server and its standby, behind an address that moves to the new primary in a failover."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal

import asyncpg
import psutil

from howdah import HowdahError
from howdah.embedded import EmbeddedPostgres
from howdah.embedded.programs import runnable_programs, server_user, wheel_folder
from soak.server import kill_postmaster

DATABASE: Final = "shop"
SERVICE_NAME: Final = "shop"
"""The `application_name` of the service's connections."""

AddressKind = Literal["moving", "hosts"]

_SETTINGS: Final = {
    "max_connections": "120",
    "max_wal_size": "192MB",
    "shared_buffers": "128MB",
    "wal_keep_size": "128MB",
}
_DISK: Final = "size=1300m,mode=0755"
_PAGE_BYTES: Final = 4_096
_COPY_SECONDS: Final = 60.0
_CAUGHT_UP_SECONDS: Final = 20.0
_CONNECT_SECONDS: Final = 5.0


class Cluster:
    """Two servers in a folder. If root runs them, each one has a small disk of its own (a tmpfs).

    The methods that block are called in a thread.
    """

    def __init__(self, folder: Path, kind: AddressKind) -> None:
        self._disks = [folder / "a", folder / "b"]
        for disk in self._disks:
            disk.mkdir()
            disk.chmod(0o711)
        self._mounted = [disk for disk in self._disks if _mount(disk)]
        self._address = folder / "address"
        self._kind = kind
        self.primary = self._server(0)
        self.standby: EmbeddedPostgres | None = None
        self._filler: Path | None = None

    @property
    def has_small_disks(self) -> bool:
        return len(self._mounted) == len(self._disks)

    @property
    def url(self) -> str:
        """The URL for the service.

        `moving`: one address, which points to the other server after a failover, like a virtual IP address or a DNS
        name. `hosts`: the addresses of both servers, and the driver looks for the primary.
        """
        if self._kind == "moving":
            return f"postgresql+asyncpg://postgres@/{DATABASE}?host={self._address}"
        hosts = "&".join(f"host={disk / 'data'}:5432" for disk in self._disks)
        return f"postgresql+asyncpg://postgres@/{DATABASE}?{hosts}&target_session_attrs=primary"

    @property
    def direct_url(self) -> str:
        """The URL of the primary."""
        return self.primary.url(DATABASE)

    def start(self) -> None:
        self.primary.start()
        self.primary.ensure_database(DATABASE)
        self._point_to(self.primary)

    def stop(self) -> None:
        for server in (self.standby, self.primary):
            if server is not None:
                self.thaw()
                with contextlib.suppress(HowdahError):
                    server.stop()
        for disk in self._mounted:
            _run("umount", "-l", str(disk))

    # The standby

    def build_standby(self) -> None:
        """Copy the primary into the other folder, and start the copy as its standby."""
        standby = self._server(1 if self.primary.data_dir.parent == self._disks[0] else 0)
        with contextlib.suppress(HowdahError):
            standby.shut_down()
        shutil.rmtree(standby.data_dir, ignore_errors=True)
        user, deadline = server_user(), time.monotonic() + _COPY_SECONDS
        standby.data_dir.mkdir(mode=0o700)
        os.chown(standby.data_dir, user.uid, user.gid)
        programs = runnable_programs(user, wheel_folder(), self.primary.bin_dir, deadline)
        copied = user.run(
            *(programs / "pg_basebackup", "-h", self.primary.data_dir, "-U", "postgres", "-D", standby.data_dir),
            *("-R", "-X", "stream", "-c", "fast"),
            deadline=deadline,
        )
        if copied.returncode != 0:
            raise RuntimeError(f"pg_basebackup failed: {copied.stderr}")
        standby.start()
        self.standby = standby

    async def wait_until_caught_up(self) -> bool:
        """Wait until the standby has replayed nearly all changes of the primary. False if that takes too long."""
        deadline = time.monotonic() + _CAUGHT_UP_SECONDS
        while time.monotonic() < deadline:
            await asyncio.sleep(0.2)
            if self.standby is None:
                continue
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                async with self.connect() as connection:
                    if await connection.fetchval(
                        "SELECT count(*) FROM pg_stat_replication WHERE pg_wal_lsn_diff(sent_lsn, replay_lsn) < 1000000"
                    ):
                        return True
        return False

    def move_address(self) -> None:
        """Let new connections go to the standby, which can't write yet."""
        assert self.standby is not None
        self._point_to(self.standby)

    def stop_primary(self) -> None:
        """Shut the primary down normally. It first sends the rest of its WAL to the standby, so no commit is lost.

        With SIGKILL the last commits would be lost, because the replication is asynchronous.
        """
        self.primary.stop()

    async def promote(self) -> None:
        """Make the standby the primary. After that there is no standby."""
        assert self.standby is not None
        self.primary, self.standby = self.standby, None
        self._point_to(self.primary)
        async with self.connect() as connection:
            await connection.fetchval("SELECT pg_promote(wait => true, wait_seconds => 30)")

    # Connections and processes

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        """A connection of the run to the primary."""
        connection = await asyncpg.connect(
            host=str(self.primary.data_dir), user="postgres", database=DATABASE, timeout=_CONNECT_SECONDS
        )
        try:
            yield connection
        finally:
            connection.terminate()

    async def read_backends(self) -> list[int]:
        """The process ids of the service's backends."""
        async with self.connect() as connection:
            rows = await connection.fetch(
                "SELECT pid FROM pg_stat_activity WHERE application_name = $1 ORDER BY pid", SERVICE_NAME
            )
        return [row["pid"] for row in rows]

    def freeze(self) -> None:
        """Stop all processes of the primary. They are alive, but do nothing."""
        for process in self._processes():
            _send(process, signal.SIGSTOP)

    def thaw(self) -> None:
        for process in reversed(self._processes()):
            _send(process, signal.SIGCONT)

    def _processes(self) -> list[psutil.Process]:
        """The postmaster and its children."""
        pid = self.primary.pid
        if pid is None:
            return []
        with contextlib.suppress(psutil.Error):
            postmaster = psutil.Process(pid)
            return [postmaster, *postmaster.children()]
        return []

    def kill_and_restart(self) -> None:
        kill_postmaster(self.primary)

    def ensure_running(self) -> None:
        """Start the primary if it isn't running. A server ends if it can't write its WAL."""
        self.primary.start()

    def fill_disk(self) -> None:
        """Fill the disk of the primary to the last byte. `free_disk` must be called after that."""
        if not self.has_small_disks:
            raise RuntimeError("the servers have no small disk, so the disk of the machine would be filled")
        self._filler = self.primary.data_dir.parent / "filler"
        with self._filler.open("wb", buffering=0) as file:
            filled, size = 0, shutil.disk_usage(self._filler.parent).free
            # If a part doesn't fit, half of it is tried. PostgreSQL takes space at the same time.
            while size >= _PAGE_BYTES:
                try:
                    os.posix_fallocate(file.fileno(), filled, size)
                    filled += size
                except OSError:
                    size //= 2

    def free_disk(self) -> None:
        if self._filler is not None:
            self._filler.unlink(missing_ok=True)

    def _server(self, number: int) -> EmbeddedPostgres:
        return EmbeddedPostgres(self._disks[number] / "data", settings=_SETTINGS)

    def _point_to(self, server: EmbeddedPostgres) -> None:
        """Move the address to this server. The link is replaced in one step, so that the address always exists."""
        link = self._address.with_name("address.new")
        link.unlink(missing_ok=True)
        link.symlink_to(server.data_dir)
        link.replace(self._address)


def stop_backends(pids: list[int], rng: random.Random, count: int) -> list[int]:
    """Send SIGSTOP to some of these backends. Return them."""
    chosen = rng.sample(pids, min(count, len(pids)))
    for pid in chosen:
        signal_backend(pid, signal.SIGSTOP)
    return chosen


def signal_backend(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(number)


def _mount(disk: Path) -> bool:
    """Mount a small disk. Return False if this user may not do that."""
    if os.geteuid() != 0:
        return False
    return _run("mount", "-t", "tmpfs", "-o", _DISK, "soak", str(disk))


def _run(program: str, *arguments: str) -> bool:
    """Whether the program exists and succeeds."""
    path = shutil.which(program)
    return path is not None and subprocess.run([path, *arguments], check=False, capture_output=True).returncode == 0
