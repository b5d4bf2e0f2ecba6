"""`post_transfers` and `transfer_funds`: posting in one transaction."""

from __future__ import annotations

from datetime import timedelta
from typing import Final
from uuid import uuid4

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, utcnow
from howdah.testing import assert_statements
from shop.ledger.check import check_ledger
from shop.ledger.models import AccountState, Entry, IdempotencyKey, PendingTransfer, Transfer
from shop.ledger.repository import TransferRepository
from shop.ledger.requests import MAX_AMOUNT, MAX_BALANCE, Refusal, TransferRefused, TransferRequest, TransferResult
from shop.ledger.service import post_transfers, transfer_funds
from shop_tests.support.reversals import reversal_request
from shop_tests.support.session_accounts import account, entries_of, post
from shop_tests.support.trigger_bypass import disable_triggers, enable_triggers, reseal_pending_transfers

MOMENT: Final = timedelta(microseconds=1)


async def test_a_transfer_creates_two_entries_and_changes_both_balances(session: AsyncSession) -> None:
    source, target = await account(session, 1_000), await account(session, 5)
    request = TransferRequest(source.id, target.id, 300, currency="GBP", description="rent")

    [result] = await post(session, request)

    moved = result.unwrap()
    assert (moved.from_account_id, moved.to_account_id, moved.amount) == (source.id, target.id, 300)
    assert (moved.currency, moved.description, moved.reverses_id) == ("GBP", "rent", None)
    assert result == TransferResult(transfer=moved)
    entries = (await session.scalars(select(Entry).where(Entry.transfer_id == moved.id))).all()
    assert {(entry.account_id, entry.amount) for entry in entries} == {(source.id, -300), (target.id, 300)}
    assert {entry.created_at for entry in entries} == {moved.created_at}
    assert (source.balance, source.entry_count, target.balance, target.entry_count) == (700, 2, 305, 2)


async def test_the_entries_of_an_account_are_numbered_without_gaps(session: AsyncSession) -> None:
    a, b = await account(session, 100), await account(session)
    for _ in range(2):
        await post(
            session,
            TransferRequest(a.id, b.id, 10),
            TransferRequest(a.id, b.id, 9_999),
            TransferRequest(b.id, a.id, 3),
            TransferRequest(a.id, uuid4(), 1),
        )
    assert await entries_of(session, a.id) == [(1, 100, 100), (2, -10, 90), (3, 3, 93), (4, -10, 83), (5, 3, 86)]
    assert await entries_of(session, b.id) == [(1, 10, 10), (2, -3, 7), (3, 10, 17), (4, -3, 14)]
    assert (await check_ledger(session)).faults == {}


async def test_a_request_is_decided_after_those_before_it(session: AsyncSession) -> None:
    a, b, c = await account(session, 100), await account(session), await account(session)
    results = await post(
        session,
        TransferRequest(b.id, c.id, 100),
        TransferRequest(a.id, b.id, 100),
        TransferRequest(b.id, c.id, 100),
        TransferRequest(a.id, b.id, 1),
    )
    assert [result.refusal for result in results] == [
        Refusal.INSUFFICIENT_FUNDS,
        None,
        None,
        Refusal.INSUFFICIENT_FUNDS,
    ]
    assert (a.balance, b.balance, c.balance) == (0, 0, 100)


