"""Clients of a bank, in a process of their own: `python bank_clients.py URL SEED CLIENTS TRANSFERS HOW ACCOUNT…`.

Prints, as one line of JSON, how many transfers were made and how many refused.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from random import Random
from uuid import UUID

from sqlalchemy import select, update

from howdah import Database
from shop import tables  # noqa: F401 (tables refer to each other)
from shop.accounts.models import Account
from shop.transfers.service import Ledger, TransferRequest

LARGEST = 300


async def without_locks(database: Database, source: UUID, target: UUID, amount: int) -> str:
    """Reads both balances, and writes what they should be then: the control."""
    async with database.begin() as session:
        rows = await session.execute(select(Account.id, Account.balance).where(Account.id.in_([source, target])))
        balances = {row.id: row.balance for row in rows}
        if balances[source] < amount:
            return "insufficient_funds"
        for id, change in sorted(((source, -amount), (target, amount))):  # or it would deadlock, too
            await session.execute(update(Account).where(Account.id == id).values(balance=balances[id] + change))
    return "made"


async def main() -> None:
    url, seed, clients, transfers, how, *accounts = sys.argv[1:]
    ids = [UUID(account) for account in accounts]
    left = iter(range(int(transfers)))
    told: Counter[str] = Counter()
    async with Database(url, pool_size=int(clients)) as database, Ledger(database) as ledger:

        async def client(number: int) -> None:
            dice = Random(f"{seed}-{number}")
            for _ in left:
                source, target = dice.sample(ids, 2)
                amount = dice.randint(1, LARGEST)
                if how == "ledger":
                    result = await ledger.submit(TransferRequest(source, target, amount))
                    told[str(result.refusal or "made")] += 1
                else:
                    told[await without_locks(database, source, target, amount)] += 1

        await asyncio.gather(*(client(number) for number in range(int(clients))))
    print(json.dumps(told))


if __name__ == "__main__":
    asyncio.run(main())
