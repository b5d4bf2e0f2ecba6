"""Post transfers from A to B and from B to A at the same time, over HTTP.

    python -m soak.opposed_transfers --seconds 30 --clients 16

The run passes if every response is 201, PostgreSQL counted no deadlock, the balances sum to zero and `shop check` finds
no fault. Otherwise the exit code is 1. The latency of the responses is printed, too.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from soak.identity import ADMIN
from soak.ledger_state import read_ledger_state
from soak.server import shop_server
from soak.service import Service, open_funded_accounts, post_transfer, running_service

BALANCE = 1_000_000


@dataclass
class Responses:
    """The responses that the clients got."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """The latencies."""

    def percentile(self, percent: int) -> float:
        return sorted(self.seconds)[len(self.seconds) * percent // 100]


async def run_client(client: httpx.AsyncClient, source: str, target: str, until: float, responses: Responses) -> None:
    while time.monotonic() < until:
        started = time.perf_counter()
        response = await post_transfer(client, source, target, 1)
        responses.seconds.append(time.perf_counter() - started)
        responses.statuses[response.status_code] += 1


async def post_opposed(service: Service, seconds: float, clients: int) -> Responses:
    """Post in both directions between two accounts, with `clients` clients in each direction."""
    await service.wait_until_ready()
    responses = Responses()
    limits = httpx.Limits(max_connections=2 * clients)
    async with httpx.AsyncClient(base_url=service.address, headers=ADMIN, timeout=60, limits=limits) as client:
        first, second = await open_funded_accounts(client, 2, BALANCE)
        until = time.monotonic() + seconds
        await asyncio.gather(
            *(run_client(client, first, second, until, responses) for _ in range(clients)),
            *(run_client(client, second, first, until, responses) for _ in range(clients)),
        )
    return responses


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--clients", type=int, default=16, help="clients in each direction")
    options = parser.parse_args(argv)
    with shop_server() as server:
        with running_service(server.url, server.folder) as service:
            responses = asyncio.run(post_opposed(service, options.seconds, options.clients))
        state = asyncio.run(read_ledger_state(server.url))
    print(
        f"{2 * options.clients} clients for {options.seconds:g} s: {responses.statuses.total():,} transfers, "
        f"responses {dict(responses.statuses)}"
    )
    print(f"p50 {responses.percentile(50) * 1000:.1f} ms, p99 {responses.percentile(99) * 1000:.1f} ms")
    print(state)
    return 0 if state.is_correct and set(responses.statuses) == {201} else 1


if __name__ == "__main__":
    sys.exit(main())
