"""System accounts, lists of accounts, and balances at a time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
from sqlalchemy import text

from howdah import Database
from shop.identity.principals import Role
from shop.ledger.account_queries import AccountRepository
from shop.ledger.accounts import get_or_open_system_account, read_balance_at
from shop.ledger.group_commit import Ledger
from shop.ledger.models import AccountPurpose
from shop.ledger.requests import TransferRequest
from shop_tests.support.factories import change_account, make_account, make_user, post_transfer, transfer, walk
from shop_tests.support.funded_accounts import open_accounts
from shop_tests.support.identity import sign_in
from shop_tests.support.problems import assert_problem


async def test_there_is_one_account_per_purpose_and_currency(client: httpx.AsyncClient, stored: Database) -> None:
    values: dict[str, Any] = {"purpose": "fees", "currency": "CHF"}
    fees = await make_account(client, **values)
    again = await client.post("/accounts", json={"name": "Fees, too"} | values)
    assert_problem(again, 409, "unique-violation", constraint="uq_accounts_purpose_currency")
    assert (await client.get("/accounts", params=values)).json()["items"] == [fees]

    async def system_account_id(purpose: AccountPurpose) -> UUID:
        async with stored.begin() as session:
            return (await get_or_open_system_account(session, purpose, "CHF")).id

    assert str(await system_account_id(AccountPurpose.FEES)) == fees["id"]
    assert len(set(await asyncio.gather(*(system_account_id(AccountPurpose.CASH_IN) for _ in range(8))))) == 1
    cash_in = (await client.get("/accounts", params={"purpose": "cash_in", "currency": "CHF"})).json()["items"][0]
    assert (cash_in["name"], cash_in["allows_negative"]) == ("Cash in", True)
    await transfer(client, cash_in, await make_account(client, currency="CHF"), 500)
    assert (await make_account(client, purpose="cash_out", currency="CHF"))["allows_negative"]
    assert not fees["allows_negative"]
    closing = await change_account(client, fees, state="closed")
    assert_problem(closing, 409, "account-unchangeable")


async def test_accounts_are_listed_by_owner_and_currency(client: httpx.AsyncClient) -> None:
    user = await make_user(client)
    pounds = [await make_account(client, user_id=user["id"]) for _ in range(3)]
    euros = await make_account(client, user_id=user["id"], currency="EUR")
    await make_account(client)
    assert await walk(client, "/accounts", user_id=user["id"], limit=2) == [pounds[:2], [pounds[2], euros]]
    assert await walk(client, "/accounts", user_id=user["id"], currency="EUR") == [[euros]]
    for wrong in ({"purpose": "theft"}, {"currency": "pounds"}, {"owner": "1"}):
        assert_problem(await client.get("/accounts", params=wrong), 422, "validation")


async def test_the_balance_is_returned_after_each_entry_and_at_each_time(
    client: httpx.AsyncClient, stored: Database
) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    moved = [await transfer(client, a, b, amount) for amount in (1, 2, 3, 4)]
    path = f"/accounts/{b['id']}/balance"

    async def balance(**parameters: object) -> tuple[int, int | None]:
        found = (await client.get(path, params=parameters)).json()  # type: ignore[arg-type]
        return found["balance"], found["entry_number"]

    assert await balance() == (10, 4)
    assert [await balance(entry_number=n) for n in range(5)] == [(0, 0), (1, 1), (3, 2), (6, 3), (10, 4)]
    assert [await balance(at=each["created_at"]) for each in moved] == [(1, 1), (3, 2), (6, 3), (10, 4)]
    before = (datetime.fromisoformat(moved[0]["created_at"]) - timedelta(microseconds=1)).isoformat()
    assert await balance(at=before) == (0, 0)
    for entry_number, status, code in ((5, 404, "not-found"), (-1, 422, "validation"), ("x", 422, "validation")):
        assert_problem(await client.get(path, params={"entry_number": entry_number}), status, code)
    assert_problem(await client.get(path, params={"entry_number": 1, "at": before}), 422, "validation")
    for parameters in ({}, {"entry_number": 0}, {"entry_number": 1}, {"at": before}, {"effective_at": before}):
        assert_problem(await client.get(f"/accounts/{uuid4()}/balance", params=parameters), 404, "not-found")


async def test_a_transfer_with_another_effective_date_is_posted_now(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    start = datetime.now(UTC)

    async def post_dated(amount: int, days: int) -> None:
        body = {
            "from_account_id": a["id"],
            "to_account_id": b["id"],
            "amount": amount,
            "effective_at": (start + timedelta(days=days)).isoformat(),
        }
        posted = (await client.post("/transfers", json=body, headers={"Idempotency-Key": str(uuid4())})).json()
        assert datetime.fromisoformat(posted["effective_at"]) == start + timedelta(days=days)
        assert datetime.fromisoformat(posted["created_at"]) < start + timedelta(hours=1)

    for amount, days in ((1, -10), (2, 10), (4, -5)):
        await post_dated(amount, days)
    path = f"/accounts/{b['id']}/balance"

    async def effective(days: int) -> int:
        at = (start + timedelta(days=days)).isoformat()
        found: int = (await client.get(path, params={"effective_at": at})).json()["balance"]
        return found

    assert [await effective(days) for days in (-11, -10, -6, -5, 0, 9, 10)] == [0, 1, 1, 5, 5, 5, 7]
    assert (await client.get(path, params={"at": start.isoformat()})).json()["balance"] == 0
    naive = {"from_account_id": a["id"], "to_account_id": b["id"], "amount": 1, "effective_at": "2026-01-01T00:00:00"}
    answer = await client.post("/transfers", json=naive, headers={"Idempotency-Key": "k"})
    assert_problem(answer, 422, "validation")


async def test_the_balance_at_a_time_is_found_by_binary_search(stored: Database) -> None:
    a, b = await open_accounts(stored, 5_000, 0)
    async with Ledger(stored) as ledger:
        results = [await ledger.submit(TransferRequest(a, b, 1)) for _ in range(40)]
        results += await ledger.submit_many([TransferRequest(a, b, 1)] * 1_000)  # all with the same time
    async with stored.session() as session:
        for number in (0, 17, 39):
            assert await read_balance_at(session, b, results[number].unwrap().created_at) == (number + 1, number + 1)
        assert await read_balance_at(session, b, results[40].unwrap().created_at) == (1_040, 1_040)
        await session.execute(text("SET LOCAL enable_seqscan = off"))
        before = await session.scalar(
            text("SELECT idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'entries'")
        )
        await AccountRepository(session).find_last_entry_number(b, results[39].unwrap().created_at)
        after = await session.scalar(
            text("SELECT idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'entries'")
        )
        assert (after or 0) - (before or 0) <= 11  # of 1,040


async def test_each_principal_has_its_own_keys(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    for headers in ({}, sign_in(Role.OPERATOR), sign_in(Role.OPERATOR)):
        body = {"from_account_id": a["id"], "to_account_id": b["id"], "amount": 1}
        answers = [
            await client.post("/transfers", json=body, headers={"Idempotency-Key": "k", **headers}) for _ in range(2)
        ]
        assert ["idempotency-replayed" in answer.headers for answer in answers] == [False, True]
        lines = '{{"from_account_id":"{}","to_account_id":"{}","amount":1,"idempotency_key":"k"}}'.format(
            a["id"], b["id"]
        )
        batch = await client.post(
            "/transfers/batch", content=lines, headers={"Content-Type": "application/x-ndjson", **headers}
        )
        assert batch.json()["replayed"]
        assert_problem(await post_transfer(client, a, b, 2, key="k"), 422, "key-reused")
    assert (await client.get(f"/accounts/{b['id']}")).json()["balance"] == 3
