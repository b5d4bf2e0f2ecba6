"""Post batches of transfers between the same accounts, in opposed and shuffled order, from several processes.

    python -m soak.opposed_batches --seconds 60

Each process posts batches of 20 to 200 requests. A batch uses 2 to 50 accounts. All processes use the same accounts,
and some of the same idempotency keys. Half of the clients post through a `Ledger`, and half in their own transactions.

The run passes if PostgreSQL counted no deadlock, there was no error, the balances sum to zero and `shop check` finds no
fault. Otherwise the exit code is 1. `--unordered` is the control run: one process locks the accounts in the order of
its requests, so there are deadlocks and the run fails.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import select

from howdah import Database, uuid7
from shop import tables  # noqa: F401 (tables refer to each other)
from shop.ledger.group_commit import Ledger
from shop.ledger.lock_waits import KeyInUse
from shop.ledger.models import Account
from shop.ledger.requests import TransferRequest
from shop.ledger.service import post_transfers
from soak.ledger_state import read_ledger_state
from soak.server import shop_server

ACCOUNTS = 50
BALANCE = 10_000
MAX_AMOUNT = 500
SHARED_KEYS = 100_000


@dataclass(frozen=True)
class Load:
    """The work of one process."""

    url: str
    seed: int
    seconds: float
    clients: int
    accounts: Sequence[UUID]
    unordered: bool
    """For the control run: lock the accounts in the order of the requests."""


def draw_batch(rng: random.Random, accounts: Sequence[UUID], seed: int) -> list[TransferRequest]:
    """Random requests. One batch in four uses only 2 to 4 accounts, so some pairs of batches share no account.

    Half of the batches are sorted. Processes with an even and with an odd seed sort them in opposite orders.
    """
    batch_accounts = rng.sample(accounts, rng.randint(2, 4) if rng.random() < 0.25 else rng.randint(8, len(accounts)))
    requests = []
    for _ in range(rng.randint(20, 200)):
        source, target = rng.sample(batch_accounts, 2)
        key = rng.choice((None, str(uuid7()), str(rng.randint(1, SHARED_KEYS))))
        requests.append(TransferRequest(source, target, rng.randint(1, MAX_AMOUNT), key=key))
    if rng.random() < 0.5:
        requests.sort(key=lambda request: request.from_account_id, reverse=seed % 2 == 1)
    return requests


async def post_in_transaction(
    database: Database, requests: Sequence[TransferRequest], *, unordered: bool
) -> Counter[str]:
    """Post in a transaction without a `Ledger`. After `KeyInUse` the transaction is retried, as the error requires."""
    retries = 0
    while True:
        try:
            async with database.begin() as session:
                if unordered:
                    for request in requests:
                        for account in (request.from_account_id, request.to_account_id):
                            await session.execute(
                                select(Account.id).where(Account.id == account).with_for_update(key_share=True)
                            )
                results = await post_transfers(session, requests)
        except KeyInUse:
            retries += 1
        else:
            return Counter(str(result.refusal or "posted") for result in results) + Counter({"retries": retries})


async def post_batches(load: Load) -> Counter[str]:
    """Run the clients of one process. Return the number of results, by outcome."""
    outcomes: Counter[str] = Counter()
    until = time.monotonic() + load.seconds
    async with Database(load.url, pool_size=load.clients + 2) as database, Ledger(database) as ledger:

        async def run_client(number: int) -> None:
            """Post random batches: through the ledger if the number is even, else in own transactions."""
            rng = random.Random(f"{load.seed}-{number}")
            while time.monotonic() < until:
                requests = draw_batch(rng, load.accounts, load.seed)
                try:
                    if number % 2:
                        outcomes.update(await post_in_transaction(database, requests, unordered=load.unordered))
                    else:
                        results = await ledger.submit_many(requests)
                        outcomes.update(str(result.refusal or "posted") for result in results)
                    outcomes["batches"] += 1
                except Exception as error:
                    outcomes[f"error: {type(error).__name__}"] += 1

        await asyncio.gather(*(run_client(number) for number in range(load.clients)))
    return outcomes


def run_process(load: Load) -> Counter[str]:
    return asyncio.run(post_batches(load))


async def open_accounts(url: str) -> list[UUID]:
    """Open the accounts, and fund each with `BALANCE`."""
    async with Database(url) as database, database.begin() as session:
        bank, *accounts = (uuid7() for _ in range(ACCOUNTS + 1))
        session.add_all(
            Account(id=id_, name="Account", currency="GBP", allows_negative=id_ == bank) for id_ in (bank, *accounts)
        )
        await session.flush()
        await post_transfers(session, [TransferRequest(bank, account, BALANCE) for account in accounts])
    return accounts


def run(url: str, options: argparse.Namespace) -> bool:
    """Run the processes, and print the counts. Return whether the run passed."""
    accounts = asyncio.run(open_accounts(url))
    loads = [
        Load(
            url=url,
            seed=options.seed + process,
            seconds=options.seconds,
            clients=options.clients,
            accounts=accounts,
            unordered=options.unordered and process == 0,
        )
        for process in range(options.processes)
    ]
    outcomes: Counter[str] = Counter()
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as processes:
        for counts in processes.map(run_process, loads):
            outcomes.update(counts)
    batches = outcomes.pop("batches", 0)
    errors = {name: count for name, count in outcomes.items() if name.startswith("error")}
    results = {name: count for name, count in outcomes.items() if name not in errors}
    state = asyncio.run(read_ledger_state(url))
    print(f"{options.processes} processes of {options.clients} clients for {options.seconds:g} s: {batches:,} batches")
    print(f"results {results}; errors: {errors or 'none'}")
    print(state)
    return state.is_correct and not errors and results.get("posted", 0) > 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--clients", type=int, default=4, help="clients of each process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--unordered",
        action="store_true",
        help="the control run: one process locks accounts in the order of its requests",
    )
    options = parser.parse_args(argv)
    with shop_server() as server:
        return 0 if run(server.url, options) else 1


if __name__ == "__main__":
    sys.exit(main())
