"""Load over HTTP: wrk against a server in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.comparison import Measured

SECONDS: Final = 1
_READY_SECONDS: Final = 30.0

# What is asked for is drawn anew for each request; what came of it is printed as one line of JSON.
_SCRIPT: Final = """
local ids = {}
for line in io.lines(os.getenv("IDS")) do ids[#ids + 1] = line end
math.randomseed(os.time())
local prefix = os.getenv("PREFIX")
local get = function() return wrk.format("GET", prefix .. ids[math.random(#ids)]) end

-- a transfer between two of them, under a key of its own
local run, number = string.format("%d-%d", os.time(), math.random(1000000000)), 0
local post = function()
    local a = math.random(#ids)
    local b = math.random(#ids - 1)
    if b >= a then b = b + 1 end
    number = number + 1
    local headers = {["Content-Type"] = "application/json", ["Idempotency-Key"] = run .. "-" .. number}
    local body = '{"from_account_id":"' .. ids[a] .. '","to_account_id":"' .. ids[b] .. '","amount":1}'
    return wrk.format("POST", prefix, headers, body)
end
request = os.getenv("METHOD") == "POST" and post or get
done = function(summary, latency)
    local errors = summary.errors
    local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    io.write(string.format('{"requests": %d, "us": %d, "failed": %d, "p50": %d, "p99": %d}',
        summary.requests, summary.duration, failed,
        latency:percentile(50), latency:percentile(99)))
end
"""


class Failed(Exception):
    """The server didn't come up, or didn't answer every request well."""


def missing() -> str | None:
    """Why no load can be made here, if so."""
    return None if shutil.which("wrk") else "it needs wrk (the Debian package of that name)"


class Server:
    """`python COMMAND …` in a process of its own, and what clients ask of it. `{url}` and `{port}` in the command are
    filled in, and the URL is in its environment."""

    def __init__(self, *command: str, url: str, ids: Sequence[Any]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._url = url
        self._command = [each.format(url=url, port=self._port) for each in command]
        self._folder = TemporaryDirectory()
        self._ids, self._script = Path(self._folder.name, "ids"), Path(self._folder.name, "get.lua")
        self._ids.write_text("\n".join(map(str, ids)))
        self._script.write_text(_SCRIPT)
        self._log = Path(self._folder.name, "log").open("wb")  # noqa: SIM115  # closed when it is stopped
        self._process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, *self._command),
            env=os.environ | {"BENCHMARK_URL": self._url, "SHOP_DATABASE_URL": self._url, "SHOP_LOG_FORMAT": "json"},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=self._log,
        )
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline and self._process.returncode is None:
            with contextlib.suppress(OSError):
                (await asyncio.open_connection("127.0.0.1", self._port))[1].close()
                return
            await asyncio.sleep(0.05)  # it can't tell
        raise Failed(f"{' '.join(self._command)} doesn't listen")

    async def stop(self) -> None:
        if self._process is not None:
            if self._process.returncode is None:
                self._process.terminate()
            await self._process.wait()
        self._log.close()
        self._folder.cleanup()

    async def get(self, path: str) -> bytes:
        """The body of one answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        if not head.startswith(b"HTTP/1.1 200"):
            raise Failed(f"{path}: {head.decode()}")
        return body

    async def load(self, prefix: str, connections: int, *, post: bool = False) -> Measured:
        """Ask for `prefix` and an id at random, again and again, over so many connections; or post there a transfer
        between two ids."""
        wrk = await asyncio.create_subprocess_exec(
            *("wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{SECONDS}s"),
            *("--script", str(self._script), f"http://127.0.0.1:{self._port}"),
            env=os.environ | {"IDS": str(self._ids), "PREFIX": prefix, "METHOD": "POST" if post else "GET"},
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await wrk.communicate()
        found = json.loads(out.decode().splitlines()[-1])
        if wrk.returncode or found["failed"]:
            raise Failed(f"{prefix} at {connections} connections: {found}")
        return Measured(found["us"] / 1e6 / found["requests"], latency=(found["p50"] / 1e6, found["p99"] / 1e6))
