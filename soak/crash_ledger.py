"""Kill the service and PostgreSQL under load, and check that no acknowledged transfer is lost.

    python -m soak.crash_ledger --kills 50        (about two minutes)

Clients post transfers over HTTP, each with its own idempotency key. If a client gets no response or a 5xx response, it
sends the same request again, until it gets a response below 500. Meanwhile SIGKILL ends processes at random: the
service, a backend of PostgreSQL (then PostgreSQL recovers), or the postmaster.

The run passes if all these conditions are met. Otherwise the exit code is 1.

- Every acknowledged transfer is in the ledger once, with its amount.
- A request that was refused has created no transfer under its key.
- The ledger has no other transfers.
- `shop check` finds no fault.

`--new-keys` is the control run: a retry uses a new key, so transfers are posted twice and the run fails.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import httpx
import psutil

from howdah.embedded import EmbeddedPostgres
from soak.identity import ADMIN
from soak.ledger_state import compare_transfers, read_ledger_state
from soak.server import ShopServer, kill_postmaster, shop_server
from soak.service import Service, open_funded_accounts, post_transfer, running_service

ACCOUNTS = 8
BALANCE = 1_000
MAX_AMOUNT = 400


@dataclass
class Responses:
    """The responses that the clients got."""

    posted: dict[str, tuple[UUID, int]] = field(default_factory=dict)
    """The transfer's id and amount, by idempotency key."""
    refused: set[str] = field(default_factory=set)
    """The idempotency keys of refused transfers."""
    counts: Counter[str] = field(default_factory=Counter)
    """By status code, or by the name of the error if there was no response."""
    retries: int = 0
    replays: int = 0


async def run_client(
    address: str, accounts: list[str], responses: Responses, stop: asyncio.Event, seed: int, *, new_keys: bool
) -> None:
    """Post transfers, and send each one again until there is a response other than 5xx. Record the responses."""
    rng = random.Random(seed)
    async with httpx.AsyncClient(base_url=address, headers=ADMIN, timeout=10) as client:
        while not stop.is_set():
            source, target = rng.sample(accounts, 2)
            key, amount = str(uuid4()), rng.randint(1, MAX_AMOUNT)
            while True:
                try:
                    response = await post_transfer(client, source, target, amount, key=key)
                except httpx.TransportError as error:
                    outcome = type(error).__name__
                else:
                    outcome = str(response.status_code)
                    if response.status_code < 500:
                        break
                responses.counts[outcome] += 1
                responses.retries += 1
                if new_keys:
                    key = str(uuid4())
                await asyncio.sleep(0.05)  # a real client doesn't retry at once, either
            responses.counts[outcome] += 1
            responses.replays += "idempotency-replayed" in response.headers
            if response.status_code == 201:
                responses.posted[key] = (UUID(response.json()["id"]), amount)
            else:
                responses.refused.add(key)


def kill_backend(server: EmbeddedPostgres, rng: random.Random) -> bool:
    """Kill one of PostgreSQL's backends. Return false if there was none."""
    assert server.pid is not None
    backends = [each for each in psutil.Process(server.pid).children() if " [local] " in " ".join(each.cmdline())]
    if not backends:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        rng.choice(backends).send_signal(signal.SIGKILL)
        return True
    return False


async def post_and_kill(
    server: EmbeddedPostgres, service: Service, responses: Responses, options: argparse.Namespace
) -> tuple[list[str], Counter[str]]:
    """Let the clients post transfers, and kill `options.kills` processes.

    Return the accounts, and how many processes of each kind were killed.
    """
    await service.wait_until_ready()
    async with httpx.AsyncClient(base_url=service.address, headers=ADMIN, timeout=10) as client:
        accounts = await open_funded_accounts(client, ACCOUNTS, BALANCE)
    stop, rng, kills = asyncio.Event(), random.Random(options.seed), Counter[str]()
    clients = [
        asyncio.create_task(
            run_client(service.address, accounts, responses, stop, options.seed + number, new_keys=options.new_keys)
        )
        for number in range(options.clients)
    ]
    for _ in range(options.kills):
        # the clients must be at work at the time of the kill
        target = len(responses.posted) + rng.randint(20, 400)
        while len(responses.posted) < target:
            await asyncio.sleep(0.01)
        kind = rng.choice(("service", "backend", "postmaster"))
        if kind == "service":
            service.kill()
            service.start()
        elif kind == "backend":
            kind = "backend" if kill_backend(server, rng) else "no backend"
        else:
            await asyncio.to_thread(kill_postmaster, server)
        kills[kind] += 1
        await service.wait_until_ready()
    stop.set()
    await asyncio.gather(*clients)
    return accounts, kills


async def compare(url: str, accounts: list[str], responses: Responses) -> bool:
    """Compare the ledger with the responses, and print the differences. Return whether there are none."""
    transfers = await compare_transfers(url, accounts, responses.posted, responses.refused)
    state = await read_ledger_state(url)
    print(transfers)
    print(state)
    return state.is_correct and transfers.are_equal


def run(server: ShopServer, options: argparse.Namespace) -> bool:
    responses = Responses()
    started = time.monotonic()
    with running_service(server.url, server.folder) as service:
        accounts, kills = asyncio.run(post_and_kill(server.postgres, service, responses, options))
    print(f"killed in {time.monotonic() - started:.0f} s: {dict(kills)}")
    print(f"acknowledged: {len(responses.posted):,} transfers, {len(responses.refused):,} refusals")
    print(f"responses {dict(responses.counts)}; retries: {responses.retries:,}; replays: {responses.replays:,}")
    return asyncio.run(compare(server.url, accounts, responses))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--new-keys", action="store_true", help="the control run: a retry uses a new idempotency key")
    options = parser.parse_args(argv)
    print(f"seed: {options.seed}")
    with shop_server() as server:
        return 0 if run(server, options) else 1


if __name__ == "__main__":
    sys.exit(main())
