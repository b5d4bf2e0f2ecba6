"""An expired hold reserves nothing, whether or not it has been voided."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import select, text, update

from howdah import Database, LockTimeout, utcnow
from shop.ledger.account_schemas import AccountChange
from shop.ledger.accounts import AccountUnchangeable, change_account
from shop.ledger.expiry import VOID_EXPIRED
from shop.ledger.group_commit import Ledger
from shop.ledger.maintenance import void_expired
from shop.ledger.models import Account, AccountState, IdempotencyKey
from shop.ledger.requests import Refusal, TransferRecord, TransferRequest, TransferResult
from shop.ledger.service import find_transfer, post_transfers, transfer_funds
from shop.orders.service import pay_order
from shop_tests.support.factories import (
    balances,
    held,
    hold,
    make_account,
    make_order,
    make_user,
    post_transfer,
    settle,
)
from shop_tests.support.funded_accounts import assert_ledger_is_correct, open_accounts
from shop_tests.support.problems import assert_problem
from shop_tests.support.statement_log import log_statements
from shop_tests.support.trigger_bypass import disable_triggers, expire


async def on_hold(stored: Database, a: UUID, b: UUID, *amounts: int, expired: bool = True) -> list[UUID]:
    """Pending transfers of these amounts, held by another process."""
    async with Ledger(stored) as ledger:
        requests = [TransferRequest(a, b, amount, pending_seconds=3_600) for amount in amounts]
        ids = [result.unwrap().id for result in await ledger.submit_many(requests)]
    if expired:
        await expire(stored, *ids)
    return ids


async def rows(stored: Database, *accounts: UUID) -> list[tuple[int, int]]:
    async with stored.session() as session:
        found = [await session.get_one(Account, account) for account in accounts]
        return [(account.balance, account.held) for account in found]


async def submitted(stored: Database, request: TransferRequest) -> TransferResult:
    async with Ledger(stored) as ledger:
        return await ledger.submit(request)


async def submitted_with_others(stored: Database, request: TransferRequest) -> TransferResult:
    async with Ledger(stored) as ledger:
        return (await ledger.submit_many([request, TransferRequest(request.to_account_id, uuid4(), 1)]))[0]


async def posted(stored: Database, request: TransferRequest) -> TransferResult:
    async with stored.begin() as session:
        return (await post_transfers(session, [request]))[0]


async def linked(stored: Database, request: TransferRequest) -> TransferResult:
    back = TransferRequest(request.to_account_id, request.from_account_id, 1, key=str(uuid4()))
    async with Ledger(stored) as ledger:
        return (await ledger.submit_many([request._replace(linked=True), back]))[0]


async def held_again(stored: Database, request: TransferRequest) -> TransferResult:
    async with Ledger(stored) as ledger:
        return await ledger.submit(request._replace(pending_seconds=60))


@pytest.mark.parametrize("way", [submitted, submitted_with_others, posted, linked, held_again])
async def test_what_has_expired_is_free_for_every_kind_of_request(
    stored: Database, way: Callable[[Database, TransferRequest], Awaitable[TransferResult]]
) -> None:
    """No refusal that it caused is stored. The control: before it expires, its amount is not available."""
    a, b = await open_accounts(stored, 100, 0)
    ids = await on_hold(stored, a, b, 60, 20, expired=False)
    assert (await way(stored, TransferRequest(a, b, 90, key="before"))).refusal is Refusal.INSUFFICIENT_FUNDS
    await expire(stored, ids[0])
    assert (await way(stored, TransferRequest(a, b, 81, key="more"))).refusal is Refusal.INSUFFICIENT_FUNDS
    assert (await way(stored, TransferRequest(a, b, 80, key="after"))).refusal is None
    replayed = await way(stored, TransferRequest(a, b, 80, key="after"))
    if way is not linked:  # its second request has a key of its own each time
        assert (replayed.refusal, replayed.replayed) == (None, True)
        async with stored.session() as session:
            refusals = select(IdempotencyKey.key, IdempotencyKey.refusal).where(IdempotencyKey.key == "after")
            assert (await session.execute(refusals)).all() == [("after", None)]
    assert (await rows(stored, a))[0][1] == (100 if way is held_again else 20)
    await assert_ledger_is_correct(stored)


async def test_what_expires_while_a_ledger_knows_the_account_is_free(stored: Database) -> None:
    """The cache still has the held amount: the refusal is decided again under locks, which is no version conflict."""
    a, b, c, d = await open_accounts(stored, 100, 0, 100, 100)
    async with Ledger(stored) as ledger, log_statements(stored) as seen:
        pending = (await ledger.submit(TransferRequest(a, b, 60, pending_seconds=60))).unwrap()
        (await ledger.submit(TransferRequest(c, d, 1))).unwrap()
        seen.take()
        (await ledger.submit(TransferRequest(a, b, 10))).unwrap()
        assert seen.take() == ["write if"]
        await expire(stored, pending.id)
        seen.take()
        [fitting, more, other] = await ledger.submit_many(
            [TransferRequest(a, b, 80, key="k"), TransferRequest(a, b, 11, key="l"), TransferRequest(c, d, 1)]
        )
        assert (fitting.refusal, more.refusal, other.refusal) == (None, Refusal.INSUFFICIENT_FUNDS, None)
        assert seen.take() == ["lock", "write"]
        for source, target, amount in ((a, b, 10), (b, a, 1), (c, d, 1)):
            (await ledger.submit(TransferRequest(source, target, amount))).unwrap()
            assert seen.take() == ["write if"]
        assert (await ledger.submit(TransferRequest(a, b, 100))).refusal is Refusal.INSUFFICIENT_FUNDS
        assert seen.take() == ["write if"]  # nothing is held any more, so it is trusted
    assert await rows(stored, a, b) == [(1, 0), (99, 0)]
    await assert_ledger_is_correct(stored)


async def test_a_refusal_of_what_is_still_held_leaves_the_ledger_right(stored: Database) -> None:
    """Many requests at the same time: a dropped decision doesn't change the account cache."""
    a, b, c = await open_accounts(stored, 1_000, 1_000, 0)
    async with Ledger(stored, max_batch_size=5) as ledger:
        (await ledger.submit(TransferRequest(a, c, 700, pending_seconds=60))).unwrap()
        requests = [TransferRequest(*(((a, c), (b, c), (c, b))[n % 3]), 7 if n % 4 else 600) for n in range(300)]
        results = await asyncio.gather(*map(ledger.submit, requests))
        assert {result.refusal for result in results} == {None, Refusal.INSUFFICIENT_FUNDS}
        moved = sum(
            request.amount or 0
            for request, result in zip(requests, results, strict=True)
            if not result.refusal and request.from_account_id == a
        )
        assert (await rows(stored, a))[0] == (1_000 - moved, 700)
        left = 300 - moved
        assert (await ledger.submit(TransferRequest(a, c, left + 1))).refusal is Refusal.INSUFFICIENT_FUNDS
        (await ledger.submit(TransferRequest(a, c, left))).unwrap()
    await assert_ledger_is_correct(stored)


