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
from shop.ledger import lock_waits, repository
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
    held_amount,
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
from shop_tests.support.waiting import until_waiting


async def hold_amounts(stored: Database, a: UUID, b: UUID, *amounts: int, expired: bool = True) -> list[UUID]:
    """Hold these amounts through another `Ledger`. Returns the ids of the holds."""
    async with Ledger(stored) as ledger:
        requests = [TransferRequest(a, b, amount, pending_seconds=3_600) for amount in amounts]
        ids = [result.unwrap().id for result in await ledger.submit_many(requests)]
    if expired:
        await expire(stored, *ids)
    return ids


async def balances_and_held_amounts(stored: Database, *accounts: UUID) -> list[tuple[int, int]]:
    async with stored.session() as session:
        found = [await session.get_one(Account, account) for account in accounts]
        return [(account.balance, account.held) for account in found]


async def submit(stored: Database, request: TransferRequest) -> TransferResult:
    async with Ledger(stored) as ledger:
        return await ledger.submit(request)


async def submit_with_another(stored: Database, request: TransferRequest) -> TransferResult:
    async with Ledger(stored) as ledger:
        return (await ledger.submit_many([request, TransferRequest(request.to_account_id, uuid4(), 1)]))[0]


async def post_in_session(stored: Database, request: TransferRequest) -> TransferResult:
    async with stored.begin() as session:
        return (await post_transfers(session, [request]))[0]


async def submit_linked(stored: Database, request: TransferRequest) -> TransferResult:
    back = TransferRequest(request.to_account_id, request.from_account_id, 1, key=str(uuid4()))
    async with Ledger(stored) as ledger:
        return (await ledger.submit_many([request._replace(linked=True), back]))[0]


async def submit_hold(stored: Database, request: TransferRequest) -> TransferResult:
    async with Ledger(stored) as ledger:
        return await ledger.submit(request._replace(pending_seconds=60))


@pytest.mark.parametrize("entry_point", [submit, submit_with_another, post_in_session, submit_linked, submit_hold])
async def test_an_expired_hold_is_available_to_every_kind_of_request(
    stored: Database, entry_point: Callable[[Database, TransferRequest], Awaitable[TransferResult]]
) -> None:
    """No refusal because of the hold is stored. The control: before the hold expires, its amount is not available."""
    a, b = await open_accounts(stored, 100, 0)
    ids = await hold_amounts(stored, a, b, 60, 20, expired=False)
    assert (await entry_point(stored, TransferRequest(a, b, 90, key="before"))).refusal is Refusal.INSUFFICIENT_FUNDS
    await expire(stored, ids[0])
    assert (await entry_point(stored, TransferRequest(a, b, 81, key="more"))).refusal is Refusal.INSUFFICIENT_FUNDS
    assert (await entry_point(stored, TransferRequest(a, b, 80, key="after"))).refusal is None
    replayed = await entry_point(stored, TransferRequest(a, b, 80, key="after"))
    if entry_point is not submit_linked:  # its second request has a new key each time
        assert (replayed.refusal, replayed.replayed) == (None, True)
        async with stored.session() as session:
            refusals = select(IdempotencyKey.key, IdempotencyKey.refusal).where(IdempotencyKey.key == "after")
            assert (await session.execute(refusals)).all() == [("after", None)]
    assert (await balances_and_held_amounts(stored, a))[0][1] == (100 if entry_point is submit_hold else 20)
    await assert_ledger_is_correct(stored)


async def test_an_expired_hold_is_voided_when_its_amount_is_needed(stored: Database) -> None:
    """The statement declines the transfers of that account, and the locks decide: the hold is voided first."""
    a, b, c, d = await open_accounts(stored, 100, 0, 100, 100)
    async with Ledger(stored) as ledger, log_statements(stored) as seen:
        pending = (await ledger.submit(TransferRequest(a, b, 60, pending_seconds=60))).unwrap()
        (await ledger.submit(TransferRequest(c, d, 1))).unwrap()
        seen.take()
        (await ledger.submit(TransferRequest(a, b, 10))).unwrap()
        assert seen.take() == ["post"]
        await expire(stored, pending.id)
        seen.take()
        requests = [TransferRequest(a, b, 80, key="k"), TransferRequest(a, b, 11, key="l"), TransferRequest(c, d, 1)]
        [fitting, more, other] = await asyncio.gather(*map(ledger.submit, requests))
        assert (fitting.refusal, more.refusal, other.refusal) == (None, Refusal.INSUFFICIENT_FUNDS, None)
        assert seen.take() == ["post", "post", "lock", "write"]
        for source, target, amount in ((a, b, 10), (b, a, 1), (c, d, 1)):
            (await ledger.submit(TransferRequest(source, target, amount))).unwrap()
            assert seen.take() == ["post"]
        assert (await ledger.submit(TransferRequest(a, b, 100))).refusal is Refusal.INSUFFICIENT_FUNDS
        assert seen.take() == ["post"]
    assert await balances_and_held_amounts(stored, a, b) == [(1, 0), (99, 0)]
    await assert_ledger_is_correct(stored)