async def test_every_refusal_has_its_code_and_moves_no_money(session: AsyncSession) -> None:
    a, b, euros = await account(session, 100), await account(session), await account(session, currency="EUR")
    full, drained = await account(session, covered=False), await account(session, covered=False)
    await post(
        session,
        TransferRequest(drained.id, full.id, MAX_AMOUNT),
        TransferRequest(drained.id, full.id, MAX_AMOUNT - 1),
        TransferRequest(a.id, b.id, 1, key="used"),
    )
    assert (full.balance, drained.balance) == (MAX_BALANCE, -MAX_BALANCE)
    [reversed_] = await post(session, TransferRequest(a.id, b.id, 1))
    reversal = await reversal_request(session, reversed_.unwrap().id)
    await post(session, reversal)
    [to_reverse] = await post(session, TransferRequest(a.id, b.id, 3))
    frozen, closed = await account(session), await account(session)
    small = await account(session)
    frozen.state, closed.state, small.balance_limit = AccountState.FROZEN, AccountState.CLOSED, 10
    posted, voided, held = [
        result.unwrap().id for result in await post(session, *[TransferRequest(a.id, b.id, 5, pending_seconds=60)] * 3)
    ]
    await post(
        session, TransferRequest(a.id, b.id, None, posts=posted), TransferRequest(a.id, b.id, None, voids=voided)
    )
    late = (await post(session, TransferRequest(a.id, b.id, 1, pending_seconds=1)))[0].unwrap().id
    await disable_triggers(session)
    await session.execute(update(PendingTransfer).where(PendingTransfer.id == late).values(expires_at=utcnow()))
    await reseal_pending_transfers(session)
    await enable_triggers(session)
    before = await session.scalar(select(func.count()).select_from(Transfer))

    results = await post(
        session,
        TransferRequest(a.id, b.id, 0),
        TransferRequest(a.id, b.id, -1),
        TransferRequest(a.id, b.id, MAX_AMOUNT + 1),
        TransferRequest(a.id, a.id, 1),
        TransferRequest(uuid4(), b.id, 1),
        TransferRequest(a.id, uuid4(), 1),
        TransferRequest(a.id, euros.id, 1),
        TransferRequest(a.id, b.id, 1, currency="EUR"),
        TransferRequest(a.id, b.id, 101),
        TransferRequest(drained.id, full.id, 1),
        TransferRequest(a.id, full.id, 1),
        TransferRequest(drained.id, b.id, 1),
        reversal,
        TransferRequest(a.id, b.id, 2, key="used"),
        TransferRequest(a.id, frozen.id, 1),
        TransferRequest(frozen.id, a.id, 1),
        TransferRequest(a.id, closed.id, 1),
        TransferRequest(a.id, small.id, 11),
        await reversal_request(session, to_reverse.unwrap().id, amount=4),
        TransferRequest(b.id, a.id, 1, reverses=uuid4()),
        TransferRequest(a.id, b.id, 1, reverses=to_reverse.unwrap().id),
        TransferRequest(b.id, small.id, 1, reverses=to_reverse.unwrap().id),
        await reversal_request(session, held),
        await reversal_request(session, to_reverse.unwrap().id, effective_at=to_reverse.unwrap().effective_at - MOMENT),
        TransferRequest(a.id, b.id, None, posts=to_reverse.unwrap().id),
        TransferRequest(a.id, b.id, None, posts=uuid4()),
        TransferRequest(b.id, a.id, None, voids=held),
        TransferRequest(a.id, b.id, None, posts=posted),
        TransferRequest(a.id, b.id, None, voids=voided),
        TransferRequest(a.id, b.id, None, posts=late),
        TransferRequest(a.id, b.id, 6, posts=held),
        TransferRequest(a.id, b.id, 0, posts=held),
        TransferRequest(a.id, b.id, 1, linked=True),
        TransferRequest(a.id, b.id, 1_000, linked=True),
        TransferRequest(a.id, b.id, 1),
    )

    assert [result.refusal for result in results] == [
        *[Refusal.AMOUNT_OUT_OF_RANGE] * 3,
        Refusal.SAME_ACCOUNT,
        *[Refusal.UNKNOWN_ACCOUNT] * 2,
        *[Refusal.CURRENCY_MISMATCH] * 2,
        Refusal.INSUFFICIENT_FUNDS,
        *[Refusal.BALANCE_OUT_OF_RANGE] * 3,
        Refusal.ALREADY_REVERSED,
        Refusal.KEY_REUSED,
        *[Refusal.ACCOUNT_FROZEN] * 2,
        Refusal.ACCOUNT_CLOSED,
        Refusal.LIMIT_EXCEEDED,
        Refusal.EXCEEDS_REVERSIBLE_AMOUNT,
        *[Refusal.REVERSAL_MISMATCH] * 3,
        Refusal.NOT_POSTED,
        Refusal.REVERSAL_BEFORE_ORIGINAL,
        Refusal.ALREADY_POSTED,
        *[Refusal.UNKNOWN_PENDING] * 2,
        Refusal.ALREADY_POSTED,
        Refusal.ALREADY_VOIDED,
        Refusal.PENDING_EXPIRED,
        Refusal.EXCEEDS_HELD_AMOUNT,
        Refusal.AMOUNT_OUT_OF_RANGE,
        Refusal.LINKED_TRANSFER_FAILED,
        Refusal.INSUFFICIENT_FUNDS,
        Refusal.LINKED_TRANSFER_FAILED,
    ]
    of_customers = {Refusal.NOT_PAYEE, Refusal.COUNTERPARTY_UNAVAILABLE}  # see test_customers
    assert {result.refusal for result in results} == set(Refusal) - of_customers
    assert await session.scalar(select(func.count()).select_from(Transfer)) == before
    assert (a.balance, a.held, b.balance) == (91, 5, 9)  # the expired hold reserves nothing
    with pytest.raises(TransferRefused) as caught:
        results[0].unwrap()
    assert caught.value.code is Refusal.AMOUNT_OUT_OF_RANGE
    assert (await check_ledger(session)).faults == {}