async def test_what_was_decided_and_not_written_is_not_taken_for_made(stored: Database) -> None:
    """Even if another process has posted entries with the same numbers meanwhile."""
    a, b, c = await open_accounts(stored, 100, 100, 100)
    async with Database(stored.engine.url, lock_timeout=0.3) as impatient, Ledger(impatient) as ledger:
        (await ledger.submit(TransferRequest(a, b, 60, pending_seconds=60))).unwrap()
        (await ledger.submit(TransferRequest(c, b, 1))).unwrap()
        async with stored.begin() as session:
            await transfer_funds(session, b, c, 50)
            with pytest.raises(LockTimeout):
                await ledger.submit_many([TransferRequest(c, b, 10), TransferRequest(a, b, 80)])
        assert (await ledger.submit(TransferRequest(c, b, 149))).refusal is None
    assert await rows(stored, a, b, c) == [(100, 60), (200, 0), (0, 0)]


async def test_a_largest_amount_that_has_expired_is_in_nobodys_way(stored: Database) -> None:
    async with stored.begin() as session:
        await session.execute(text("SELECT 1"))
    a, b = await open_accounts(stored, 0, 0)
    async with stored.begin() as session:
        await session.execute(update(Account).where(Account.id == a).values(allows_negative=True))
    await on_hold(stored, a, b, 2**62, 2**62 - 1)
    async with Ledger(stored) as ledger:
        (await ledger.submit(TransferRequest(a, b, 2**62))).unwrap()
    assert await rows(stored, a) == [(-(2**62), 0)]


