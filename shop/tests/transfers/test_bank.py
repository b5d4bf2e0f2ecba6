"""A bank: eight accounts, 32 clients in four processes, and somebody who adds everything up all the time."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from pathlib import Path

from books import open_accounts
from sqlalchemy import text

from howdah import Database
from shop.accounts.service import check_books

ACCOUNTS, FUNDS = 8, 1_000
PROCESSES, CLIENTS = 4, 8

# the bank's own account, which money enters by, is below zero by what is on the others
TOTALS = text("SELECT sum(balance), count(*) FILTER (WHERE balance < 0 AND NOT allows_negative) FROM accounts")


async def busy(database: Database, transfers: int, how: str) -> tuple[Counter[str], set[tuple[int, int]]]:
    """What the clients were told, and what was seen meanwhile: the sum of all balances, how many were below zero."""
    accounts = await open_accounts(database, *[FUNDS] * ACCOUNTS)
    url = database.engine.url.render_as_string(hide_password=False)
    program = str(Path(__file__).parents[1] / "bank_clients.py")
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, program, url, str(seed), str(CLIENTS), str(transfers // PROCESSES), how),
            *map(str, accounts),
            stdout=PIPE,
        )
        for seed in range(PROCESSES)
    ]
    done = asyncio.gather(*(process.communicate() for process in processes))
    seen = set()
    while not done.done():
        async with database.session() as session:
            seen.add(tuple((await session.execute(TOTALS)).one()))
    told: Counter[str] = Counter()
    for process, (out, _) in zip(processes, await done, strict=True):
        assert process.returncode == 0
        told.update(json.loads(out))
    return told, seen


async def test_nothing_is_created_or_lost_at_any_moment(stored: Database) -> None:
    transfers = 20_000
    told, seen = await busy(stored, transfers, "ledger")
    assert seen == {(0, 0)}
    assert told.total() == transfers
    assert set(told) == {"made", "insufficient_funds"}
    async with stored.session(isolation_level="REPEATABLE READ") as session:
        report = await check_books(session)
    assert (report.faults, report.transfers) == ({}, told["made"] + ACCOUNTS)


async def test_without_locks_money_is_created_and_lost(stored: Database) -> None:
    """The control."""
    _, seen = await busy(stored, 1_000, "without locks")
    assert any(total for total, _ in seen)
