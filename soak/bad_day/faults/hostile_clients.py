"""Clients whose requests are too large or too many, or that don't wait for the answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from soak.bad_day.faults.fault import Attackers, Fault, Target
from soak.bad_day.timeline import UNLIMITED, Tolerance
from soak.bad_day.wire import build_request, open_streams
from soak.identity import ADMIN_LINE

_BODY_BYTES = 300_000_000
_FLOOD_GRACE_SECONDS = 15.0
_PART = b"x" * 262_144


class HugeBody(Attackers):
    """A JSON body of 300 MB, with or without `Content-Length`."""

    name = "huge-body"
    count = 1

    async def attack(self, rng: random.Random) -> None:
        is_chunked = rng.random() < 0.5
        length = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % _BODY_BYTES
        head = (
            b"POST /transfers HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Idempotency-Key: %x\r\n%b\r\n%b\r\n" % (rng.getrandbits(64), length, ADMIN_LINE)
        )
        reader, writer = await open_streams(self.target.deployment.address)
        answered = asyncio.create_task(reader.read(1))
        try:
            writer.write(head)
            for _ in range(_BODY_BYTES // len(_PART)):
                if answered.done():
                    break
                writer.write(b"%x\r\n%b\r\n" % (len(_PART), _PART) if is_chunked else _PART)
                await writer.drain()
            await asyncio.wait([answered], timeout=self.seconds)
        finally:
            answered.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await answered
            writer.transport.abort()


class GiantHeaders(Attackers):
    """A header of a megabyte, or five thousand headers."""

    name = "giant-headers"
    count = 10

    async def attack(self, rng: random.Random) -> None:
        headers = (
            {"X-Header": "x" * 1_000_000}
            if rng.random() < 0.5
            else {f"X-Header-{number}": "x" for number in range(5_000)}
        )
        reader, writer = await open_streams(self.target.deployment.address)
        try:
            writer.write(build_request("GET", "/users", headers))
            await writer.drain()
            async with asyncio.timeout(self.seconds):
                await reader.read(1)
        except TimeoutError:
            pass
        finally:
            writer.transport.abort()


class AbandonedRequests(Attackers):
    """Expensive requests whose clients don't wait for the answer."""

    name = "abandoned-requests"
    count = 24
    tolerance = Tolerance(max_unavailable=UNLIMITED)

    async def attack(self, rng: random.Random) -> None:
        paths = (
            "/orders?limit=200&sort=-total_cents",
            "/users?limit=200",
            "/orders/export?format=csv",
            f"/users/{rng.choice(self.target.model.user_ids)}/order-summary",
        )
        for _ in range(10):
            _, writer = await open_streams(self.target.deployment.address)
            try:
                writer.write(build_request("GET", rng.choice(paths)))
                await asyncio.sleep(rng.uniform(0.005, 0.1))
            finally:
                writer.transport.abort()


class Overload(Fault):
    """More requests than the service can handle. They are sent at a fixed rate, whether it answers or not.

    Another process sends them, because this one has to check answers.
    """

    name = "overload"
    tolerance = Tolerance(max_unavailable=UNLIMITED)

    def __init__(self, target: Target, rng: random.Random, seconds: float) -> None:
        super().__init__(target, rng, seconds)
        self._rate = self.rng.choice((2_000, 4_000, 6_000))
        self._kind = self.rng.choice(("read", "transfer"))

    @property
    def details(self) -> str:
        return f"{self._rate:,} requests/s, {self._kind}"

    @asynccontextmanager
    async def inflict(self) -> AsyncIterator[None]:
        model, address = self.target.model, self.target.deployment.address
        ids = model.spare_accounts if self._kind == "transfer" else model.user_ids[:200]
        options = (self._kind, address.host, str(address.port), str(self._rate), str(self.seconds))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "soak.bad_day.flood", *options, *ids), stdout=PIPE
        )
        try:
            yield
            async with asyncio.timeout(_FLOOD_GRACE_SECONDS):
                output = (await process.communicate())[0]
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        result = json.loads(output)
        print(f"overload: {result['counts']}", flush=True)
        for violation, count in result["violations"].items():
            self.target.violations.add(f"overload: {violation}", f"{count} answers")
