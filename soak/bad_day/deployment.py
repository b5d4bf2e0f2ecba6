"""The service's processes: one at a time, and two during a rolling restart."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import threading
import time
from pathlib import Path
from typing import Final

from soak.bad_day.wire import Address
from soak.service import Service

# Short limits, so that each one is reached in a run of five minutes. Variables of the environment take precedence.
SETTINGS: Final = {
    "SHOP_POOL_SIZE": "10",
    "SHOP_POOL_TIMEOUT": "2",
    "SHOP_STATEMENT_TIMEOUT": "5",
    "SHOP_LOCK_TIMEOUT": "2",
    "SHOP_SHUTDOWN_TIMEOUT": "10",
    "SHOP_SHUTDOWN_PAUSE": "1",
    "SHOP_HEADER_TIMEOUT": "3",
    "SHOP_BODY_TIMEOUT": "3",
    "SHOP_MAX_BODY_SECONDS": "6",
    "SHOP_WRITE_TIMEOUT": "5",
    "SHOP_MAX_CONNECTIONS": "3000",  # more than all faults open at once
}
MAX_CONNECTIONS: Final = 20 + 18 + 15
"""The pools of the customers, the staff and the system, with their overflow."""
_STOP_GRACE_SECONDS: Final = 5.0
"""A process may take this much longer than its `SHOP_SHUTDOWN_TIMEOUT`."""
_PIPE_BYTES: Final = 8_192
"""A small pipe is full after some lines."""


class LogPipe:
    """A pipe whose lines are copied to a file, unless the reader is paused."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._is_reading = threading.Event()
        self._is_reading.set()
        self._writers: list[int] = []

    def open(self) -> int:
        """Open a new pipe, and return its write end, which the caller must close."""
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        threading.Thread(target=self._copy, args=(reader,), daemon=True).start()
        return writer

    def pause(self) -> None:
        self._is_reading.clear()

    def resume(self) -> None:
        self._is_reading.set()

    def _copy(self, reader: int) -> None:
        with open(reader, "rb", buffering=0) as source, self._file.open("ab", buffering=0) as target:
            while self._is_reading.wait() and (part := source.read(_PIPE_BYTES)):
                target.write(part)


class Deployment:
    """The current process of the service, which clients find at `address`."""

    def __init__(self, database_url: str, log: Path) -> None:
        own = {name: text for name, text in os.environ.items() if name.startswith("SHOP_")}
        self._settings = SETTINGS | own
        self._url = database_url
        self._services: list[Service] = []
        self.log = log
        self.pipe = LogPipe(log)
        self.current = self._create()

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.current.port)

    @property
    def stop_bound(self) -> float:
        return float(self._settings["SHOP_SHUTDOWN_TIMEOUT"]) + _STOP_GRACE_SECONDS

    async def start(self) -> None:
        self.current.start()
        await self.current.wait_until_ready()

    async def replace(self) -> float | None:
        """A rolling restart: start a second process, move the clients to it, and stop the first one.

        Return the time of the stop in seconds, or None if the process had to be killed.
        """
        old, new = self.current, self._create()
        new.start()
        try:
            await new.wait_until_ready()
        except BaseException:
            new.kill()
            raise
        self.current = new
        return await self.stop(old)

    async def stop(self, service: Service) -> float | None:
        """Send SIGTERM, and SIGKILL if the process doesn't end in time. Return the same as `replace`."""
        started = time.monotonic()
        service.send_signal(signal.SIGTERM)
        while time.monotonic() - started < self.stop_bound:
            if not service.is_running:
                return time.monotonic() - started
            await asyncio.sleep(0.02)
        service.kill()
        return None

    def kill_all(self) -> None:
        """End the processes, whatever state they are in."""
        self.pipe.resume()
        for service in self._services:
            if service.is_running:
                service.kill()

    def _create(self) -> Service:
        service = Service(self._url, self.log, open_log=self.pipe.open, **self._settings)
        self._services.append(service)
        return service
