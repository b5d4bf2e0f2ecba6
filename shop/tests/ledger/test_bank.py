"""32 clients in two processes transfer between eight accounts, while the balances are added up all the time."""

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
PROCESSES, CLIENTS = 2, 16

# The system account that the money comes from is negative by the sum of the other balances.
TOTALS = text("SELECT sum(balance), count(*) FILTER (WHERE balance < 0 AND NOT allows_negative) FROM accounts")


async def run_clients(
    database: Database, accounts: list[UUID], transfers: int, mode: str
) -> tuple[list[Outcome], set[tuple[int, int]]]:
    """The outcomes of the requests, and the observed sums of all balances with the number of accounts below zero."""
    done = asyncio.create_task(
        run_client_processes(database, accounts, processes=PROCESSES, clients=CLIENTS, transfers=transfers, mode=mode)
    )
    seen = set()
    while not done.done():
        async with database.session() as session:
            seen.add(tuple((await session.execute(TOTALS)).one()))
    return await done, seen


@pytest.mark.parametrize(
    "transfers",
    [
        pytest.param(1_500, marks=pytest.mark.timeout(300)),  # three times what the control needs
        pytest.param(50_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
async def test_no_money_is_created_or_lost_at_any_time(stored: Database, transfers: int) -> None:
    """The ledger has exactly the transfers that were reported to the clients."""
    accounts = await open_accounts(stored, *[FUNDS] * ACCOUNTS)
    outcomes, seen = await run_clients(stored, accounts, transfers, "singly")
    assert seen == {(0, 0)}
    assert len(outcomes) == transfers
    assert set(Counter(each.state_or_refusal for each in outcomes)) == {
        "posted",
        "insufficient_funds",
        "linked_transfer_failed",
    }
    async with stored.session(isolation_level="REPEATABLE READ") as session:
        assert (await check_ledger(session)).faults == {}
        columns = (Transfer.id, Transfer.from_account_id, Transfer.to_account_id, Transfer.amount)
        rows = await session.execute(select(*columns).where(Transfer.from_account_id.in_(accounts)))
        found = sorted((*map(str, ids), amount) for *ids, amount in rows)
    assert found == sorted(each[1:] for each in outcomes if each.state_or_refusal == "posted")


async def test_without_locks_money_is_created_or_lost(stored: Database) -> None:
    """The control test."""
    accounts = await open_accounts(stored, *[FUNDS] * ACCOUNTS)
    _, seen = await run_clients(stored, accounts, 500, "without locks")
    assert any(total for total, _ in seen)
