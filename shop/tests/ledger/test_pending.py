"""Pending transfers: holding, posting, voiding and expiry."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import func, select, text

from howdah import Database, DatabaseError
from shop.ledger import maintenance
from shop.ledger.group_commit import Ledger
from shop.ledger.models import Account, PendingTransfer, Transfer, TransferState
from shop.ledger.requests import Refusal, TransferRequest
from shop_tests.support.factories import (
    balances,
    change_account,
    held_amount,
    hold,
    make_account,
    post_transfer,
    settle,
    transfer,
)
from shop_tests.support.funded_accounts import assert_ledger_is_correct, open_accounts
from shop_tests.support.http_service import create_service, http_client
from shop_tests.support.problems import assert_problem
from shop_tests.support.trigger_bypass import disable_triggers, expire
from shop_tests.support.waiting import until


async def test_the_amount_of_a_pending_transfer_is_held_and_not_moved(
    client: httpx.AsyncClient, stored: Database
) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    answer = await hold(client, a, b, 60, description="room 7", metadata={"guest": "Ada"})
    assert answer.status_code == 201
    pending = answer.json()
    assert (pending["state"], pending["amount"], pending["metadata"]) == ("pending", 60, {"guest": "Ada"})
    assert (pending["from_entry_number"], pending["to_entry_number"]) == (None, None)
    assert pending["expires_at"] > pending["created_at"]
    assert (await client.get(answer.headers["location"])).json() == pending
    assert (await balances(client, a, b), await held_amount(client, a)) == ([100, 0], 60)

    assert_problem(await post_transfer(client, a, b, 41), 409, "insufficient-funds")
    assert_problem(await hold(client, a, b, 41), 409, "insufficient-funds")
    assert (await post_transfer(client, a, b, 40)).status_code == 201
    await assert_ledger_is_correct(stored)


@pytest.mark.parametrize("part", [None, 25])
async def test_a_pending_transfer_is_posted_with_its_own_id_completely_or_in_part(
    client: httpx.AsyncClient, stored: Database, part: int | None
) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    pending = (await hold(client, a, b, 60, description="room 7", metadata={"guest": "Ada"})).json()
    body: dict[str, Any] = {} if part is None else {"amount": part}
    answer = await settle(client, pending, "post", **body)
    assert answer.status_code == 201
    posted = answer.json()
    moved = part or 60
    assert (posted["id"], posted["state"], posted["amount"]) == (pending["id"], "posted", moved)
    assert (posted["description"], posted["metadata"], posted["expires_at"]) == ("room 7", {"guest": "Ada"}, None)
    assert (await client.get(f"/transfers/{pending['id']}")).json() == posted
    assert (await balances(client, a, b), await held_amount(client, a)) == ([100 - moved, moved], 0)
    assert_problem(await settle(client, pending, "post"), 409, "already-posted")
    assert_problem(await settle(client, pending, "void"), 409, "already-posted")
    await assert_ledger_is_correct(stored)


async def test_a_pending_transfer_is_voided_once(client: httpx.AsyncClient, stored: Database) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    pending = (await hold(client, a, b, 60)).json()
    answer = await settle(client, pending, "void")
    assert (answer.status_code, answer.json()["state"]) == (201, "voided")
    assert (await client.get(f"/transfers/{pending['id']}")).json() == answer.json()
    assert (await balances(client, a, b), await held_amount(client, a)) == ([100, 0], 0)
    assert_problem(await settle(client, pending, "post"), 409, "already-voided")
    assert_problem(await settle(client, pending, "void"), 409, "already-voided")
    assert_problem(await settle(client, pending, "reverse"), 409, "not-posted")
    plain = await transfer(client, a, b, 1)
    for how in ("post", "void"):
        assert_problem(await settle(client, plain, how), 409, "already-posted")
    another = (await hold(client, a, b, 60)).json()
    assert_problem(await settle(client, another, "void", amount=5), 422, "validation")
    await assert_ledger_is_correct(stored)


async def test_each_step_is_replayed_with_its_first_answer(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    body = {"from_account_id": a["id"], "to_account_id": b["id"], "amount": 60, "pending_seconds": 600}
    first = await client.post("/transfers", json=body, headers={"Idempotency-Key": "hold"})
    posted = await settle(client, first.json(), "post", key="post", amount=20)
    again = await client.post("/transfers", json=body, headers={"Idempotency-Key": "hold"})
    assert (again.content, again.headers["idempotency-replayed"]) == (first.content, "true")
    again = await settle(client, first.json(), "post", key="post", amount=20)
    assert (again.content, again.headers["idempotency-replayed"]) == (posted.content, "true")
    assert_problem(await settle(client, first.json(), "post", key="post", amount=21), 422, "key-reused")
    assert_problem(await settle(client, first.json(), "void", key="post"), 422, "key-reused")

    other = (await hold(client, a, b, 5)).json()
    voided = [await settle(client, other, "void", key="void") for _ in range(2)]
    assert voided[0].content == voided[1].content
    assert await balances(client, a, b) == [80, 20]


async def test_posting_voiding_and_reversing_need_a_key(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    pending = (await hold(client, a, b, 60)).json()
    for what in ("post", "void", "reverse"):
        answer = await client.post(f"/transfers/{pending['id']}/{what}")
        assert_problem(answer, 400, "idempotency-key-missing")


@pytest.mark.parametrize("seconds", [0, -1, 30 * 86_400 + 1, 1.5, "60", True])
async def test_an_invalid_duration_is_rejected(client: httpx.AsyncClient, seconds: Any) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    assert_problem(await hold(client, a, b, 1, pending_seconds=seconds), 422, "validation")


async def test_limits_and_states_are_checked_again_on_posting(client: httpx.AsyncClient) -> None:
    """If posting is refused, the transfer stays pending."""
    a, b = await make_account(client, 100), await make_account(client, balance_limit=50)
    pending = (await hold(client, a, b, 30)).json()
    await transfer(client, a, b, 30)
    assert_problem(await settle(client, pending, "post"), 409, "limit-exceeded")
    await change_account(client, a, state="frozen")
    assert_problem(await settle(client, pending, "post", amount=1), 409, "account-frozen")
    assert await held_amount(client, a) == 30
    assert_problem(await change_account(client, a, state="closed"), 409, "account-unchangeable")
    assert (await settle(client, pending, "void")).json()["state"] == "voided"
    assert await held_amount(client, a) == 0


async def test_one_of_twenty_concurrent_settlements_succeeds(stored: Database) -> None:
    a, b = await open_accounts(stored, 100, 0)
    async with Ledger(stored) as one, Ledger(stored) as other:
        pending = (await one.submit(TransferRequest(a, b, 60, pending_seconds=60))).unwrap()
        requests = [
            TransferRequest(a, b, None, **{("posts", "voids")[n % 2]: pending.id})  # type: ignore[arg-type]
            for n in range(20)
        ]
        results = await asyncio.gather(*((one, other)[n % 3 == 0].submit(each) for n, each in enumerate(requests)))
    settled = [result for result in results if result.refusal is None]
    assert len(settled) == 1
    assert {result.refusal for result in results} - {None} <= {Refusal.ALREADY_POSTED, Refusal.ALREADY_VOIDED}
    await assert_ledger_is_correct(stored)


async def test_the_service_voids_expired_holds(committed_database: Database) -> None:
    url = committed_database.engine.url.render_as_string(hide_password=False)
    async with http_client(create_service(url, maintenance=True)) as client:
        a, b = await make_account(client, 100), await make_account(client)
        late, other = (await hold(client, a, b, 60)).json(), (await hold(client, a, b, 5)).json()
        await expire(committed_database, UUID(late["id"]))

        async def is_voided() -> bool:  # reads the table: over HTTP an expired hold is voided at once
            async with committed_database.session() as session:
                return (await session.get_one(PendingTransfer, UUID(late["id"]))).state is TransferState.VOIDED

        await until(is_voided)
        assert (await client.get(f"/transfers/{late['id']}")).json()["state"] == "voided"
        assert await held_amount(client, a) == 5
        assert (await client.get(f"/transfers/{other['id']}")).json()["state"] == "pending"
        assert (await post_transfer(client, a, b, 95)).status_code == 201


async def test_several_processes_can_void_expired_holds(committed_database: Database) -> None:
    # a database without a service, whose job could void the holds first
    a, b = await open_accounts(committed_database, 10_000, 0)
    async with Ledger(committed_database) as ledger, Ledger(committed_database) as other:
        results = await ledger.submit_many([TransferRequest(a, b, 1, pending_seconds=60) for _ in range(1_100)])
        await expire(committed_database, *(result.unwrap().id for result in results[:-1]))
        voided = await asyncio.gather(*(maintenance.void_expired(each) for each in (ledger, other)))
        assert sum(voided) == 1_099
        assert await maintenance.void_expired(ledger) == 0
    async with committed_database.session() as session:
        assert (await session.get_one(Account, a)).held == 1
    await assert_ledger_is_correct(committed_database)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE pending_transfers SET state = 'pending', settled_at = NULL WHERE id = :posted",
        "UPDATE pending_transfers SET state = 'voided' WHERE id = :posted",
        "UPDATE pending_transfers SET amount = 1 WHERE id = :pending",
        "UPDATE pending_transfers SET state = 'voided', settled_at = now(), amount = 1 WHERE id = :pending",
        "DELETE FROM pending_transfers WHERE id = :pending",
        "TRUNCATE pending_transfers CASCADE",
        "UPDATE pending_transfers SET state = 'posted' WHERE id = :pending",
    ],
)
async def test_the_database_rejects_every_change_but_one_settlement(stored: Database, change: str) -> None:
    a, b = await open_accounts(stored, 100, 0)
    async with Ledger(stored) as ledger:
        posted, pending = [
            result.unwrap().id
            for result in await ledger.submit_many([TransferRequest(a, b, 5, pending_seconds=60)] * 2)
        ]
        await ledger.submit(TransferRequest(a, b, None, posts=posted))
    async with stored.session() as session:
        ids = {name: id_ for name, id_ in (("posted", posted), ("pending", pending)) if f":{name}" in change}
        with pytest.raises(DatabaseError):
            await session.execute(text(change), ids)


async def test_old_keys_are_deleted_and_newer_ones_are_replayed(client: httpx.AsyncClient, stored: Database) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    before = await transfer(client, a, b, 1, key="old")
    async with stored.begin() as session:
        await disable_triggers(session)
        await session.execute(
            text("UPDATE idempotency_keys SET created_at = now() - interval '31 days' WHERE key = 'old'")
        )
    new = await transfer(client, a, b, 1, key="new")
    assert (await transfer(client, a, b, 1, key="old"))["id"] == before["id"]  # until it is deleted, it is replayed

    assert await maintenance.delete_old_keys(stored, timedelta(days=30)) == 1

    assert (await transfer(client, a, b, 1, key="new"))["id"] == new["id"]
    assert (await transfer(client, a, b, 1, key="old"))["id"] != before["id"]
    async with stored.session() as session:
        assert await session.scalar(select(func.count()).select_from(Transfer)) == 4
