"""Run `shop serve` in its own process, and send requests to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

import httpx

from shop.keyrings import new_key
from shop.postgres import as_service_login
from soak.identity import SIGNING_KEYS

SHOP: Final = (sys.executable, "-c", "from shop.cli import main; main()")
"""The command `shop`, run by the current Python interpreter."""

_START_TIMEOUT_SECONDS = 60
_STOP_TIMEOUT_SECONDS = 60


class Service:
    """`shop serve` on a free port. After a restart the port is the same.

    `database_url` has the login of the owner. `settings` are environment variables. `open_log` opens a file descriptor
    for the log of a new process; by default the process writes to the file `log`.
    """

    def __init__(
        self, database_url: str, log: Path, *, open_log: Callable[[], int] | None = None, **settings: str
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as unused:
            self.port: int = unused.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._environment = os.environ | {
            "SHOP_DATABASE_URL": as_service_login(database_url),
            "SHOP_OWNER_DATABASE_URL": database_url,
            "SHOP_SIGNING_KEYS": SIGNING_KEYS,
            "SHOP_RATE_LIMITS": "off",
            "SHOP_ENCRYPTION_KEYS": new_key(),
            "SHOP_CONSOLE_MAILS": "on",
            "SHOP_LOG_FORMAT": "json",
            "SHOP_SHUTDOWN_PAUSE": "0",  # no proxy watches /readyz
            **settings,
        }
        self._log = log
        self._open_log = open_log or (lambda: os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = self._open_log()
        try:
            self._process = subprocess.Popen(
                [*SHOP, "serve", "--port", str(self.port)],
                env=self._environment,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        finally:
            os.close(log)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def wait_until_ready(self) -> None:
        """Return when `/readyz` answers 200. A service that has ended is started again."""
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        async with httpx.AsyncClient(base_url=self.address, timeout=5) as client:
            while time.monotonic() < deadline:
                if not self.is_running:  # it ends if PostgreSQL is down when it starts
                    self.start()
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get("/readyz")).status_code == 200:
                        return
                await asyncio.sleep(0.05)
        raise TimeoutError(f"the service isn't ready after {_START_TIMEOUT_SECONDS} s; see {self._log}")

    def send_signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end of the process, and return its exit code."""
        assert self._process is not None
        return self._process.wait(_STOP_TIMEOUT_SECONDS)

    def kill(self) -> None:
        """End the process with SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End the process with SIGTERM, and with SIGKILL if it does not end."""
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_SECONDS)
        finally:
            self.kill()


@contextmanager
def running_service(database_url: str, folder: Path) -> Iterator[Service]:
    """A running service, which logs to `service.log` in the folder."""
    service = Service(database_url, folder / "service.log")
    service.start()
    try:
        yield service
    finally:
        service.stop()


async def open_account(client: httpx.AsyncClient, *, allows_negative: bool = False) -> str:
    """Open an account, and return its id."""
    body = {"name": "Account", "currency": "GBP", "allows_negative": allows_negative}
    response = await client.post("/accounts", json=body)
    return str(response.raise_for_status().json()["id"])


async def post_transfer(
    client: httpx.AsyncClient, source: str, target: str, amount: int, *, key: str | None = None
) -> httpx.Response:
    """Post a transfer under this idempotency key, or under a new one."""
    body = {"from_account_id": source, "to_account_id": target, "amount": amount}
    return await client.post("/transfers", json=body, headers={"Idempotency-Key": key or str(uuid4())})


async def open_funded_accounts(client: httpx.AsyncClient, count: int, balance: int) -> list[str]:
    """Open accounts, fund each one with `balance` from an account that may be negative, and return their ids."""
    bank = await open_account(client, allows_negative=True)
    accounts = [await open_account(client) for _ in range(count)]
    for account in accounts:
        (await post_transfer(client, bank, account, balance)).raise_for_status()
    return accounts
