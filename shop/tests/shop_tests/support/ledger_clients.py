"""Clients of the ledger, in other processes.

    python -m shop_tests.support.ledger_clients URL SEED CLIENTS TRANSFERS HOW ACCOUNT…

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
from shop import tables  # noqa: F401 (tables refer to each other)
from shop.ledger.group_commit import Ledger
from shop.ledger.models import Account, TransferState
from shop.ledger.requests import TransferRecord, TransferRequest, TransferResult
from shop.ledger.service import post_transfers
from shop_tests.support.trigger_bypass import disable_triggers

LARGEST = 300


class Outcome(NamedTuple):
    """The outcome of a request: the state of its transfer, or the refusal."""

    what: str
    transfer_id: str | None = None
    from_account_id: str | None = None
    to_account_id: str | None = None
    amount: int | None = None


async def run_client_processes(
    database: Database, accounts: Sequence[UUID], *, processes: int, clients: int, transfers: int, how: str
) -> list[Outcome]:
    """Run processes with this many clients each. `transfers` is the number of requests of all processes together."""
    url = database.engine.url.render_as_string(hide_password=False)
    running = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __name__, url, str(seed), str(clients), str(transfers // processes), how),
            *map(str, accounts),
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=PIPE,
        )
        for seed in range(processes)
    ]
    told: list[Outcome] = []
    for process, (out, _) in zip(
        running, await asyncio.gather(*(process.communicate() for process in running)), strict=True
    ):
        assert process.returncode == 0
        told += [Outcome(*each) for each in json.loads(out)]
    return told


class Clients:
    """The clients of one process, and the outcomes of their requests."""

    def __init__(self, database: Database, ledger: Ledger, accounts: Sequence[UUID], seed: int, transfers: int) -> None:
        self.told: list[Outcome] = []
        self._database = database
        self._ledger = ledger
        self._accounts = accounts
        self._seed = seed
        self._left = iter(range(transfers))

    async def post_singly(self, number: int) -> None:
        """Post one request after the other, each with a key. Some are two linked requests; some are sent twice."""
        dice = Random(f"{self._seed}-{number}")
        for turn in self._left:
            request = self._request(dice, f"{self._seed}/{turn}")
            if dice.random() < 0.1 and (other := next(self._left, None)) is not None:
                requests = [request._replace(linked=True), self._request(dice, f"{self._seed}/{other}")]
                results = await self._ledger.submit_many(requests)
            else:
                requests = [request]
                results = [await self._ledger.submit(request)]
            if dice.random() < 0.02:
                again = await self._ledger.submit_many(requests)
                assert again == [result._replace(replayed=True) for result in results]
            self._note(results)

    async def post_batches(self, number: int) -> None:
        """Post batches with the same accounts in any order, half through the ledger, half in their own transactions.

        They contain basic and linked transfers, holds, and the posting, voiding and reversal of earlier transfers.
        """
        dice = Random(f"{self._seed}-{number}")
        made: list[TransferRecord] = []
        held: list[TransferRecord] = []
        while asked := [turn for _, turn in zip(range(dice.randint(20, 60)), self._left, strict=False)]:
            requests = [self._of_any_kind(dice, f"{self._seed}/{turn}", made, held) for turn in asked]
            requests[-1] = requests[-1]._replace(linked=False)
            if dice.random() < 0.5:
                results = await self._ledger.submit_many(requests)
            else:
                async with self._database.begin() as session:
                    results = await post_transfers(session, requests)
            self._note(results)
            transfers = [result.transfer for result in results if result.transfer is not None]
            made += [each for each in transfers if each.state is TransferState.POSTED and each.reverses_id is None]
            held += [each for each in transfers if each.state is TransferState.PENDING]

    async def write_without_locks(self, number: int) -> None:
        """The control: read both balances, and write the new ones."""
        dice = Random(f"{self._seed}-{number}")
        for _ in self._left:
            source, target = dice.sample(self._accounts, 2)
            amount = dice.randint(1, LARGEST)
            async with self._database.begin() as session:
                await disable_triggers(session)
                rows = await session.execute(
                    select(Account.id, Account.balance).where(Account.id.in_([source, target]))
                )
                balances = {row.id: row.balance for row in rows}
                if balances[source] < amount:
                    self.told.append(Outcome("insufficient_funds"))
                    continue
                for id, change in sorted(((source, -amount), (target, amount))):  # or it would deadlock, too
                    await session.execute(update(Account).where(Account.id == id).values(balance=balances[id] + change))
            self.told.append(Outcome("posted"))

    def _request(self, dice: Random, key: str) -> TransferRequest:
        source, target = dice.sample(self._accounts, 2)
        return TransferRequest(source, target, dice.randint(1, LARGEST), key=key)

    def _of_any_kind(
        self, dice: Random, key: str, made: list[TransferRecord], held: list[TransferRecord]
    ) -> TransferRequest:
        kind = dice.random()
        if kind < 0.1 and made:
            each = dice.choice(made)
            amount = dice.choice((None, dice.randint(1, LARGEST)))
            return TransferRequest(each.to_account_id, each.from_account_id, amount, reverses=each.id, key=key)
        if kind < 0.2 and held:
            each = held.pop(dice.randrange(len(held)))
            request = TransferRequest(each.from_account_id, each.to_account_id, None, key=key)
            if dice.random() < 0.3:
                return request._replace(voids=each.id)
            return request._replace(posts=each.id, amount=dice.choice((None, dice.randint(1, each.amount))))
        request = self._request(dice, key)
        if kind < 0.3:
            return request._replace(pending_seconds=3_600)
        return request._replace(linked=kind > 0.9)

    def _note(self, results: Sequence[TransferResult]) -> None:
        for result in results:
            if (made := result.transfer) is None:
                self.told.append(Outcome(str(result.refusal)))
            else:
                source, target = str(made.from_account_id), str(made.to_account_id)
                self.told.append(Outcome(made.state, str(made.id), source, target, made.amount))


async def main() -> None:
    url, seed, clients, transfers, how, *accounts = sys.argv[1:]
    ids = [UUID(account) for account in accounts]
    async with Database(url, pool_size=int(clients)) as database, Ledger(database) as ledger:
        all_ = Clients(database, ledger, ids, int(seed), int(transfers))
        client = {
            "singly": all_.post_singly,
            "in batches": all_.post_batches,
            "without locks": all_.write_without_locks,
        }[how]
        await asyncio.gather(*(client(number) for number in range(int(clients))))
    print(json.dumps(all_.told))


if __name__ == "__main__":
    asyncio.run(main())
