"""A bank: eight accounts, 32 clients in four processes, and somebody who adds everything up all the time."""

from __future__ import annotations

import asyncio
from collections import Counter
from uuid import UUID

import pytest
from sqlalchemy import select, text

from howdah import Database
from shop.ledger.check import check_ledger
from shop.ledger.models import Transfer
from shop_tests.support.funded_accounts import open_accounts
from shop_tests.support.ledger_clients import Outcome, run_client_processes

ACCOUNTS, FUNDS = 8, 1_000
PROCESSES, CLIENTS = 4, 8

# the bank's own account, which money enters by, is below zero by what is on the others
TOTALS = text("SELECT sum(balance), count(*) FILTER (WHERE balance < 0 AND NOT allows_negative) FROM accounts")


async def busy(
    database: Database, accounts: list[UUID], transfers: int, how: str
) -> tuple[list[Outcome], set[tuple[int, int]]]:
    """What the clients were told, and what was seen meanwhile: the sum of all balances, how many were below zero."""
    done = asyncio.create_task(
        run_client_processes(database, accounts, processes=PROCESSES, clients=CLIENTS, transfers=transfers, how=how)
    )
    seen = set()
    while not done.done():
        async with database.session() as session:
            seen.add(tuple((await session.execute(TOTALS)).one()))
    return await done, seen


@pytest.mark.parametrize(
    "transfers",
    [
        pytest.param(12_000, marks=pytest.mark.timeout(300)),  # a minute on two idle cores
        pytest.param(50_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
async def test_nothing_is_created_or_lost_at_any_moment(stored: Database, transfers: int) -> None:
    """Every transfer that a client was told of is in the books as it was told, and no other one is."""
    accounts = await open_accounts(stored, *[FUNDS] * ACCOUNTS)
    told, seen = await busy(stored, accounts, transfers, "singly")
    assert seen == {(0, 0)}
    assert len(told) == transfers
    assert set(Counter(each.what for each in told)) == {"posted", "insufficient_funds", "linked_transfer_failed"}
    async with stored.session(isolation_level="REPEATABLE READ") as session:
        assert (await check_ledger(session)).faults == {}
        columns = (Transfer.id, Transfer.from_account_id, Transfer.to_account_id, Transfer.amount)
        booked = await session.execute(select(*columns).where(Transfer.from_account_id.in_(accounts)))
        found = sorted((*map(str, ids), amount) for *ids, amount in booked)
    assert found == sorted(each[1:] for each in told if each.what == "posted")


async def test_without_locks_money_is_created_and_lost(stored: Database) -> None:
    """The control."""
    accounts = await open_accounts(stored, *[FUNDS] * ACCOUNTS)
    _, seen = await busy(stored, accounts, 1_000, "without locks")
    assert any(total for total, _ in seen)
