"""Concurrent transfers."""

from __future__ import annotations

import asyncio
from itertools import permutations
from random import Random
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select

from howdah import Database, DeadlockDetected
from shop.ledger.check import check_ledger
from shop.ledger.group_commit import Ledger
from shop.ledger.lock_waits import KeyInUse
from shop.ledger.models import Account, Transfer
from shop.ledger.requests import Refusal, TransferRequest
from shop.ledger.service import post_transfers, transfer_funds
from shop_tests.support import reference
from shop_tests.support.funded_accounts import open_accounts
from shop_tests.support.reversals import reversal_request
from shop_tests.support.transactions import in_own_transaction
from shop_tests.support.waiting import until_waiting


async def balances(database: Database, accounts: list[UUID]) -> list[int]:
    async with database.session() as session:
        return [(await session.get_one(Account, account)).balance for account in accounts]


async def test_opposed_transfers_neither_deadlock_nor_lose_money(stored: Database) -> None:
    """5,120 transfers in random directions between two accounts, by 32 clients, singly and in batches of 13."""
    a, b = await open_accounts(stored, 10_000, 10_000)
    clients, singly, batches, batch = 32, 30, 10, 13

    async def client(number: int, database: Database) -> int:
        """Returns the total that was moved from a to b."""
        dice = Random(number)
        ledger = Ledger(database)
        moved = 0
        for turn in range(singly + batches):
            amounts = [dice.choice((-1, 1)) * dice.randint(1, 9) for _ in range(1 if turn % 4 else batch)]
            requests = [TransferRequest(*((a, b) if amount > 0 else (b, a)), abs(amount)) for amount in amounts]
            if len(requests) > 1:
                assert all(result.refusal is None for result in await ledger.submit_many(requests))
            else:
                async with database.session() as session:
                    source, target = requests[0].from_account_id, requests[0].to_account_id
                    await transfer_funds(session, source, target, abs(amounts[0]))
            moved += sum(amounts)
        return moved

    # Waits for the disk and pings of the pool would only reduce the number of concurrent transfers.
    faster = {"server_settings": {"synchronous_commit": "off"}}
    async with Database(stored.engine.url, pool_size=clients, pool_pre_ping=False, connect_args=faster) as database:
        moved = sum(await asyncio.gather(*(client(number, database) for number in range(clients))))

    assert await balances(stored, [a, b]) == [10_000 - moved, 10_000 + moved]
    async with stored.session() as session:
        report = await check_ledger(session)
        assert (report.faults, report.transfers) == ({}, 2 + clients * (singly + batches * batch))


async def test_locking_in_the_order_of_the_arguments_deadlocks(stored: Database) -> None:
    """The control for the test above."""
    a, b = await open_accounts(stored, 10_000, 10_000)

    async def client(number: int) -> None:
        while True:
            async with stored.session() as session:
                await reference.transfer_funds(session, *((a, b) if number % 2 else (b, a)), 1)

    running = [asyncio.create_task(client(number)) for number in range(8)]
    done, others = await asyncio.wait(running, timeout=60, return_when=asyncio.FIRST_EXCEPTION)
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    assert {type(task.exception()) for task in done} == {DeadlockDetected}


async def test_transfers_of_shuffled_accounts_in_batches_do_not_deadlock(stored: Database) -> None:
    accounts = await open_accounts(stored, *[1_000] * 6)
    ledger = Ledger(stored)

    async def client(number: int) -> None:
        dice = Random(number)
        for turn in range(8):
            requests = [
                TransferRequest(source, target, dice.randint(1, 200), key=f"{number}/{turn}/{n}")
                for n, (source, target) in enumerate(dice.sample(list(permutations(accounts, 2)), 20))
            ]
            dice.shuffle(requests)
            await ledger.submit_many(requests)

    await asyncio.gather(*(client(number) for number in range(8)))
    assert sum(await balances(stored, accounts)) == 6_000
    async with stored.session() as session:
        assert (await check_ledger(session)).faults == {}


async def test_the_last_money_is_spent_once(stored: Database) -> None:
    a, *others = await open_accounts(stored, 100, *[0] * 10)
    ledger = Ledger(stored)
    results = await asyncio.gather(*(ledger.submit(TransferRequest(a, other, 60)) for other in others))
    assert sorted(str(result.refusal) for result in results) == sorted(["None"] + [Refusal.INSUFFICIENT_FUNDS] * 9)
    assert sorted(await balances(stored, [a, *others])) == [0] * 9 + [40, 60]


