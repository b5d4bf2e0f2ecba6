"""A server that a benchmark starts in another process: its start, its end, and its CPU time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import psutil

from benchmarks.comparison import ContenderFailed
from benchmarks.identity import SIGNING_KEYS
from benchmarks.processes import cpu_seconds
from shop.keyrings import new_key
from shop.postgres import as_service_login

_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 10.0
_END_SECONDS: Final = 0.5
"""Time to wait after a failure for the server's process to end, if it has crashed."""
_IDLE_SECONDS: Final = 10.0
"""Time for a server to finish the requests of the previous window. After that it is replaced."""
_IDLE_SAMPLE_SECONDS: Final = 0.2
_IDLE_CPU_SECONDS: Final = 0.02
"""A server is idle if it uses at most this CPU time during a sample: two ticks of the kernel's clock."""


class ServerProcess:
    """`python COMMAND …`, with the settings of Shop in its environment.

    `{url}` and `{port}` in the command are replaced. The URL of the database is also in the environment, and
    `environment` replaces variables. The process is started before the first request.
    """

    def __init__(self, *command: str, url: str, environment: Mapping[str, str] | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._url = url
        self._command = [each.format(url=url, port=self.port) for each in command]
        self._environment = environment or {}
        self._folder = TemporaryDirectory()
        self._log = Path(self._folder.name, "log")
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """None if no process runs."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the process, unless it is running. Returns when it accepts connections."""
        if self._process is not None and self._process.returncode is None:
            return
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, *self._command),
                env=os.environ
                | {
                    "BENCHMARK_URL": self._url,
                    "SHOP_DATABASE_URL": as_service_login(self._url),
                    "SHOP_OWNER_DATABASE_URL": self._url,
                    "SHOP_SIGNING_KEYS": SIGNING_KEYS,
                    "SHOP_RATE_LIMITS": "off",
                    "SHOP_ENCRYPTION_KEYS": new_key(),
                    "SHOP_CONSOLE_MAILS": "on",
                    "SHOP_LOG_FORMAT": "json",
                    "SHOP_SHUTDOWN_PAUSE": "0",
                    **self._environment,
                },
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.returncode is None:
            with contextlib.suppress(OSError):
                (await asyncio.open_connection("127.0.0.1", self.port))[1].close()
                return
            await asyncio.sleep(0.05)  # the server doesn't report when it listens
        state = "doesn't listen" if self._process.returncode is None else "ended"
        await self.stop()
        raise ContenderFailed(f"the server {state}: {self._last_log_line()}")

    async def stop(self) -> None:
        """End the process, by force if it doesn't end by itself. The next request starts a new one."""
        process, self._process = self._process, None
        if process is None:
            return
        # A server may be killed before it has stopped its child processes.
        children = []
        if process.returncode is None:
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()

    async def close(self) -> None:
        """End the process for good, and delete its log."""
        await self.stop()
        self._folder.cleanup()

    @contextlib.asynccontextmanager
    async def replaced_on_failure(self) -> AsyncIterator[None]:
        """Start the process. If the block fails, end it, so that the next request starts a new one."""
        await self.start()
        try:
            yield
        except BaseException:  # including the cancellation by a time limit
            await self.stop()
            raise

    async def raise_if_ended(self, cause: ContenderFailed) -> None:
        """If the server has crashed, raise a `ContenderFailed` with its exit code, which says more than `cause`."""
        if self._process is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                code = await self._process.wait()
                raise ContenderFailed(f"the server ended with exit code {code}: {self._last_log_line()}") from cause

    async def wait_until_idle(self) -> bool:
        """Wait until the server uses no CPU time. Returns whether that happened within `_IDLE_SECONDS`.

        wrk drops its connections at the end of a window. The server still processes the requests that it has received,
        and would slow down the next contender.
        """
        assert self._process is not None
        deadline = time.monotonic() + _IDLE_SECONDS
        with contextlib.suppress(psutil.Error):  # the process has ended; the next request will fail
            while time.monotonic() < deadline:
                before = cpu_seconds(self._process.pid)
                await asyncio.sleep(_IDLE_SAMPLE_SECONDS)
                if cpu_seconds(self._process.pid) - before <= _IDLE_CPU_SECONDS:
                    return True
        return False

    def _last_log_line(self) -> str:
        """The last line with a word. An error of a command line may be in a frame."""
        lines = (line.strip("│ ") for line in reversed(self._log.read_text(errors="replace").splitlines()))
        return next((line for line in lines if any(map(str.isalnum, line))), "nothing in its log")
