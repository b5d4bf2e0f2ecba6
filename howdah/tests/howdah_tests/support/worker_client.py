"""Start `worker_service`, and send requests to it."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

from howdah_tests.support import worker_service
from howdah_tests.support.raw_http import GET

TESTS = Path(__file__).parents[2]

# Otherwise each client reads the certificates of all authorities, which takes 20 ms.
TLS = ssl.create_default_context()


class WorkerService:
    """A running service."""

    def __init__(self, *arguments: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.log_file = Path(self.folder.name, "log")
        self.broken = Path(self.folder.name, "broken")
        """New workers don't start if this file exists."""
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", worker_service.__name__, "--folder", self.folder.name, *arguments],
                env={**os.environ, "PYTHONPATH": str(TESTS)},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        self.port, self.second_port = map(int, self.process.stdout.readline().split())
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.folder.cleanup()

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def wait_until_ready(self) -> Self:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                httpx.get(f"{self.url}/pid", timeout=5, verify=TLS)
            except httpx.TransportError:
                time.sleep(0.05)
            else:
                return self
        raise AssertionError(self.log)

    def get(self, path: str = "/pid", port: int | None = None) -> Any:
        """The JSON of a response on a new connection."""
        address = f"http://127.0.0.1:{port or self.port}"
        return httpx.get(f"{address}{path}", timeout=30, verify=TLS).raise_for_status().json()

    def read_metrics(self) -> dict[str, float]:
        """The sums of all workers, by the name of the sample."""
        metrics: dict[str, float] = self.get("/metrics")
        return metrics

    def count_answers(self) -> float:
        """The answers to `/pid`."""
        return self.read_metrics()["answers_total"]

    def list_workers(self) -> list[int]:
        """The process ids of the workers."""
        found = []
        for each in psutil.Process(self.process.pid).children():
            with suppress(psutil.Error):  # it has just ended
                if "spawn_main" in "".join(each.cmdline()):
                    found.append(each.pid)
        return found


class Load:
    """Clients that send requests over kept connections, and never send a request twice."""

    def __init__(self, port: int, path: str = "/pid") -> None:
        self._port, self._request = port, GET.replace(b"/", path.encode(), 1)
        self.failures: list[str] = []
        self.sent = self.answers = 0
        self.is_stopping = self.was_refused = False
        self._tasks: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def running(self, clients: int) -> AsyncIterator[Self]:
        self._tasks = [asyncio.create_task(self._run()) for _ in range(clients)]
        yield self
        self.is_stopping = True
        await asyncio.wait_for(asyncio.gather(*self._tasks), 30)

    async def _run(self) -> None:
        while not self.is_stopping:
            writer = None
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                is_open = True
                while is_open and not self.is_stopping:
                    writer.write(self._request)
                    self.sent += 1
                    head = (await reader.readuntil(b"\r\n\r\n")).lower()
                    await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
                    if not head.startswith(b"http/1.1 200"):
                        self.failures.append(head[:12].decode())
                    self.answers += 1
                    is_open = b"connection: close" not in head
                    await asyncio.sleep(0.02)  # leaves the processors to the workers that start
            except ConnectionRefusedError:
                self.was_refused = True  # the service has stopped
                return
            except (OSError, EOFError) as error:
                self.failures.append(repr(error))
            finally:
                if writer is not None:
                    writer.close()


@contextmanager
def running_workers(*arguments: str) -> Iterator[WorkerService]:
    with WorkerService(*arguments) as service:
        yield service.wait_until_ready()
