"""`Ledger`: the number of statements, changes by other sessions, and locked accounts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text, update

from howdah import CoalescerClosed, Database, LockTimeout
from shop.ledger.account_schemas import AccountChange
from shop.ledger.accounts import change_account
from shop.ledger.check import check_ledger
from shop.ledger.group_commit import Ledger
from shop.ledger.models import Account, AccountState
from shop.ledger.requests import Refusal, TransferRequest, TransferResult
from shop.ledger.service import transfer_funds
from shop_tests.support.funded_accounts import open_accounts
from shop_tests.support.statement_log import log_statements
from shop_tests.support.waiting import until_waiting


async def balance(database: Database, account: UUID) -> int:
    async with database.session() as session:
        return (await session.get_one(Account, account)).balance


async def test_basic_transfers_are_one_statement(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 0)
    async with Ledger(stored) as ledger, log_statements(stored) as seen:
        for _ in range(3):
            await ledger.submit(TransferRequest(a, b, 1, key=str(uuid4())))
        assert seen.take() == ["post"] * 3
    assert await balance(stored, b) == 3


async def test_a_refusal_and_the_other_transfers_of_its_batch_need_two_statements(stored: Database) -> None:
    a, b, c, d = await open_accounts(stored, 100, 0, 100, 0)
    async with Ledger(stored) as ledger, log_statements(stored) as seen:
        requests = [TransferRequest(c, d, 1), TransferRequest(b, c, 1), TransferRequest(a, c, 1)]
        results = await asyncio.gather(*map(ledger.submit, requests))
        assert seen.take() == ["post", "post"]
        assert [result.refusal for result in results] == [None, Refusal.INSUFFICIENT_FUNDS, None]
        chain = [TransferRequest(c, d, 1, linked=True), TransferRequest(b, d, 9), TransferRequest(d, a, 1)]
        results = await ledger.submit_many(chain)
        assert seen.take() == ["post", "lock", "write"]  # only some requests of the list are refused
        await ledger.submit(TransferRequest(a, b, 1))
        await ledger.submit(TransferRequest(b, a, 1))
        assert seen.take() == ["post", "post"]
    refusals = [Refusal.LINKED_TRANSFER_FAILED, Refusal.INSUFFICIENT_FUNDS, None]
    assert [result.refusal for result in results] == refusals
    assert [await balance(stored, each) for each in (a, b, c, d)] == [100, 0, 100, 0]


async def elsewhere(database: Database, a: UUID, b: UUID) -> None:
    async with database.session() as session:
        await transfer_funds(session, a, b, 50)


async def frozen(database: Database, a: UUID, b: UUID) -> None:
    async with database.begin() as session:
        await change_account(session, b, AccountChange(state=AccountState.FROZEN))


async def by_hand(database: Database, a: UUID, b: UUID) -> None:
    async with database.begin() as session:
        await session.execute(text("UPDATE accounts SET balance_limit = 20 WHERE id = :id"), {"id": b})


async def put_on_hold(database: Database, a: UUID, b: UUID) -> None:
    async with Ledger(database) as other:
        await other.submit(TransferRequest(a, b, 60, pending_seconds=60))


@pytest.mark.parametrize(
    ("meanwhile", "refusal"),
    [
        (elsewhere, Refusal.INSUFFICIENT_FUNDS),
        (frozen, Refusal.ACCOUNT_FROZEN),
        (by_hand, Refusal.LIMIT_EXCEEDED),
        (put_on_hold, Refusal.INSUFFICIENT_FUNDS),
    ],
)
async def test_a_change_by_another_session_is_noticed(
    stored: Database, meanwhile: Callable[[Database, UUID, UUID], Any], refusal: Refusal
) -> None:
    """Control: without the change the same transfer is posted."""
    a, b = await open_accounts(stored, 100, 0)
    async with Ledger(stored) as ledger, log_statements(stored) as seen:
        (await ledger.submit(TransferRequest(a, b, 10))).unwrap()
        await meanwhile(stored, a, b)
        seen.take()
        assert (await ledger.submit(TransferRequest(a, b, 60))).refusal is refusal
        assert seen.take() == (["post", "lock"] if meanwhile is put_on_hold else ["post"])
    c, d = await open_accounts(stored, 100, 0)
    async with Ledger(stored) as ledger:
        (await ledger.submit(TransferRequest(c, d, 10))).unwrap()
        (await ledger.submit(TransferRequest(c, d, 60))).unwrap()


async def test_a_refusal_is_decided_on_current_balances(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 100)
    async with Ledger(stored) as ledger:
        assert (await ledger.submit(TransferRequest(a, b, 150))).refusal is Refusal.INSUFFICIENT_FUNDS
        await elsewhere(stored, b, a)
        assert (await ledger.submit(TransferRequest(a, b, 150))).refusal is None
    assert await balance(stored, b) == 200


async def test_a_locked_account_delays_only_its_own_transfers(stored: Database) -> None:
    """Transfers to and from it, basic ones and holds, in the same batches as other transfers."""
    a, b, c, d = await open_accounts(stored, 1_000, 100, 1_000, 100)
    async with Ledger(stored) as ledger:
        for source, target in ((a, b), (c, d)):
            await ledger.submit(TransferRequest(source, target, 1))
        async with stored.begin() as session:
            await session.execute(update(Account).where(Account.id == a).values(name="locked"))
            waiting, others = [], []
            for number in range(5):
                pending = 60 if number % 2 else None
                waiting += [
                    asyncio.create_task(ledger.submit(TransferRequest(*pair, 1, pending_seconds=pending)))
                    for pair in ((a, b), (b, a))
                ]
                others += [
                    asyncio.create_task(ledger.submit(TransferRequest(c, d, 1, pending_seconds=pending)))
                    for _ in range(10)
                ]
                await asyncio.sleep(0)
            for other in await asyncio.gather(*others):
                other.unwrap()
            for _ in range(10):
                (await ledger.submit(TransferRequest(c, d, 1))).unwrap()
            assert not any(task.done() for task in waiting)
        for result in await asyncio.gather(*waiting):
            result.unwrap()
    async with stored.session() as session:
        assert (await check_ledger(session)).faults == {}


async def test_a_transfer_of_a_locked_account_raises_lock_timeout(stored: Database) -> None:
    a, b, c = await open_accounts(stored, 100, 100, 100)
    async with Database(stored.engine.url, lock_timeout=0.3) as impatient, Ledger(impatient) as ledger:
        async with stored.begin() as session:
            await session.execute(update(Account).where(Account.id == a).values(name="locked"))
            # a batch of the blocked queue: the lock on `c` is released before the timeout, the lock on `a` isn't
            async with stored.begin() as other:
                await other.execute(update(Account).where(Account.id == c).values(name="locked"))
                tasks = [
                    asyncio.create_task(ledger.submit(TransferRequest(*pair, 1))) for pair in ((a, b), (b, a), (b, c))
                ]
                await until_waiting(stored, 1)
            answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(answer) for answer in answers] == [LockTimeout, LockTimeout, TransferResult]
        (await ledger.submit(TransferRequest(a, b, 1))).unwrap()
    assert [await balance(stored, each) for each in (a, b, c)] == [99, 100, 101]


async def test_closing_finishes_transfers_that_wait_for_a_locked_account(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 100)
    ledger = Ledger(stored)
    async with stored.begin() as session:
        await session.execute(update(Account).where(Account.id == a).values(name="locked"))
        tasks = [asyncio.create_task(ledger.submit(TransferRequest(a, b, 1))) for _ in range(5)]
        await asyncio.sleep(0)  # they are in the queue
        closing = asyncio.create_task(ledger.aclose())
        await until_waiting(stored, 1)
    for result in await asyncio.gather(*tasks):
        result.unwrap()
    await closing
    with pytest.raises(CoalescerClosed):
        await ledger.submit(TransferRequest(a, b, 1))


async def test_money_of_a_batch_that_was_not_posted_can_not_be_spent(stored: Database) -> None:
    """Two batches at a time: the second one would spend the money of the first, whose key was used before."""
    a, b, c = await open_accounts(stored, 100, 0, 0)
    async with Ledger(stored, max_batch_size=1) as ledger:
        async with stored.begin() as session:
            await session.execute(
                text(
                    "INSERT INTO idempotency_keys (scope, key, fingerprint, refusal, answer, created_at)"
                    " VALUES ('', 'k', '', 'same_account', 'refused', now())"
                )
            )
            first = asyncio.create_task(ledger.submit(TransferRequest(a, b, 50, key="k")))
            await until_waiting(stored, 1)
            second = asyncio.create_task(ledger.submit(TransferRequest(b, c, 50)))
        assert (await first).refusal is Refusal.KEY_REUSED
        assert (await second).refusal is Refusal.INSUFFICIENT_FUNDS
    assert [await balance(stored, each) for each in (a, b, c)] == [100, 0, 0]


async def test_accounts_are_not_refused_as_unknown_while_others_change_them(stored: Database) -> None:
    """Many batches at the same time. All accounts exist."""
    accounts = await open_accounts(stored, *[10_000] * 12)
    async with Ledger(stored, max_batch_size=3, workers=4, submit_timeout=60) as ledger:

        async def disturb() -> None:
            for _ in range(30):
                await elsewhere(stored, accounts[0], accounts[1])
                await elsewhere(stored, accounts[1], accounts[0])

        results = await asyncio.gather(
            disturb(),
            *(
                ledger.submit(TransferRequest(accounts[n % 12], accounts[(n * 5 + 1) % 12], 1, key=f"k{n % 290}"))
                for n in range(600)
                if n % 12 != (n * 5 + 1) % 12
            ),
        )
    refusals = {result.refusal for result in results[1:] if result is not None}
    assert refusals <= {None, Refusal.KEY_REUSED}
    async with stored.session() as session:
        assert (await check_ledger(session)).faults == {}