async def test_refusals_because_of_an_active_hold_are_exact(stored: Database) -> None:
    """Many requests at the same time, some of them in declined batches."""
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
        assert (await balances_and_held_amounts(stored, a))[0] == (1_000 - moved, 700)
        left = 300 - moved
        assert (await ledger.submit(TransferRequest(a, c, left + 1))).refusal is Refusal.INSUFFICIENT_FUNDS
        (await ledger.submit(TransferRequest(a, c, left))).unwrap()
    await assert_ledger_is_correct(stored)


async def test_a_decision_that_was_not_written_does_not_count(stored: Database) -> None:
    """Even if another process has posted entries with the same numbers in the meantime."""
    a, b, c = await open_accounts(stored, 100, 100, 100)
    async with Database(stored.engine.url, lock_timeout=0.3) as impatient, Ledger(impatient) as ledger:
        (await ledger.submit(TransferRequest(a, b, 60, pending_seconds=60))).unwrap()
        (await ledger.submit(TransferRequest(c, b, 1))).unwrap()
        async with stored.begin() as session:
            await transfer_funds(session, b, c, 50)
            with pytest.raises(LockTimeout):
                await ledger.submit_many([TransferRequest(c, b, 10), TransferRequest(a, b, 80)])
        assert (await ledger.submit(TransferRequest(c, b, 149))).refusal is None
    assert await balances_and_held_amounts(stored, a, b, c) == [(100, 60), (200, 0), (0, 0)]


async def test_expired_holds_of_the_largest_amounts_refuse_no_transfer(stored: Database) -> None:
    async with stored.begin() as session:
        await session.execute(text("SELECT 1"))
    a, b = await open_accounts(stored, 0, 0)
    async with stored.begin() as session:
        await session.execute(update(Account).where(Account.id == a).values(allows_negative=True))
    await hold_amounts(stored, a, b, 2**62, 2**62 - 1)
    async with Ledger(stored) as ledger:
        (await ledger.submit(TransferRequest(a, b, 2**62))).unwrap()
    assert await balances_and_held_amounts(stored, a) == [(-(2**62), 0)]


async def test_an_expired_hold_can_be_voided_and_not_posted(stored: Database) -> None:
    """Whether the request itself voids the hold, another transfer has voided it, or it is not voided yet."""
    a, b = await open_accounts(stored, 100, 0)
    first, second, third = await hold_amounts(stored, a, b, 10, 20, 30)
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
    assert await balances_and_held_amounts(stored, a) == [(100, 0)]
    await assert_ledger_is_correct(stored)


async def test_a_hold_that_was_voided_in_time_has_not_expired(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 0)
    [pending] = await hold_amounts(stored, a, b, 10, expired=False)
    async with Ledger(stored) as ledger:
        (await ledger.submit(TransferRequest(a, b, None, voids=pending))).unwrap()
        assert (await ledger.submit(TransferRequest(a, b, None, posts=pending))).refusal is Refusal.ALREADY_VOIDED


async def test_readers_see_an_expired_hold_as_voided(client: httpx.AsyncClient, stored: Database) -> None:
    """Before a transfer or the background job has voided it. `check_ledger` finds no fault in that state."""
    a, b = await make_account(client, 100), await make_account(client)
    late, other = [(await hold(client, a, b, amount)).json() for amount in (60, 5)]
    replay = {"from_account_id": a["id"], "to_account_id": b["id"], "amount": 1, "pending_seconds": 600}
    first = await client.post("/transfers", json=replay, headers={"Idempotency-Key": "k"})
    async with stored.begin() as locking:  # so that the service's maintenance skips the account
        await locking.execute(select(Account.id).where(Account.id == UUID(a["id"])).with_for_update())
        await expire(stored, UUID(late["id"]), UUID(first.json()["id"]))
        assert (await balances_and_held_amounts(stored, UUID(a["id"]))) == [(100, 66)]
        assert await held_amount(client, a) == 5
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
    assert (await balances(client, a, b), await held_amount(client, a)) == ([5, 95], 5)
    await assert_ledger_is_correct(stored)


async def test_expired_holds_are_voided_in_the_callers_session(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 0)
    await hold_amounts(stored, a, b, 60, 20)
    async with stored.begin() as session:
        account = await session.get_one(Account, a)
        before = account.revision
        with pytest.raises(ValueError, match="available balance"):
            await transfer_funds(session, a, b, 101)  # voids the expired holds although it is refused
        assert (account.held, account.revision) == (0, before + 1)
        await transfer_funds(session, a, b, 100)
        assert (account.balance, account.held) == (0, 0)
    assert await balances_and_held_amounts(stored, a, b) == [(0, 0), (100, 0)]
    await assert_ledger_is_correct(stored)


