"""Load over HTTP: wrk sends requests to a server in another process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import psutil

from benchmarks.comparison import ContenderFailed, Measured
from benchmarks.identity import SIGNING_KEYS
from benchmarks.processes import run_process
from shop.keyrings import new_key
from shop.postgres import as_service_login

WINDOW_SECONDS: Final = 5
"""The length of a measurement. Within one second, a slow contender would answer none of 256 concurrent requests."""
QUICK_WINDOW_SECONDS: Final = 1

_WARM_UP_SECONDS: Final = 1
_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 10.0
_END_SECONDS: Final = 0.5
"""Time to wait after a failure for the server's process to end, if it has crashed."""
_IDLE_SECONDS: Final = 10.0
"""Time for a server to finish the requests of the previous window. After that it is replaced."""
_IDLE_SAMPLE_SECONDS: Final = 0.2
_IDLE_CPU_SECONDS: Final = 0.02
"""A server is idle if it uses at most this CPU time during a sample: two ticks of the kernel's clock."""

# Each request uses new random ids. The summary is printed as one line of JSON.
#
# With the hook `response`, wrk calls Lua for each response, which is slow. So the statuses are counted only after a
# failure, in a short additional run.
_SCRIPT: Final = """
local ids, authorizations = {}, {}
for line in io.lines(os.getenv("IDS")) do
    local id, authorization = line:match("^(%S+) ?(.*)$")
    ids[#ids + 1] = id
    authorizations[#ids] = authorization
end
math.randomseed(os.time())
local prefix = os.getenv("PREFIX")
wrk.headers["Authorization"] = os.getenv("AUTHORIZATION")
local get = function()
    local n = math.random(#ids)
    if authorizations[n] == "" then return wrk.format("GET", prefix .. ids[n]) end
    return wrk.format("GET", prefix .. ids[n], {["Authorization"] = authorizations[n]})
end

-- a transfer between two accounts, with a new idempotency key
local run, number = string.format("%d-%d", os.time(), math.random(1000000000)), 0
local post = function()
    local a = math.random(#ids)
    local b = math.random(#ids - 1)
    if b >= a then b = b + 1 end
    number = number + 1
    local headers = {["Content-Type"] = "application/json", ["Idempotency-Key"] = run .. "-" .. number,
        ["Authorization"] = os.getenv("AUTHORIZATION")}
    local body = '{"from_account_id":"' .. ids[a] .. '","to_account_id":"' .. ids[b] .. '","amount":1}'
    return wrk.format("POST", prefix, headers, body)
end
request = os.getenv("METHOD") == "POST" and post or get

local threads = {}
setup = function(thread) threads[#threads + 1] = thread end
if os.getenv("COUNT_STATUSES") then
    statuses = {}
    response = function(status)
        if status > 399 then statuses[tostring(status)] = (statuses[tostring(status)] or 0) + 1 end
    end
end
done = function(summary, latency)
    local errors, found = summary.errors, {}
    for _, thread in ipairs(threads) do
        for status, _ in pairs(thread:get("statuses") or {}) do found[#found + 1] = status end
    end
    table.sort(found)
    io.write(string.format('{"requests": %d, "us": %d, "p50": %d, "p99": %d, "status": %d, "connect": %d, ' ..
        '"read": %d, "write": %d, "timeout": %d, "statuses": "%s"}', summary.requests, summary.duration,
        latency:percentile(50), latency:percentile(99), errors.status, errors.connect, errors.read, errors.write,
        errors.timeout, table.concat(found, ", ")))
end
"""


def skip_reason() -> str | None:
    """The reason why no load can be generated here, or None."""
    return None if shutil.which("wrk") else "it needs wrk (the Debian package of that name)"