async def test_one_of_ten_concurrent_reversals_is_posted(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 1_000)
    ledger = Ledger(stored)
    moved = (await ledger.submit(TransferRequest(a, b, 60))).unwrap()
    async with stored.session() as session:
        reversal = await reversal_request(session, moved.id)
    results = await asyncio.gather(*(ledger.submit(reversal) for _ in range(10)))
    assert sorted(str(result.refusal) for result in results) == sorted(["None"] + [Refusal.ALREADY_REVERSED] * 9)
    assert await balances(stored, [a, b]) == [100, 1_000]


async def test_concurrent_requests_with_one_key_post_one_transfer(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 0)
    ledger = Ledger(stored)
    results = await asyncio.gather(*(ledger.submit(TransferRequest(a, b, 60, key="k")) for _ in range(20)))
    assert len({result.unwrap().id for result in results}) == 1
    assert sorted(result.replayed for result in results) == [False] + [True] * 19
    assert await balances(stored, [a, b]) == [40, 60]


async def test_a_waiting_request_is_posted_if_the_first_one_with_its_key_is_rolled_back(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 0)
    ledger = Ledger(stored)
    async with stored.session() as session:
        await post_transfers(session, [TransferRequest(a, b, 60, key="k")])
        waiting = in_own_transaction(ledger.submit(TransferRequest(a, b, 70, key="k")))
        await until_waiting(stored, 1, query="WITH found AS%")
        await session.rollback()
    result = await waiting
    assert (result.unwrap().amount, result.replayed) == (70, False)
    assert await balances(stored, [a, b]) == [30, 70]


async def test_a_waiting_request_is_replayed_if_the_first_one_with_its_key_is_committed(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 0)
    ledger = Ledger(stored)
    async with stored.session() as session:
        [first] = await post_transfers(session, [TransferRequest(a, b, 60, key="k")])
        same = in_own_transaction(ledger.submit(TransferRequest(a, b, 60, key="k")))
        other = in_own_transaction(Ledger(stored).submit(TransferRequest(a, b, 61, key="k")))
        await until_waiting(stored, 2, query="WITH found AS%")
        await session.commit()
    assert (await same).unwrap().id == first.unwrap().id
    assert (await same).replayed
    assert (await other).refusal is Refusal.KEY_REUSED
    async with stored.session() as session:
        assert await session.scalar(select(func.count()).select_from(Transfer)) == 2


async def test_requests_with_one_key_and_other_accounts_wait_for_each_other(stored: Database) -> None:
    a, b, c, d = await open_accounts(stored, 100, 0, 100, 0)
    for first, later, expected in (
        (TransferRequest(uuid4(), uuid4(), 1, key="same"), None, (Refusal.UNKNOWN_ACCOUNT, True)),
        (TransferRequest(a, b, 1, key="other"), TransferRequest(c, d, 1, key="other"), (Refusal.KEY_REUSED, False)),
    ):
        async with stored.session() as session:
            await post_transfers(session, [first])
            waiting = in_own_transaction(Ledger(stored).submit(later or first))
            await until_waiting(stored, 1, query="%new_transfers%")
            await session.commit()
        result = await waiting
        assert (result.refusal, result.replayed) == expected
    assert await balances(stored, [a, b, c, d]) == [99, 1, 100, 0]


async def test_without_the_ledger_a_concurrent_use_of_a_key_raises_key_in_use(stored: Database) -> None:
    """The control for the test above: `Ledger` catches `KeyInUse` and posts again."""
    a, b, c, d = await open_accounts(stored, 100, 0, 100, 0)
    async with stored.session() as session, stored.session() as other:
        await post_transfers(session, [TransferRequest(a, b, 1, key="k")])
        waiting = asyncio.create_task(post_transfers(other, [TransferRequest(c, d, 1, key="k")]))
        await until_waiting(stored, 1, query="%new_transfers%")
        await session.commit()
        with pytest.raises(KeyInUse):
            await waiting
        await other.rollback()
    assert await balances(stored, [a, b, c, d]) == [99, 1, 100, 0]
