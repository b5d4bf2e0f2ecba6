"""Send requests at a fixed rate, whether they are answered or not: `python -m soak.bad_day.flood`.

At the end it prints JSON: the number of answers with each status, and how often they have broken each rule.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter, deque
from uuid import uuid4

from soak.bad_day import rules
from soak.bad_day.wire import Address, Connection, NoAnswer, build_request

_TIMEOUT_SECONDS = 2.0
_MAX_CONNECTIONS = 800
_TICK_SECONDS = 0.01
_KINDS = {"read": rules.READ, "transfer": rules.TRANSFER}
_JSON = {"Content-Type": "application/json"}


class Flood:
    """Requests of one kind to one address. A request without an answer after two seconds is given up."""

    def __init__(self, kind: str, address: Address, ids: list[str]) -> None:
        self._kind = kind
        self._address = address
        self._ids = ids
        self._idle: deque[Connection] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self.counts = Counter[str]()
        self.violations = Counter[str]()

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
        """Send a request on an idle connection or a new one, and count its answer."""
        connection: Connection | None = None
        with contextlib.suppress(NoAnswer, TimeoutError, OSError):
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                while self._idle and not (connection := self._idle.pop()).is_usable:
                    connection = None
                connection = connection or await Connection.open(self._address)
                answer = await connection.send(self._build())
                self._idle.append(connection)
                self.counts[f"{answer.status} {rules.shorten_problem_type(answer)}".strip()] += 1
                self.violations.update(rules.find_violations(_KINDS[self._kind], answer))
                return
        self.counts["no answer"] += 1
        if connection is not None:
            connection.abort()


def main(arguments: list[str]) -> None:
    kind, host, port, rate, seconds, *ids = arguments
    flood = Flood(kind, Address(host, int(port)), ids)
    asyncio.run(flood.run(int(rate), float(seconds)))
    print(json.dumps({"counts": flood.counts, "violations": flood.violations}))


if __name__ == "__main__":
    main(sys.argv[1:])