class HttpServer:
    """`python COMMAND …` in another process, and the requests to it.

    `{url}` and `{port}` in the command are replaced. The URL of the database is also in the environment. The process
    is started before the first request. After a failed measurement it is replaced by a new process. So a contender that
    crashes the server, or keeps it busy, doesn't affect the next contender. `authorization` is the header of each
    request, or a list with one header for each id.
    """

    def __init__(
        self,
        *command: str,
        url: str,
        ids: Sequence[Any],
        window_seconds: int = WINDOW_SECONDS,
        authorization: str | Sequence[str] | None = None,
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port: int = free.getsockname()[1]
        self._url = url
        self._command = [each.format(url=url, port=self._port) for each in command]
        self._window_seconds = window_seconds
        self._authorization = authorization if isinstance(authorization, str) else None
        lines = [*map(str, ids)]
        if authorization is not None and self._authorization is None:
            lines = [f"{id} {each}" for id, each in zip(lines, authorization, strict=True)]
        self._folder = TemporaryDirectory()
        self._ids, self._script, self._log = (Path(self._folder.name, name) for name in ("ids", "load.lua", "log"))
        self._ids.write_text("\n".join(lines))
        self._script.write_text(_SCRIPT)
        self._process: asyncio.subprocess.Process | None = None
        self._warm: set[tuple[str, int]] = set()

    @property
    def port(self) -> int:
        return self._port

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Start the process, unless it is running. Returns when it accepts connections."""
        if self._process is not None and self._process.returncode is None:
            return
        self._warm.clear()
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
                },
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.returncode is None:
            with contextlib.suppress(OSError):
                (await asyncio.open_connection("127.0.0.1", self._port))[1].close()
                return
            await asyncio.sleep(0.05)  # the server doesn't report when it listens
        state = "doesn't listen" if self._process.returncode is None else "ended"
        await self.stop_process()
        raise ContenderFailed(f"the server {state}: {self._last_log_line()}")

    async def stop(self) -> None:
        await self.stop_process()
        self._folder.cleanup()

    async def stop_process(self) -> None:
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

    @contextlib.asynccontextmanager
    async def replaced_on_failure(self) -> AsyncIterator[None]:
        """Start the process. If the block fails, end it, so that the next request starts a new one."""
        await self.start()
        try:
            yield
        except BaseException:  # including the cancellation by a time limit
            await self.stop_process()
            raise

    async def get_body(self, path: str) -> bytes:
        """The body of one response. Raises `ContenderFailed` if its status isn't 200."""
        async with self.replaced_on_failure():
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            try:
                credentials = "" if self._authorization is None else f"Authorization: {self._authorization}\r\n"
                writer.write(
                    f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{credentials}\r\n".encode()
                )
                head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            finally:
                writer.close()
            status_line = head.decode(errors="replace").partition("\r\n")[0]
            if not status_line.startswith("HTTP/1.1 200"):
                raise ContenderFailed(f"GET {path}: {status_line or 'no answer'}")
            return body

    async def measure_load(
        self, prefix: str, connections: int, *, is_post: bool = False, is_shared: bool = False
    ) -> Measured:
        """Send requests over this many connections for the length of the window: GET requests to `prefix` plus a random
        id, or POST requests to `prefix` with a transfer between two random ids.

        With `is_shared` the server may be busy with other clients. Raises `ContenderFailed` if a request failed, or if
        there was no response.
        """
        async with self.replaced_on_failure():
            try:
                if is_shared:
                    await self._run_wrk(prefix, connections, _WARM_UP_SECONDS, is_post=is_post)
                else:
                    await self._warm_up(prefix, connections, is_post=is_post)
                summary = await self._run_wrk(prefix, connections, self._window_seconds, is_post=is_post)
                if summary["status"]:
                    again = await self._run_wrk(prefix, connections, 1, is_post=is_post, counts_statuses=True)
                    summary["statuses"] = again["statuses"]
                return read_summary(summary, self._window_seconds, connections)
            except ContenderFailed as error:
                await self._raise_if_ended(error)
                raise

    async def _raise_if_ended(self, cause: ContenderFailed) -> None:
        """If the server has crashed, raise a `ContenderFailed` with its exit code, which says more than `cause`."""
        if self._process is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                code = await self._process.wait()
                raise ContenderFailed(f"the server ended with exit code {code}: {self._last_log_line()}") from cause

    async def _warm_up(self, prefix: str, connections: int, *, is_post: bool) -> None:
        """Wait until earlier requests are finished. Before the first measurement, send unmeasured requests."""
        if not await self.wait_until_idle():
            await self.stop_process()
            await self.start()
        if (prefix, connections) not in self._warm:
            await self._run_wrk(prefix, connections, _WARM_UP_SECONDS, is_post=is_post)
            self._warm.add((prefix, connections))
            await self.wait_until_idle()

    async def wait_until_idle(self) -> bool:
        """Wait until the server uses no CPU time. Returns whether that happened within `_IDLE_SECONDS`.

        wrk drops its connections at the end of a window. The server still processes the requests that it has received,
        and would slow down the next contender.
        """
        assert self._process is not None
        deadline = time.monotonic() + _IDLE_SECONDS
        with contextlib.suppress(psutil.Error):  # the process has ended; the next request will fail
            while time.monotonic() < deadline:
                before = _cpu_seconds(self._process.pid)
                await asyncio.sleep(_IDLE_SAMPLE_SECONDS)
                if _cpu_seconds(self._process.pid) - before <= _IDLE_CPU_SECONDS:
                    return True
        return False

    async def _run_wrk(
        self, prefix: str, connections: int, seconds: int, *, is_post: bool, counts_statuses: bool = False
    ) -> dict[str, Any]:
        """Run wrk for some seconds, and return its summary. Raises `ContenderFailed` if it fails."""
        environment = {"IDS": str(self._ids), "PREFIX": prefix, "METHOD": "POST" if is_post else "GET"}
        if self._authorization is not None:
            environment["AUTHORIZATION"] = self._authorization
        if counts_statuses:
            environment["COUNT_STATUSES"] = "1"
        output = await run_process(
            *("wrk", "wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"),
            # By default wrk counts a response after 2 s as an error. Here slow responses must be measured, too.
            *("--timeout", f"{seconds + 5}s", "--script", str(self._script), self.address),
            env=os.environ | environment,
        )
        try:
            summary: dict[str, Any] = json.loads(output.splitlines()[-1])
        except (ValueError, IndexError) as error:
            raise ContenderFailed("wrk printed no summary") from error
        return summary

    def _last_log_line(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing in its log"


def read_summary(summary: Mapping[str, Any], seconds: int, connections: int) -> Measured:
    """The figures of one window. Raises `ContenderFailed` if nothing was answered or a request failed."""
    answered = summary["requests"]
    sockets = {kind: summary[kind] for kind in ("connect", "read", "write", "timeout") if summary[kind]}
    socket_errors = ", ".join(f"{count:,} {kind} error{'' if count == 1 else 's'}" for kind, count in sockets.items())
    if answered == 0:
        where = f"at {connections} connection{'' if connections == 1 else 's'}"
        raise ContenderFailed(f"no answer in {seconds} s {where}{f' ({socket_errors})' if sockets else ''}")
    failed = summary["status"] + sum(sockets.values())
    if failed:
        # A request with a timeout has a late response, so it is in `answered`. Other socket errors have no response.
        sent = answered + sum(count for kind, count in sockets.items() if kind != "timeout")
        statuses = (summary.get("statuses") or "status of 400 or more") if summary["status"] else ""
        reasons = ", ".join(filter(None, (statuses, socket_errors)))
        raise ContenderFailed(f"{failed:,} of {sent:,} requests failed: {reasons}")
    return Measured(summary["us"] / 1e6 / answered, latency=(summary["p50"] / 1e6, summary["p99"] / 1e6))


def _cpu_seconds(pid: int) -> float:
    """The CPU time that a process and its children have used."""
    process = psutil.Process(pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))
