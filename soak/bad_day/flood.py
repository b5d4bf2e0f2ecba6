"""Send requests at a fixed rate, and don't care about the answers: `python -m soak.bad_day.flood`."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from collections import deque
from uuid import uuid4

from soak.bad_day.wire import Address, Connection, NoAnswer, build_request

_TIMEOUT_SECONDS = 2.0
_MAX_CONNECTIONS = 800
_TICK_SECONDS = 0.01
_JSON = {"Content-Type": "application/json"}


class Flood:
    """Requests of one kind to one address. A request without an answer after two seconds is given up."""

    def __init__(self, kind: str, address: Address, ids: list[str]) -> None:
        self._kind = kind
        self._address = address
        self._ids = ids
        self._idle: deque[Connection] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, rate: int, seconds: float) -> None:
        started, sent = time.monotonic(), 0
        while (elapsed := time.monotonic() - started) < seconds:
            while sent < elapsed * rate:
                sent += 1
                if len(self._tasks) < _MAX_CONNECTIONS:
                    task = asyncio.create_task(self._send())
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(_TICK_SECONDS)

    def _build(self) -> bytes:
        if self._kind == "read":
            return build_request("GET", f"/users/{random.choice(self._ids)}")
        source, target = random.sample(self._ids, 2)
        body = f'{{"from_account_id":"{source}","to_account_id":"{target}","amount":1}}'.encode()
        return build_request("POST", "/transfers", {**_JSON, "Idempotency-Key": str(uuid4())}, body)

    async def _send(self) -> None:
        connection: Connection | None = None
        with contextlib.suppress(NoAnswer, TimeoutError, OSError):
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                while self._idle and not (connection := self._idle.pop()).is_usable:
                    connection = None
                connection = connection or await Connection.open(self._address)
                await connection.send(self._build())
                self._idle.append(connection)
                return
        if connection is not None:
            connection.abort()


def main(arguments: list[str]) -> None:
    kind, host, port, rate, seconds, *ids = arguments
    asyncio.run(Flood(kind, Address(host, int(port)), ids).run(int(rate), float(seconds)))


if __name__ == "__main__":
    main(sys.argv[1:])
