"""`POST /accounts` with an idempotency key, and `open_account_once`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import func, select

from howdah import Database, ForeignKeyViolation
from shop.identity.principals import Role
from shop.ledger.account_schemas import AccountIn, OpeningRefusal
from shop.ledger.accounts import open_account
from shop.ledger.group_commit import Ledger
from shop.ledger.models import Account, AccountPurpose
from shop.ledger.opening import OpeningRequest, OpeningResult, open_account_once
from shop.ledger.repository import TransferRepository
from shop.ledger.requests import Refusal, TransferRequest
from shop.ledger.service import find_replay
from shop_tests.support.factories import change_account, make_account, make_user, post_transfer, transfer
from shop_tests.support.funded_accounts import open_accounts as funded
from shop_tests.support.identity import sign_in
from shop_tests.support.problems import assert_problem
from shop_tests.support.transactions import in_own_transaction
from shop_tests.support.waiting import until_waiting

BODY = {"name": "Current account", "currency": "GBP"}
ACCOUNT = AccountIn(name="Current account", currency="GBP")


async def post(
    client: httpx.AsyncClient, key: str | None, *, principal: Mapping[str, str] | None = None, **values: Any
) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return await client.post("/accounts", json=BODY | values, headers=headers | dict(principal or {}))


async def count_accounts(database: Database) -> int:
    async with database.session() as session:
        return await session.scalar(select(func.count()).select_from(Account)) or 0


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"purpose": "cash_in", "currency": "EUR"},
        {"purpose": "cash_in", "currency": "EUR", "allows_negative": False},
        {
            "overdraft_limit": 50,
            "balance_limit": 10**6,
            "metadata": {"b": "1", "a": "2", "": "3"} | {"region": "north"},
        },
    ],
)
async def test_a_replay_returns_the_first_answer_after_changes_of_the_account(
    client: httpx.AsyncClient, stored: Database, values: dict[str, Any]
) -> None:
    values.get("metadata", {}).pop("", None)
    user = await make_user(client)
    first = await post(client, "k", user_id=user["id"], **values)
    assert first.status_code == 201
    assert "idempotency-replayed" not in first.headers
    account = first.json()
    assert (await client.get(f"/accounts/{account['id']}")).json() == account
    other = await make_account(client, 100, currency=account["currency"])
    await transfer(client, other, account, 5)
    changes = {"name": "Other", "overdraft_limit": 7, "balance_limit": 2**40, "metadata": {"x": "y"}, "state": "frozen"}
    assert (await change_account(client, account, **changes)).status_code == 200

    again = await post(client, "k", user_id=user["id"], **values)

    assert (again.status_code, again.json()) == (201, account)
    assert again.headers["idempotency-replayed"] == "true"
    assert [again.headers[name] for name in ("location", "etag")] == [
        first.headers[name] for name in ("location", "etag")
    ]


async def test_metadata_has_the_same_order_of_names_in_every_response(client: httpx.AsyncClient) -> None:
    """So the response bytes are the same for every order that a client sends."""
    first = await post(client, "k", metadata={"bb": "1", "a": "2"})
    again = await post(client, "k", metadata={"a": "2", "bb": "1"})
    path = f"/accounts/{first.json()['id']}"
    assert first.content == again.content == (await client.get(path)).content
    changed = await change_account(client, first.json(), metadata={"zz": "1", "b": "2"})
    assert changed.content == (await client.get(path)).content


async def test_a_retry_that_is_written_differently_is_a_replay(client: httpx.AsyncClient) -> None:
    first = await post(client, "k", name=" Savings ", metadata={"a": "1", "b": "2"})
    again = await post(client, "k", name="Savings", metadata={"b": "2", "a": "1"}, overdraft_limit=0, user_id=None)
    assert (again.status_code, again.json()) == (201, first.json())


@pytest.mark.parametrize(
    "change",
    [{"name": "Other"}, {"currency": "EUR"}, {"allows_negative": True}, {"purpose": "fees"}, {"metadata": {"a": "b"}}],
)
async def test_a_key_that_is_reused_with_another_body_is_refused(
    client: httpx.AsyncClient, stored: Database, change: dict[str, Any]
) -> None:
    assert (await post(client, "k")).status_code == 201
    assert_problem(await post(client, "k", **change), 422, "key-reused")
    assert await count_accounts(stored) == 1


async def test_keys_belong_to_a_principal_and_each_request_without_a_key_opens_an_account(
    client: httpx.AsyncClient, stored: Database
) -> None:
    answers = [await post(client, *each) for each in (("k",), (None,), (None,))]
    answers += [await post(client, "k", principal=sign_in(Role.OPERATOR)) for _ in range(2)]
    assert len({answer.json()["id"] for answer in answers}) == 5 == await count_accounts(stored)


async def test_transfers_and_accounts_share_the_key_space(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    await transfer(client, a, b, 1, key="transfer")
    assert_problem(await post(client, "transfer"), 422, "key-reused")
    assert (await post(client, "account")).status_code == 201
    assert_problem(await post_transfer(client, a, b, 1, key="account"), 422, "key-reused")
    hold = {"from_account_id": a["id"], "to_account_id": b["id"], "amount": 1, "pending_seconds": 60}
    for path, body in (("/transfers", hold), ("/transfers/linked", {"transfers": [hold, hold]})):
        answer = await client.post(path, json=body, headers={"Idempotency-Key": "account"})
        assert_problem(answer, 422, "key-reused")
    assert (await client.get(f"/accounts/{b['id']}")).json()["balance"] == 1


async def test_the_key_of_an_account_is_refused_for_a_transfer(stored: Database) -> None:
    a, b = await funded(stored, 100, 0)
    request = TransferRequest(a, b, 5, key="k")
    async with stored.begin() as session:
        await open_account_once(session, OpeningRequest(ACCOUNT, "k"))
        answer = await find_replay(session, request)
    assert answer is not None
    assert answer.refusal is Refusal.KEY_REUSED


async def test_a_rejected_account_uses_no_key(client: httpx.AsyncClient) -> None:
    refused = await post(client, "k", user_id=str(uuid4()))
    assert_problem(refused, 409, "foreign-key-violation", constraint="fk_accounts_user_id")
    fees: dict[str, Any] = {"purpose": "fees", "currency": "CHF"}
    assert (await post(client, "fees", **fees)).status_code == 201
    assert_problem(await post(client, "k", name="Fees, too", **fees), 409, "unique-violation")
    opened = await post(client, "k")
    assert (opened.status_code, "idempotency-replayed" in opened.headers) == (201, False)


async def test_an_invalid_or_repeated_key_is_rejected(client: httpx.AsyncClient, stored: Database) -> None:
    for wrong in ("", "a b", "x" * 256):
        answer = await client.post("/accounts", json=BODY, headers=[(b"Idempotency-Key", wrong.encode())])
        assert_problem(answer, 422, "validation")
    twice = await client.post("/accounts", json=BODY, headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "b")])
    assert_problem(twice, 400, "repeated-header")
    assert await count_accounts(stored) == 0


async def test_concurrent_requests_with_one_key_open_one_account(client: httpx.AsyncClient, stored: Database) -> None:
    answers = await asyncio.gather(*(post(client, "k") for _ in range(10)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sorted("idempotency-replayed" in answer.headers for answer in answers) == [False] + [True] * 9
    assert await count_accounts(stored) == 1


async def test_reading_the_keys_before_opening_would_open_two_accounts(stored: Database) -> None:
    """The control test: two sessions read the keys before either has committed."""
    async with stored.session() as first, stored.session() as second:
        for session in (first, second):
            assert await TransferRepository(session).find_answers([("", "k")]) == {}
        for session in (first, second):
            await open_account(session, ACCOUNT)
            await session.commit()
    assert await count_accounts(stored) == 2


@pytest.mark.parametrize("is_committed", [True, False])
async def test_the_second_request_waits_for_the_end_of_the_first(stored: Database, is_committed: bool) -> None:
    async def second() -> OpeningResult:
        async with stored.begin() as session:
            return await open_account_once(session, OpeningRequest(ACCOUNT, "k"))

    async with stored.session() as session:
        first = (await open_account_once(session, OpeningRequest(ACCOUNT, "k"))).unwrap().id
        waiting = in_own_transaction(second())
        await until_waiting(stored, 1)
        await (session.commit() if is_committed else session.rollback())
    result = await waiting
    assert (result.replayed, result.unwrap().id == first) == (is_committed, is_committed)
    assert await count_accounts(stored) == 1


@pytest.mark.parametrize("is_committed", [True, False])
async def test_a_transfer_waits_for_an_account_that_is_being_opened_with_its_key(
    stored: Database, is_committed: bool
) -> None:
    a, b = await funded(stored, 100, 0)
    async with Ledger(stored) as ledger:
        async with stored.session() as session:
            await open_account_once(session, OpeningRequest(ACCOUNT, "k"))
            waiting = in_own_transaction(ledger.submit(TransferRequest(a, b, 5, key="k")))
            await until_waiting(stored, 1)
            await (session.commit() if is_committed else session.rollback())
        assert (await waiting).refusal is (Refusal.KEY_REUSED if is_committed else None)


async def test_a_caller_that_continues_after_a_rejected_account_has_not_used_its_key(stored: Database) -> None:
    stranger = AccountIn(name="Account", currency="GBP", user_id=uuid4())
    async with stored.begin() as session:
        with pytest.raises(ForeignKeyViolation):
            async with session.begin_nested():
                await open_account_once(session, OpeningRequest(stranger, "k"))
        assert not (await open_account_once(session, OpeningRequest(ACCOUNT, "k"))).replayed
        assert (await open_account_once(session, OpeningRequest(stranger, "k"))).refusal is OpeningRefusal.KEY_REUSED
    assert await count_accounts(stored) == 1


async def test_a_purpose_can_be_used_once_per_currency_with_keys(stored: Database) -> None:
    async def opened(number: int) -> OpeningResult:
        account = AccountIn(name="Fees", currency="CHF", purpose=AccountPurpose.FEES)
        async with stored.begin() as session:
            return await open_account_once(session, OpeningRequest(account, f"k{number}"))

    answers = await asyncio.gather(*map(opened, range(5)), return_exceptions=True)
    assert len([answer for answer in answers if isinstance(answer, OpeningResult)]) == 1 == await count_accounts(stored)
