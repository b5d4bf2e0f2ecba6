"""When transfers and their reversals take effect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest_asyncio
from sqlalchemy import text

from howdah import Database
from shop.ledger.accounts import read_effective_balance
from shop.ledger.check import check_ledger
from shop.ledger.group_commit import Ledger
from shop.ledger.models import Account, Transfer
from shop.ledger.requests import Refusal, TransferRecord, TransferRequest
from shop_tests.support.factories import make_account
from shop_tests.support.funded_accounts import assert_ledger_is_correct, open_accounts
from shop_tests.support.problems import assert_problem
from shop_tests.support.reversals import reversal_request
from shop_tests.support.session_accounts import post_one
from shop_tests.support.trigger_bypass import disable_triggers


def year(number: int) -> datetime:
    return datetime(number, 1, 1, tzinfo=UTC)


MOMENT = timedelta(microseconds=1)


@pytest_asyncio.fixture
async def ledger(stored: Database) -> AsyncIterator[Ledger]:
    async with Ledger(stored) as ledger:
        yield ledger


async def post_transfer(
    ledger: Ledger, source: UUID, target: UUID, at: datetime | None, **values: Any
) -> TransferRecord:
    return (await ledger.submit(TransferRequest(source, target, 60, effective_at=at, **values))).unwrap()


async def reversal(
    stored: Database, transfer: TransferRecord, at: datetime | None = None, *, amount: int | None = None
) -> TransferRequest:
    async with stored.session() as session:
        return await reversal_request(session, transfer.id, amount=amount, effective_at=at)


async def effective(stored: Database, at: datetime, *accounts: UUID) -> list[int]:
    async with stored.session() as session:
        return [await read_effective_balance(session, account, at) for account in accounts]


async def test_a_future_transfer_that_is_reversed_today_changes_no_effective_balance(
    stored: Database, ledger: Ledger
) -> None:
    a, b = await open_accounts(stored, 100, 0)
    moved = await post_transfer(ledger, a, b, year(2999))
    back = (await ledger.submit(await reversal(stored, moved))).unwrap()
    assert (back.effective_at, back.created_at < year(2999)) == (year(2999), True)
    for at in (year(2030), year(2999) - MOMENT, year(2999), year(3000)):
        assert await effective(stored, at, a, b) == [100, 0]
    await assert_ledger_is_correct(stored)


async def test_a_past_transfer_can_be_reversed_at_its_effective_date(stored: Database, ledger: Ledger) -> None:
    a, b = await open_accounts(stored, 100, 0)
    moved = await post_transfer(ledger, a, b, year(2020))
    assert await effective(stored, year(2021), b) == [60]
    back = (await ledger.submit(await reversal(stored, moved, year(2020)))).unwrap()
    assert back.effective_at == year(2020)
    for at in (year(2019), year(2020), year(2021), year(2999)):
        assert await effective(stored, at, b) == [0]
    await assert_ledger_is_correct(stored)


async def test_a_reversal_takes_effect_now_by_default(stored: Database, ledger: Ledger) -> None:
    a, b = await open_accounts(stored, 100, 0)
    back = (await ledger.submit(await reversal(stored, await post_transfer(ledger, a, b, year(2020))))).unwrap()
    assert back.effective_at == back.created_at
    assert await effective(stored, year(2021), b) == [60]


async def test_no_reversal_takes_effect_before_its_original(stored: Database, ledger: Ledger) -> None:
    """Reversals of a part, of a reversal, of a posted hold, and of a transfer that took effect when it was posted."""
    a, b = await open_accounts(stored, 1_000, 0)
    undated = await post_transfer(ledger, a, b, None)
    dated = await post_transfer(ledger, a, b, year(2999))
    held = await post_transfer(ledger, a, b, year(2040), pending_seconds=60)
    posted = (await ledger.submit(TransferRequest(a, b, 50, posts=held.id))).unwrap()
    assert posted.effective_at == year(2040)
    again = (await ledger.submit(await reversal(stored, dated, year(3000), amount=10))).unwrap()
    for original in (undated, dated, posted, again):
        for amount in (5, None):
            early = await reversal(stored, original, original.effective_at - MOMENT, amount=amount)
            early = early._replace(key=str(uuid4()))
            answers = [await ledger.submit(early) for _ in range(2)]
            assert [answer.refusal for answer in answers] == [Refusal.REVERSAL_BEFORE_ORIGINAL] * 2
            assert [answer.replayed for answer in answers] == [False, True]
        moment = original.effective_at.astimezone(timezone(timedelta(hours=5)))
        part = (await ledger.submit(await reversal(stored, original, moment, amount=5))).unwrap()
        rest = (await ledger.submit(await reversal(stored, original))).unwrap()
        assert part.effective_at == original.effective_at <= rest.effective_at
    await assert_ledger_is_correct(stored)


async def test_a_hold_posted_and_reversed_in_one_call_takes_effect_in_that_order(
    stored: Database, ledger: Ledger
) -> None:
    a, b = await open_accounts(stored, 1_000, 0)
    for linked in (False, True):
        for at in (None, year(2040)):
            held = await post_transfer(ledger, a, b, at, pending_seconds=60)
            both = [
                TransferRequest(a, b, None, posts=held.id, linked=linked),
                await reversal(stored, held),
            ]
            posted, back = [each.unwrap() for each in await ledger.submit_many(both)]
            assert back.effective_at == posted.effective_at == (at or posted.created_at)
    held = await post_transfer(ledger, a, b, year(2040), pending_seconds=60)
    early = [TransferRequest(a, b, None, posts=held.id, linked=True), await reversal(stored, held, year(2039))]
    refusals = [each.refusal for each in await ledger.submit_many(early)]
    assert refusals == [Refusal.LINKED_TRANSFER_FAILED, Refusal.REVERSAL_BEFORE_ORIGINAL]
    late = [TransferRequest(a, b, None, posts=held.id), await reversal(stored, held, year(2041))]
    assert (await ledger.submit_many(late))[1].unwrap().effective_at == year(2041)
    await assert_ledger_is_correct(stored)


async def test_concurrent_reversals_in_two_processes_take_effect_with_the_original(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 0)
    async with Ledger(stored) as one, Ledger(stored) as other:
        moved = await post_transfer(one, a, b, year(2999))
        requests = [await reversal(stored, moved, amount=amount) for amount in (1, 2, 3, 4)]
        backs = await asyncio.gather(*[each.submit(request) for each in (one, other) for request in requests])
    assert {back.unwrap().effective_at for back in backs} == {year(2999)}
    assert await effective(stored, year(2500), a, b) == [100, 0]
    await assert_ledger_is_correct(stored)


async def test_a_reversal_in_the_callers_transaction_takes_effect_with_the_original(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 0)
    async with stored.begin() as session:
        moved = await post_one(session, TransferRequest(a, b, 60, effective_at=year(2999)))
        back = await post_one(session, await reversal_request(session, moved.id))
        assert back.effective_at == year(2999)


async def test_a_payment_may_take_effect_before_the_money_for_it(stored: Database, ledger: Ledger) -> None:
    """The available balance at the time of posting decides. The effective balance is a report."""
    a, b, c = await open_accounts(stored, 0, 0, 100)
    assert (await ledger.submit(TransferRequest(a, b, 60, effective_at=year(2020)))).refusal is (
        Refusal.INSUFFICIENT_FUNDS  # an earlier effective date doesn't help
    )
    assert (await ledger.submit(TransferRequest(c, a, 60, effective_at=year(2999)))).refusal is None
    moved = await post_transfer(ledger, a, b, year(2020))
    assert moved.effective_at == year(2020)
    assert await effective(stored, year(2021), a, b) == [-60, 60]
    assert await effective(stored, year(3000), a, b) == [0, 60]
    async with stored.session() as session:
        assert (await session.get_one(Account, a)).balance == 0
    await assert_ledger_is_correct(stored)


async def test_the_check_finds_a_reversal_that_takes_effect_before_its_original(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 0)
    async with stored.begin() as session:
        moved = await post_one(session, TransferRequest(a, b, 60, effective_at=year(2030)))
        back = await post_one(session, await reversal_request(session, moved.id))
        assert (await check_ledger(session)).faults == {}
        await disable_triggers(session)
        await session.execute(text("UPDATE transfers SET effective_at = now() WHERE id = :id"), {"id": back.id})
        faults = (await check_ledger(session)).faults
        assert f"transfer {back.id} reverses {moved.id}" in faults["reversals take effect before the original transfer"]
        await session.rollback()


async def test_over_http_a_reversal_accepts_an_effective_date_and_a_description(
    client: httpx.AsyncClient, stored: Database
) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    body = {"from_account_id": a["id"], "to_account_id": b["id"], "amount": 60, "effective_at": "2020-01-01T00:00:00Z"}
    moved = (await client.post("/transfers", json=body, headers={"Idempotency-Key": "mistake"})).json()
    path, key = f"/transfers/{moved['id']}/reverse", {"Idempotency-Key": "back"}

    early = {"effective_at": "2019-12-31T23:59:59.999999Z"}
    answer = await client.post(path, json=early, headers={"Idempotency-Key": "early"})
    assert_problem(answer, 409, "reversal-before-original")
    wanted = {"effective_at": "2020-01-01T02:00:00+02:00", "description": "wrong year"}
    first, again = [await client.post(path, json=wanted, headers=key) for _ in range(2)]
    assert (first.status_code, again.content) == (201, first.content)
    assert (first.json()["effective_at"], first.json()["description"]) == ("2020-01-01T00:00:00Z", "wrong year")
    assert_problem(await client.post(path, json={}, headers=key), 422, "key-reused")
    bodies: list[dict[str, Any]] = [
        {"effective_at": "2020-01-01T00:00:00"},
        {"description": "\0"},
        {"metadata": {}},
    ]
    for wrong in bodies:
        assert_problem(await client.post(path, json=wrong, headers={"Idempotency-Key": "k"}), 422, "validation")
    balance = await client.get(f"/accounts/{b['id']}/balance", params={"effective_at": "2021-01-01T00:00:00Z"})
    assert balance.json()["balance"] == 0
    async with stored.session() as session:
        assert (await session.get_one(Transfer, UUID(first.json()["id"]))).effective_at == year(2020)
