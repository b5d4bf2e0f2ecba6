"""Load over HTTP: wrk sends requests to a server in another process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

import psutil

from benchmarks.comparison import ContenderFailed, Measured
from benchmarks.processes import cpu_seconds, run_process
from benchmarks.server_process import ServerProcess

WINDOW_SECONDS: Final = 5
"""The length of a measurement. Within one second, a slow contender would answer none of 256 concurrent requests."""
QUICK_WINDOW_SECONDS: Final = 1

SERVICE, DATABASE, WRK = "service", "database", "wrk"
"""The parts of `Measured.cpu`. The service is the process of the server with its children. The database is all
processes of PostgreSQL's server."""

_WARM_UP_SECONDS: Final = 1
_WARM_UP_CONNECTIONS: Final = 64

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
local has_ids = os.getenv("KIND") == "GET id"
local get = function()
    local n = math.random(#ids)
    local path = has_ids and prefix .. ids[n] or prefix
    if authorizations[n] == "" then return wrk.format("GET", path) end
    return wrk.format("GET", path, {["Authorization"] = authorizations[n]})
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
request = os.getenv("KIND") == "POST" and post or get

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

_Kind = Literal["GET", "GET id", "POST"]


def skip_reason() -> str | None:
    """The reason why no load can be generated here, or None."""
    return None if shutil.which("wrk") else "it needs wrk (the Debian package of that name)"


class HttpServer:
    """`python COMMAND …` in another process, and the requests to it.

    The command and `environment` are those of `ServerProcess`. After a failed measurement the process is replaced by a
    new one. So a contender that crashes the server, or keeps it busy, doesn't affect the next contender.
    `authorization` is the header of each request, or a list with one header for each id. With `database_pid`, the
    process of PostgreSQL's server, its CPU time is measured, too.
    """

    def __init__(
        self,
        *command: str,
        url: str,
        ids: Sequence[Any],
        window_seconds: int = WINDOW_SECONDS,
        authorization: str | Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        database_pid: int | None = None,
    ) -> None:
        self._process = ServerProcess(*command, url=url, environment=environment)
        self._window_seconds = window_seconds
        self._database_pid = database_pid
        self._warm: dict[tuple[int | None, str], int] = {}
        """The largest number of connections of a warm-up, by process and prefix."""
        self._set_requests(ids, authorization)

    def _set_requests(self, ids: Sequence[Any], authorization: str | Sequence[str] | None) -> None:
        self._authorization = authorization if isinstance(authorization, str) else None
        lines = [*map(str, ids)]
        if authorization is not None and self._authorization is None:
            lines = [f"{id} {each}" for id, each in zip(lines, authorization, strict=True)]
        self._folder = TemporaryDirectory()
        self._ids, self._script = (Path(self._folder.name, name) for name in ("ids", "load.lua"))
        self._ids.write_text("\n".join(lines))
        self._script.write_text(_SCRIPT)

    def sending(self, ids: Sequence[Any], authorization: str | Sequence[str] | None) -> HttpServer:
        """The same process, with requests of other ids and credentials."""
        other = copy(self)
        other._warm = {}
        other._set_requests(ids, authorization)
        return other

    @property
    def port(self) -> int:
        return self._process.port

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start the process, unless it is running. Returns when it accepts connections."""
        await self._process.start()

    async def stop(self) -> None:
        await self._process.close()
        self._folder.cleanup()

    async def stop_process(self) -> None:
        """End the process. The next request starts a new one."""
        await self._process.stop()

    @contextlib.asynccontextmanager
    async def replaced_on_failure(self) -> AsyncIterator[None]:
        """Start the process. If the block fails, end it, so that the next request starts a new one."""
        async with self._process.replaced_on_failure():
            yield

    async def wait_until_idle(self) -> bool:
        """Wait until the server uses no CPU time. Returns false if it is still busy after 10 s."""
        return await self._process.wait_until_idle()

    async def get_body(self, path: str, *, authorization: str | None = None) -> bytes:
        """The body of one response. Raises `ContenderFailed` if its status isn't 200."""
        return await self._send("GET", path, authorization)

    async def post_json(self, path: str, content: Any, *, idempotency_key: str) -> bytes:
        """The body of the response to a POST. Raises `ContenderFailed` if its status isn't 201."""
        body = json.dumps(content).encode()
        headers = (
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nIdempotency-Key: {idempotency_key}\r\n"
        )
        return await self._send("POST", path, None, headers=headers, body=body, expected=201)

    async def _send(
        self,
        method: str,
        path: str,
        authorization: str | None,
        *,
        headers: str = "",
        body: bytes = b"",
        expected: int = 200,
    ) -> bytes:
        """Send one request over a connection of its own, and return the body of the response."""
        async with self.replaced_on_failure():
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                sent = authorization or self._authorization
                headers += "" if sent is None else f"Authorization: {sent}\r\n"
                writer.write(
                    f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n".encode() + body
                )
                head, _, answer = (await reader.read()).partition(b"\r\n\r\n")
            finally:
                writer.close()
            status_line = head.decode(errors="replace").partition("\r\n")[0]
            if not status_line.startswith(f"HTTP/1.1 {expected}"):
                raise ContenderFailed(f"{method} {path}: {status_line or 'no answer'}")
            return answer

    async def measure_load(
        self,
        prefix: str,
        connections: int,
        *,
        is_post: bool = False,
        has_ids: bool = True,
        is_shared: bool = False,
    ) -> Measured:
        """Send requests over this many connections for the length of the window: GET requests to `prefix` plus a random
        id, or POST requests to `prefix` with a transfer between two random ids. Without `has_ids`, a GET request has
        only the credentials of the random id.

        With `is_shared` the server may be busy with other clients. Raises `ContenderFailed` if a request failed, or if
        there was no response.
        """
        kind: _Kind = "POST" if is_post else "GET id" if has_ids else "GET"
        async with self.replaced_on_failure():
            try:
                if is_shared:
                    await self._run_wrk(prefix, connections, _WARM_UP_SECONDS, kind)
                else:
                    await self._warm_up(prefix, connections, kind)
                before = self._read_cpu_seconds()
                summary = await self._run_wrk(prefix, connections, self._window_seconds, kind)
                if summary["status"]:
                    again = await self._run_wrk(prefix, connections, 1, kind, counts_statuses=True)
                    summary["statuses"] = again["statuses"]
                measured = read_summary(summary, self._window_seconds, connections)
                after = self._read_cpu_seconds()
                parts = [part for part in before if part in after]
                return replace(
                    measured, cpu={part: (after[part] - before[part]) / summary["requests"] for part in parts}
                )
            except ContenderFailed as error:
                await self._process.raise_if_ended(error)
                raise

    def _read_cpu_seconds(self) -> dict[str, float]:
        """The CPU time that each part has used so far. That of wrk is known when its process has ended."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = {WRK: ended.ru_utime + ended.ru_stime}
        for part, pid in ((SERVICE, self._process.pid), (DATABASE, self._database_pid)):
            if pid is not None:
                with contextlib.suppress(psutil.NoSuchProcess):  # it has crashed, so the requests fail
                    used[part] = cpu_seconds(pid)
        return used

    async def _warm_up(self, prefix: str, connections: int, kind: _Kind) -> None:
        """Wait until earlier requests are finished. Before the first measurement, send unmeasured requests."""
        if not await self.wait_until_idle():
            await self.stop_process()
            await self.start()
        warmed = self._process.pid, prefix
        if self._warm.get(warmed, 0) < connections:
            # Connections of the pool are opened now, as many as later windows need.
            self._warm[warmed] = max(connections, _WARM_UP_CONNECTIONS)
            await self._run_wrk(prefix, self._warm[warmed], _WARM_UP_SECONDS, kind)
            await self.wait_until_idle()

    async def _run_wrk(
        self, prefix: str, connections: int, seconds: int, kind: _Kind, *, counts_statuses: bool = False
    ) -> dict[str, Any]:
        """Run wrk for some seconds, and return its summary. Raises `ContenderFailed` if it fails."""
        environment = {"IDS": str(self._ids), "PREFIX": prefix, "KIND": kind}
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