async def test_an_account_that_allows_a_negative_balance_gets_one(session: AsyncSession) -> None:
    a, b = await account(session, covered=False), await account(session)
    await transfer_funds(session, a.id, b.id, 10)
    assert (a.balance, b.balance) == (-10, 10)


async def test_an_empty_list_of_requests_has_no_results(session: AsyncSession) -> None:
    assert await post(session) == []


async def test_a_transfer_is_reversed_completely_and_once(session: AsyncSession) -> None:
    a, b = await account(session, 100), await account(session)
    moved = (await post(session, TransferRequest(a.id, b.id, 60)))[0].unwrap()

    first, second = await post(session, *[await reversal_request(session, moved.id)] * 2)

    back = first.unwrap()
    assert (back.from_account_id, back.to_account_id, back.amount, back.reverses_id) == (b.id, a.id, 60, moved.id)
    assert second.refusal is Refusal.ALREADY_REVERSED
    assert (a.balance, b.balance) == (100, 0)
    [again] = await post(session, await reversal_request(session, back.id))  # a reversal is a transfer too
    assert again.unwrap().reverses_id == back.id


async def test_partial_reversals_never_exceed_the_transfer(session: AsyncSession) -> None:
    a, b = await account(session, 100), await account(session, 100)
    moved = (await post(session, TransferRequest(a.id, b.id, 60)))[0].unwrap()

    async def back(amount: int | None) -> TransferRequest:
        return await reversal_request(session, moved.id, amount=amount)

    results = await post(session, await back(10), await back(51), await back(20))
    [rest] = await post(session, await back(None))
    [late] = await post(session, await back(1))

    assert [result.refusal for result in results] == [None, Refusal.EXCEEDS_REVERSIBLE_AMOUNT, None]
    assert [result.unwrap().reversed_total for result in (results[0], results[2], rest)] == [10, 30, 60]
    assert rest.unwrap().amount == 30
    assert late.refusal is Refusal.ALREADY_REVERSED
    assert (a.balance, b.balance) == (100, 100)
    assert (await check_ledger(session)).faults == {}


async def test_an_account_can_be_overdrawn_up_to_its_limit(session: AsyncSession) -> None:
    a, b = await account(session, 10), await account(session)
    a.overdraft_limit = 5
    results = await post(session, TransferRequest(a.id, b.id, 16), TransferRequest(a.id, b.id, 15))
    assert [result.refusal for result in results] == [Refusal.INSUFFICIENT_FUNDS, None]
    assert a.balance == -5
    assert (await check_ledger(session)).faults == {}