async def test_posting_it_is_late_and_voiding_it_is_not(stored: Database) -> None:
    """Whether the request itself voids it, another transfer has voided it, or nothing has yet."""
    a, b = await open_accounts(stored, 100, 0)
    first, second, third = await on_hold(stored, a, b, 10, 20, 30)
    async with Ledger(stored) as ledger:
        voiding = TransferRequest(a, b, None, voids=second, key="void")
        results = await ledger.submit_many(
            [
                TransferRequest(a, b, None, posts=first, key="post"),
                voiding,
                TransferRequest(a, b, None, voids=second),
                TransferRequest(a, b, 100, linked=True),
                TransferRequest(a, b, None, voids=third, linked=True),
                TransferRequest(b, a, 1_000),
                TransferRequest(a, b, None, voids=third),
            ]
        )
        assert [result.refusal for result in results] == [
            Refusal.PENDING_EXPIRED,
            None,
            Refusal.ALREADY_VOIDED,
            *[Refusal.LINKED_TRANSFER_FAILED] * 2,
            Refusal.INSUFFICIENT_FUNDS,
            None,
        ]
        assert {results[1].unwrap().state, results[6].unwrap().state} == {"voided"}
        assert (await ledger.submit(voiding)) == results[1]._replace(replayed=True)
        for id_ in (first, second, third):
            assert (await ledger.submit(TransferRequest(a, b, None, posts=id_))).refusal is Refusal.PENDING_EXPIRED
            assert (await ledger.submit(TransferRequest(a, b, None, voids=id_))).refusal is Refusal.ALREADY_VOIDED
    assert await rows(stored, a) == [(100, 0)]
    await assert_ledger_is_correct(stored)


async def test_what_was_voided_in_time_has_not_expired(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 0)
    [pending] = await on_hold(stored, a, b, 10, expired=False)
    async with Ledger(stored) as ledger:
        (await ledger.submit(TransferRequest(a, b, None, voids=pending))).unwrap()
        assert (await ledger.submit(TransferRequest(a, b, None, posts=pending))).refusal is Refusal.ALREADY_VOIDED


async def test_a_reader_sees_it_voided(client: httpx.AsyncClient, stored: Database) -> None:
    """Before a transfer or the background job has voided it. `check_ledger` finds no fault in that state."""
    a, b = await make_account(client, 100), await make_account(client)
    late, other = [(await hold(client, a, b, amount)).json() for amount in (60, 5)]
    replay = {"from_account_id": a["id"], "to_account_id": b["id"], "amount": 1, "pending_seconds": 600}
    first = await client.post("/transfers", json=replay, headers={"Idempotency-Key": "k"})
    async with stored.begin() as locking:  # so that the service's maintenance leaves it
        await locking.execute(select(Account.id).where(Account.id == UUID(a["id"])).with_for_update())
        await expire(stored, UUID(late["id"]), UUID(first.json()["id"]))
        assert (await rows(stored, UUID(a["id"]))) == [(100, 66)]
        assert await held(client, a) == 5
        listed = (await client.get("/accounts")).json()["items"]
        assert {each["id"]: each["held"] for each in listed if each["id"] in (a["id"], b["id"])} == {
            a["id"]: 5,
            b["id"]: 0,
        }
        shown = (await client.get(f"/transfers/{late['id']}")).json()
        assert (shown["state"], shown["expires_at"], shown["amount"]) == ("voided", None, 60)
        assert (await client.get(f"/transfers/{other['id']}")).json()["state"] == "pending"
        await assert_ledger_is_correct(stored)
    again = await client.post("/transfers", json=replay, headers={"Idempotency-Key": "k"})
    assert (again.json()["id"], again.json()["state"]) == (first.json()["id"], "pending")
    assert_problem(await settle(client, late, "reverse"), 409, "not-posted")
    assert_problem(await settle(client, late, "post"), 409, "pending-expired")
    assert (await post_transfer(client, a, b, 95)).status_code == 201
    assert (await balances(client, a, b), await held(client, a)) == ([5, 95], 5)
    await assert_ledger_is_correct(stored)


async def test_a_session_of_the_caller_has_the_account_as_it_is(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 0)
    await on_hold(stored, a, b, 60, 20)
    async with stored.begin() as session:
        account = await session.get_one(Account, a)
        before = account.revision
        with pytest.raises(ValueError, match="available balance"):
            await transfer_funds(session, a, b, 101)  # and the account is freed all the same
        assert (account.held, account.revision) == (0, before + 1)
        await transfer_funds(session, a, b, 100)
        assert (account.balance, account.held) == (0, 0)
    assert await rows(stored, a, b) == [(0, 0), (100, 0)]
    await assert_ledger_is_correct(stored)


async def test_an_order_is_paid_with_what_was_held(client: httpx.AsyncClient, stored: Database) -> None:
    ada, till = await make_account(client, 500), await make_account(client)
    a, b = UUID(ada["id"]), UUID(till["id"])
    order = await make_order(client, (await make_user(client))["id"], 400)
    pending = await on_hold(stored, a, b, 300, expired=False)
    async with stored.begin() as session:
        refused = await pay_order(session, UUID(order["id"]), a, b, key="before")
        assert refused.result.refusal is Refusal.INSUFFICIENT_FUNDS
    await expire(stored, *pending)
    async with stored.begin() as session:
        assert (await pay_order(session, UUID(order["id"]), a, b, key="after")).result.refusal is None
    await assert_ledger_is_correct(stored)


