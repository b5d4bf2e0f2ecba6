"""Clients of the ledger, in other processes.

    python -m shop_tests.support.ledger_clients URL SEED CLIENTS TRANSFERS MODE ACCOUNT…

Each process prints the outcomes of its clients' requests as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from random import Random
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import select, update

from howdah import Database
from shop import tables  # noqa: F401 (registers all tables: they have foreign keys to each other)
from shop.ledger.group_commit import Ledger
from shop.ledger.models import Account, TransferState
from shop.ledger.requests import TransferRecord, TransferRequest, TransferResult
from shop.ledger.service import post_transfers
from shop_tests.support.trigger_bypass import disable_triggers

LARGEST = 300
# On a busy machine the clients wait for each other for longer than a service would let them.
PATIENCE = 60.0


class Outcome(NamedTuple):
    """The outcome of a request: the state of its transfer, or the refusal."""

    state_or_refusal: str
    transfer_id: str | None = None
    from_account_id: str | None = None
    to_account_id: str | None = None
    amount: int | None = None


async def run_client_processes(
    database: Database, accounts: Sequence[UUID], *, processes: int, clients: int, transfers: int, mode: str
) -> list[Outcome]:
    """Run processes with this many clients each. `transfers` is the number of requests of all processes together."""
    url = database.engine.url.render_as_string(hide_password=False)
    running = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __name__, url, str(seed), str(clients), str(transfers // processes), mode),
            *map(str, accounts),
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=PIPE,
        )
        for seed in range(processes)
    ]
    outcomes: list[Outcome] = []
    for process, (out, _) in zip(
        running, await asyncio.gather(*(process.communicate() for process in running)), strict=True
    ):
        assert process.returncode == 0
        outcomes += [Outcome(*each) for each in json.loads(out)]
    return outcomes


class Clients:
    """The clients of one process, and the outcomes of their requests."""

    def __init__(self, database: Database, ledger: Ledger, accounts: Sequence[UUID], seed: int, transfers: int) -> None:
        self.outcomes: list[Outcome] = []
        self._database = database
        self._ledger = ledger
        self._accounts = accounts
        self._seed = seed
        self._remaining = iter(range(transfers))

    async def post_singly(self, number: int) -> None:
        """Post one request after the other, each with a key. Some are two linked requests; some are sent twice."""
        dice = Random(f"{self._seed}-{number}")
        for each in self._remaining:
            request = self._request(dice, f"{self._seed}/{each}")
            if dice.random() < 0.1 and (other := next(self._remaining, None)) is not None:
                requests = [request._replace(linked=True), self._request(dice, f"{self._seed}/{other}")]
                results = await self._ledger.submit_many(requests)
            else:
                requests = [request]
                results = [await self._ledger.submit(request)]
            if dice.random() < 0.02:
                again = await self._ledger.submit_many(requests)
                assert again == [result._replace(replayed=True) for result in results]
            self._record(results)

    async def post_batches(self, number: int) -> None:
        """Post batches with the same accounts in any order, half through the ledger, half in their own transactions.

        They contain basic and linked transfers, holds, and the posting, voiding and reversal of earlier transfers.
        """
        dice = Random(f"{self._seed}-{number}")
        posted: list[TransferRecord] = []
        pending: list[TransferRecord] = []
        while numbers := [each for _, each in zip(range(dice.randint(20, 60)), self._remaining, strict=False)]:
            requests = [self._random_request(dice, f"{self._seed}/{each}", posted, pending) for each in numbers]
            requests[-1] = requests[-1]._replace(linked=False)
            if dice.random() < 0.5:
                results = await self._ledger.submit_many(requests)
            else:
                async with self._database.begin() as session:
                    results = await post_transfers(session, requests)
            self._record(results)
            transfers = [result.transfer for result in results if result.transfer is not None]
            posted += [each for each in transfers if each.state is TransferState.POSTED and each.reverses_id is None]
            pending += [each for each in transfers if each.state is TransferState.PENDING]

    async def write_without_locks(self, number: int) -> None:
        """The control: read both balances, and write the new ones."""
        dice = Random(f"{self._seed}-{number}")
        for _ in self._remaining:
            source, target = dice.sample(self._accounts, 2)
            amount = dice.randint(1, LARGEST)
            async with self._database.begin() as session:
                await disable_triggers(session)
                rows = await session.execute(
                    select(Account.id, Account.balance).where(Account.id.in_([source, target]))
                )
                balances = {row.id: row.balance for row in rows}
                if balances[source] < amount:
                    self.outcomes.append(Outcome("insufficient_funds"))
                    continue
                for id, change in sorted(
                    ((source, -amount), (target, amount))
                ):  # in key order, or it would also deadlock
                    await session.execute(update(Account).where(Account.id == id).values(balance=balances[id] + change))
            self.outcomes.append(Outcome("posted"))

    def _request(self, dice: Random, key: str) -> TransferRequest:
        source, target = dice.sample(self._accounts, 2)
        return TransferRequest(source, target, dice.randint(1, LARGEST), key=key)

    def _random_request(
        self, dice: Random, key: str, posted: list[TransferRecord], pending: list[TransferRecord]
    ) -> TransferRequest:
        kind = dice.random()
        if kind < 0.1 and posted:
            each = dice.choice(posted)
            amount = dice.choice((None, dice.randint(1, LARGEST)))
            return TransferRequest(each.to_account_id, each.from_account_id, amount, reverses=each.id, key=key)
        if kind < 0.2 and pending:
            each = pending.pop(dice.randrange(len(pending)))
            request = TransferRequest(each.from_account_id, each.to_account_id, None, key=key)
            if dice.random() < 0.3:
                return request._replace(voids=each.id)
            return request._replace(posts=each.id, amount=dice.choice((None, dice.randint(1, each.amount))))
        request = self._request(dice, key)
        if kind < 0.3:
            return request._replace(pending_seconds=3_600)
        return request._replace(linked=kind > 0.9)

    def _record(self, results: Sequence[TransferResult]) -> None:
        for result in results:
            if (transfer := result.transfer) is None:
                self.outcomes.append(Outcome(str(result.refusal)))
            else:
                source, target = str(transfer.from_account_id), str(transfer.to_account_id)
                self.outcomes.append(Outcome(transfer.state, str(transfer.id), source, target, transfer.amount))


async def main() -> None:
    url, seed, clients, transfers, mode, *accounts = sys.argv[1:]
    ids = [UUID(account) for account in accounts]
    async with (
        Database(url, pool_size=int(clients), lock_timeout=PATIENCE, statement_timeout=PATIENCE) as database,
        Ledger(database, submit_timeout=PATIENCE) as ledger,
    ):
        group = Clients(database, ledger, ids, int(seed), int(transfers))
        client = {
            "singly": group.post_singly,
            "in batches": group.post_batches,
            "without locks": group.write_without_locks,
        }[mode]
        await asyncio.gather(*(client(number) for number in range(int(clients))))
    print(json.dumps(group.outcomes))


if __name__ == "__main__":
    asyncio.run(main())