async def test_a_refused_reversal_can_be_posted_later(session: AsyncSession) -> None:
    a, b, c = await account(session, 100), await account(session), await account(session)
    moved = (await post(session, TransferRequest(a.id, b.id, 60)))[0].unwrap()
    await transfer_funds(session, b.id, c.id, 1)
    reversal = await reversal_request(session, moved.id)
    assert (await post(session, reversal))[0].refusal is Refusal.INSUFFICIENT_FUNDS
    await transfer_funds(session, c.id, b.id, 1)
    assert (await post(session, reversal))[0].refusal is None


async def test_any_number_of_requests_takes_three_statements(stored: Database) -> None:
    """To lock the accounts, to look up the keys, and to write. The limit of parameters per statement doesn't matter."""
    async with stored.session() as session:
        a, b = (await account(session, 40_000)).id, (await account(session)).id
        requests = [TransferRequest(a, b, 1, key=f"key {number}") for number in range(40_000)]
        with assert_statements(session, 3):
            results = await post_transfers(session, requests)
        assert not any(result.refusal or result.replayed for result in results)
        again = await post_transfers(session, requests)
        assert [result.unwrap().id for result in again] == [result.unwrap().id for result in results]
        assert all(result.replayed for result in again)
        assert await session.scalar(select(func.count()).select_from(IdempotencyKey)) == 40_000
        assert await TransferRepository(session).find_reversible([uuid4() for _ in range(40_000)]) == {}
        assert (await check_ledger(session)).faults == {}


async def test_keys_of_different_scopes_are_different(session: AsyncSession) -> None:
    a, b = await account(session, 100), await account(session)
    results = await post(
        session,
        TransferRequest(a.id, b.id, 1, key="k", scope="ada"),
        TransferRequest(a.id, b.id, 2, key="k", scope="grace"),
        TransferRequest(a.id, b.id, 2, key="k", scope="ada"),
    )
    assert [result.refusal for result in results] == [None, None, Refusal.KEY_REUSED]
    assert b.balance == 3


async def test_a_key_used_twice_in_one_call_is_decided_once(session: AsyncSession) -> None:
    a, b = await account(session, 100), await account(session)
    ten, much = TransferRequest(a.id, b.id, 10, key="ten"), TransferRequest(a.id, b.id, 101, key="much")
    other = TransferRequest(a.id, b.id, 11, key="ten")

    results = await post(session, ten, other, ten, much, much)
    later = await post(session, much, other, ten)

    assert [(result.refusal, result.replayed) for result in results] == [
        (None, False),
        (Refusal.KEY_REUSED, False),
        (None, True),
        (Refusal.INSUFFICIENT_FUNDS, False),
        (Refusal.INSUFFICIENT_FUNDS, True),
    ]
    assert results[0].transfer is results[2].transfer
    assert [(result.refusal, result.replayed) for result in later] == [
        (Refusal.INSUFFICIENT_FUNDS, True),
        (Refusal.KEY_REUSED, False),
        (None, True),
    ]
    assert later[2].unwrap().id == results[0].unwrap().id
    assert (a.balance, b.balance) == (90, 10)


async def test_a_key_used_in_a_rolled_back_savepoint_is_unused(session: AsyncSession) -> None:
    a, b = await account(session, 100), await account(session)
    request = TransferRequest(a.id, b.id, 10, key="k")
    async with session.begin_nested() as savepoint:
        assert [result.replayed for result in await post(session, request, request)] == [False, True]
        assert [result.replayed for result in await post(session, request)] == [True]
        await savepoint.rollback()
    assert [result.replayed for result in await post(session, request)] == [False]
    assert [result.replayed for result in await post(session, request)] == [True]
    await session.refresh(b)
    assert b.balance == 10