async def test_an_order_can_be_paid_with_the_amount_of_an_expired_hold(
    client: httpx.AsyncClient, stored: Database
) -> None:
    ada, till = await make_account(client, 500), await make_account(client)
    a, b = UUID(ada["id"]), UUID(till["id"])
    order = await make_order(client, (await make_user(client))["id"], 400)
    pending = await hold_amounts(stored, a, b, 300, expired=False)
    async with stored.begin() as session:
        refused = await pay_order(session, UUID(order["id"]), a, b, key="before")
        assert refused.result.refusal is Refusal.INSUFFICIENT_FUNDS
    await expire(stored, *pending)
    async with stored.begin() as session:
        assert (await pay_order(session, UUID(order["id"]), a, b, key="after")).result.refusal is None
    await assert_ledger_is_correct(stored)


async def test_an_account_with_only_expired_holds_can_be_closed(stored: Database) -> None:
    a, b, c = await open_accounts(stored, 0, 0, 100)
    async with stored.begin() as session:
        await session.execute(update(Account).where(Account.id == a).values(overdraft_limit=50))
    pending = await hold_amounts(stored, a, b, 50, expired=False)
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
    assert await balances_and_held_amounts(stored, a) == [(0, 0)]
    await assert_ledger_is_correct(stored)


async def test_maintenance_skips_locked_accounts(stored: Database) -> None:
    a, b, c = await open_accounts(stored, 600, 10, 0)
    await hold_amounts(stored, a, c, *[1] * 550)  # more than one batch of `void_expired`
    await hold_amounts(stored, b, c, 1, 2)
    async with Ledger(stored) as ledger:
        async with stored.begin() as session:
            await session.execute(select(Account.id).where(Account.id == a).with_for_update())
            assert await void_expired(ledger) == 2
        assert await void_expired(ledger) == 550
    assert await balances_and_held_amounts(stored, a, b) == [(600, 0), (10, 0)]


async def test_maintenance_waits_for_a_busy_account(stored: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a wait, the job would find a busy account locked in each run. Here it waits for any time."""
    monkeypatch.setattr(repository, "_LOCK_BRIEFLY", repository.LOCK)
    a, b = await open_accounts(stored, 10, 0)
    await hold_amounts(stored, a, b, 1)
    async with Ledger(stored) as ledger:
        async with stored.begin() as session:
            await session.execute(select(Account.id).where(Account.id == a).with_for_update())
            waiting = asyncio.create_task(void_expired(ledger))
            await until_waiting(stored, 1)
        assert await waiting == 1


async def test_maintenance_skips_an_account_after_it_has_waited_for_others(
    stored: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_waits, "_MAX_WAIT_SECONDS", 0)  # as if it had waited for 1.5 s in all
    a, b, c = await open_accounts(stored, 10, 10, 0)
    await hold_amounts(stored, a, c, 1)
    await hold_amounts(stored, b, c, 1)
    async with Ledger(stored) as ledger:
        async with stored.begin() as session:
            await session.execute(select(Account.id).where(Account.id == a).with_for_update())
            assert await void_expired(ledger) == 1
        assert await void_expired(ledger) == 1


async def test_two_processes_void_an_expired_hold_once(stored: Database) -> None:
    a, b = await open_accounts(stored, 1_000, 1_000)
    pending = await hold_amounts(stored, a, b, *[10] * 90)
    async with Ledger(stored) as one, Ledger(stored) as other:
        results = await asyncio.gather(
            *((one, other)[n % 2].submit(TransferRequest(*((a, b), (b, a))[n % 2], 9)) for n in range(40)),
            *(one.submit(TransferRequest(a, b, None, voids=id_)) for id_ in pending[:5]),
            other.void_expired([a, b]),
            one.void_expired([a, b]),
        )
    assert all(result.refusal is None for result in results[:40] if isinstance(result, TransferResult))
    assert await balances_and_held_amounts(stored, a, b) == [(1_000, 0), (1_000, 0)]
    await assert_ledger_is_correct(stored)


async def test_expired_holds_are_found_by_account_and_time(stored: Database) -> None:
    """Without this index each posting would read all holds of the account, or all expired holds."""
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


async def read_transfer(stored: Database, id_: UUID) -> TransferRecord:
    async with stored.session() as session:
        return await find_transfer(session, id_)


async def test_only_the_expired_hold_is_read_as_voided(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 0)
    late, other = await hold_amounts(stored, a, b, 10, 20, expired=False)
    await expire(stored, late)
    states: list[Any] = [(await read_transfer(stored, id_)).state for id_ in (late, other)]
    assert states == ["voided", "pending"]