async def test_an_account_that_holds_only_what_has_expired_can_be_closed(stored: Database) -> None:
    a, b, c = await open_accounts(stored, 0, 0, 100)
    async with stored.begin() as session:
        await session.execute(update(Account).where(Account.id == a).values(overdraft_limit=50))
    pending = await on_hold(stored, a, b, 50, expired=False)
    changes = [AccountChange(overdraft_limit=49), AccountChange(state=AccountState.CLOSED)]
    for change in changes:
        with pytest.raises(AccountUnchangeable):
            async with stored.begin() as session:
                await change_account(session, a, change)
    await expire(stored, *pending)
    async with Ledger(stored) as ledger:
        (await ledger.submit(TransferRequest(c, b, 1))).unwrap()
        for change in changes:
            async with stored.begin() as session:
                account = await change_account(session, a, change)
                assert account.held == 0
        assert (await ledger.submit(TransferRequest(c, a, 1))).refusal is Refusal.ACCOUNT_CLOSED
    assert await rows(stored, a) == [(0, 0)]
    await assert_ledger_is_correct(stored)


async def test_the_upkeep_leaves_what_is_locked_and_goes_on_with_others(stored: Database) -> None:
    a, b, c = await open_accounts(stored, 600, 10, 0)
    await on_hold(stored, a, c, *[1] * 550)  # more than it looks at at a time
    await on_hold(stored, b, c, 1, 2)
    async with Ledger(stored) as ledger:
        async with stored.begin() as session:
            await session.execute(select(Account.id).where(Account.id == a).with_for_update())
            assert await void_expired(stored, ledger) == 2
        assert await void_expired(stored, ledger) == 550
    assert await rows(stored, a, b) == [(600, 0), (10, 0)]


async def test_two_processes_void_it_once(stored: Database) -> None:
    a, b = await open_accounts(stored, 1_000, 1_000)
    pending = await on_hold(stored, a, b, *[10] * 90)
    async with Ledger(stored) as one, Ledger(stored) as other:
        results = await asyncio.gather(
            *((one, other)[n % 2].submit(TransferRequest(*((a, b), (b, a))[n % 2], 9)) for n in range(40)),
            *(one.submit(TransferRequest(a, b, None, voids=id_)) for id_ in pending[:5]),
            other.void_expired([a, b]),
            one.void_expired([a, b]),
        )
    assert all(result.refusal is None for result in results[:40] if isinstance(result, TransferResult))
    assert await rows(stored, a, b) == [(1_000, 0), (1_000, 0)]
    await assert_ledger_is_correct(stored)


async def test_it_is_found_by_its_account_and_time(stored: Database) -> None:
    """Or each posting would read all that the account holds, or all that has expired."""
    a, b = await open_accounts(stored, 0, 0)
    async with stored.session() as session:
        await disable_triggers(session)
        await session.execute(
            text("""
                INSERT INTO pending_transfers (
                    id, from_account_id, to_account_id, amount, currency, state, expires_at, created_at
                )
                SELECT gen_random_uuid(), a.id, b.id, 1, 'GBP', 'pending',
                    now() + CASE WHEN a.id = :a THEN interval '1 day' ELSE interval '-1 day' END, now()
                FROM accounts a, accounts b, generate_series(1, 5000)
                WHERE a.id IN (:a, :b) AND b.id IN (:a, :b) AND a.id <> b.id
                """),
            {"a": a, "b": b},
        )
        await session.execute(text("ANALYZE pending_transfers"))
        explained = text(f"EXPLAIN {VOID_EXPIRED.text}").bindparams(*VOID_EXPIRED._bindparams.values())
        plan = "\n".join(await session.scalars(explained, {"ids": [a], "at": utcnow()}))
    assert "Seq Scan on pending_transfers" not in plan
    assert "ix_pending_transfers_from_account_id_expires_at" in plan
    assert "expires_at <=" in plan.split("Index Cond:")[1].splitlines()[0]


async def seen_by(stored: Database, id_: UUID) -> TransferRecord:
    async with stored.session() as session:
        return await find_transfer(session, id_)


async def test_a_transfer_under_another_id_is_not_shown_voided(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 0)
    late, other = await on_hold(stored, a, b, 10, 20, expired=False)
    await expire(stored, late)
    states: list[Any] = [(await seen_by(stored, id_)).state for id_ in (late, other)]
    assert states == ["voided", "pending"]
