"""Each transfer has an answer in time, and can be repeated with its key without being posted twice."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence

import pytest
from sqlalchemy import func, select, text, update

from howdah import Database, LockTimeout, OutcomeUnknown, QueueTimeout, Unavailable
from shop.ledger import lock_waits
from shop.ledger.check import check_ledger
from shop.ledger.group_commit import Ledger
from shop.ledger.models import Account
from shop.ledger.requests import TransferRequest, TransferResult
from shop.ledger.service import post_transfers
from shop_tests.support.funded_accounts import open_accounts
from shop_tests.support.waiting import until, until_waiting


async def count_transfers(database: Database) -> int:
    async with database.session() as session:
        report = await check_ledger(session)
        assert report.faults == {}
        return report.transfers


async def repeat_until_posted(ledger: Ledger, requests: Sequence[TransferRequest]) -> None:
    """Submit the requests again, as a client does after a 503."""

    async def are_posted() -> bool:
        answers = await asyncio.gather(*map(ledger.submit, requests), return_exceptions=True)
        assert all(isinstance(answer, TransferResult | Unavailable) for answer in answers)
        return all(isinstance(answer, TransferResult) for answer in answers)

    await until(are_posted, seconds=30)


async def test_with_a_locked_table_each_transfer_has_an_answer_and_is_posted_once_later(stored: Database) -> None:
    a, b = await open_accounts(stored, 1_000, 0)
    before = await count_transfers(stored)
    requests = [TransferRequest(a, b, 1, key=f"k{n}") for n in range(30)]
    async with Ledger(stored, submit_timeout=0.4, max_batch_size=4) as ledger:
        async with stored.session() as holder, asyncio.timeout(10):
            await holder.execute(text("LOCK TABLE transfers"))
            answers = await asyncio.gather(*map(ledger.submit, requests), return_exceptions=True)
            assert all(isinstance(answer, OutcomeUnknown | QueueTimeout) for answer in answers)
            assert any(isinstance(answer, QueueTimeout) for answer in answers)
            await holder.rollback()
        await repeat_until_posted(ledger, requests)
    assert await count_transfers(stored) == before + 30


async def test_one_deadline_covers_both_queues(stored: Database) -> None:
    """An account that another transaction has locked moves its transfers to the second queue."""
    a, b = await open_accounts(stored, 100, 100)
    async with Ledger(stored, submit_timeout=0.4) as ledger, stored.session() as holder:
        await holder.execute(update(Account).where(Account.id == a).values(name="locked"))
        async with asyncio.timeout(5):
            with pytest.raises(OutcomeUnknown):
                await ledger.submit(TransferRequest(a, b, 1, key="k"))
        await holder.rollback()
        await repeat_until_posted(ledger, [TransferRequest(a, b, 1, key="k")])


@pytest.mark.parametrize("lock", ["LOCK TABLE transfers", "UPDATE accounts SET name = 'locked'"])
async def test_closing_ends_in_time_while_transfers_wait(stored: Database, lock: str) -> None:
    a, b = await open_accounts(stored, 100, 100)
    ledger = Ledger(stored, close_timeout=0.2)
    async with stored.session() as holder, asyncio.timeout(10):
        await holder.execute(text(lock))
        tasks = [asyncio.create_task(ledger.submit(TransferRequest(a, b, 1, key=f"k{n}"))) for n in range(3)]
        await until_waiting(stored, 1)
        await ledger.aclose()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(answer, Unavailable) for answer in answers)
        await holder.rollback()


async def test_a_list_waits_for_other_lists_only_until_its_deadline(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 100)
    async with Ledger(stored, workers=1, submit_timeout=0.3) as ledger, stored.session() as holder:
        await holder.execute(text("LOCK TABLE transfers"))
        lists = [ledger.submit_many([TransferRequest(a, b, 1, key=f"k{n}")]) for n in range(3)]
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*lists, return_exceptions=True)
        assert all(isinstance(answer, OutcomeUnknown | QueueTimeout) for answer in answers)
        await holder.rollback()


async def test_a_transfer_on_a_frozen_backend_is_posted_once_if_it_is_repeated(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 0)
    before = await count_transfers(stored)
    async with Database(stored.engine.url) as database, Ledger(database, submit_timeout=1) as ledger:
        await ledger.submit(TransferRequest(a, b, 1, key="first"))
        async with database.autocommit() as connection:
            pid = await connection.scalar(select(func.pg_backend_pid()))  # the connection that the ledger has used
        assert pid is not None
        try:
            os.kill(pid, signal.SIGSTOP)
        except PermissionError:
            pytest.skip("this user must not send signals to the server's processes")
        request = TransferRequest(a, b, 1, key="second")
        try:
            async with asyncio.timeout(60):
                with pytest.raises(OutcomeUnknown):
                    await ledger.submit(request)
                await repeat_until_posted(ledger, [request])  # on another connection
        finally:
            os.kill(pid, signal.SIGCONT)
        await repeat_until_posted(ledger, [request])  # the first statement may have been written in the meantime
    assert await count_transfers(stored) == before + 2


@pytest.mark.parametrize("is_limited", [True, False])
async def test_a_key_that_another_transaction_holds_delays_only_its_own_request(
    stored: Database, monkeypatch: pytest.MonkeyPatch, is_limited: bool
) -> None:
    """Control: without the limit, all transfers of the batch fail after `lock_timeout`."""
    accounts = await open_accounts(stored, *([100] * 22))
    pairs = list(zip(accounts[2::2], accounts[3::2], strict=True))
    if not is_limited:
        monkeypatch.setattr(lock_waits, "_MAX_WAIT_SECONDS", -1)
    async with Ledger(stored, workers=1) as ledger, stored.session() as holder:
        for source, target in pairs:
            await ledger.submit(TransferRequest(source, target, 1))
        await post_transfers(holder, [TransferRequest(accounts[0], accounts[1], 1, key="held")])
        held = asyncio.create_task(ledger.submit(TransferRequest(*pairs[0], 1, key="held")))
        requests = [TransferRequest(*pair, 1, key=str(n)) for n, pair in enumerate(pairs[1:])]
        others = [asyncio.create_task(ledger.submit(request)) for request in requests]
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*others, return_exceptions=True)
        assert {type(answer) for answer in answers} == {TransferResult if is_limited else LockTimeout}
        if is_limited:
            assert not held.done()
            await until_waiting(stored, 1)
        await holder.rollback()
        if is_limited:
            assert (await held).unwrap().amount == 1
        else:
            await asyncio.gather(held, return_exceptions=True)
