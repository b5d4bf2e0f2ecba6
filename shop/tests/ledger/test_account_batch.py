"""`POST /accounts/batch`, and `open_accounts`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import event, func, select

from howdah import Database
from howdah.fastapi import MAX_LINE_BYTES
from howdah.fastapi.line_results import BATCH_LINES
from shop.identity.principals import Role
from shop.ledger.account_schemas import AccountIn, AccountLineOut, OpeningRefusal
from shop.ledger.models import Account, AccountPurpose, IdempotencyKey
from shop.ledger.opening import OpeningRefused, OpeningRequest, OpeningResult, open_accounts
from shop.users.models import User
from shop_tests.support.factories import change_account, make_account, make_user, post_transfer, transfer
from shop_tests.support.identity import sign_in
from shop_tests.support.problems import assert_problem
from shop_tests.support.transactions import in_own_transaction
from shop_tests.support.waiting import until_waiting

NDJSON = {"Content-Type": "application/x-ndjson"}


def line(key: str, **values: Any) -> str:
    return json.dumps({"name": "Current account", "currency": "GBP", "idempotency_key": key} | values)


async def batch(client: httpx.AsyncClient, *lines: str, **headers: str) -> list[dict[str, Any]]:
    response = await client.post("/accounts/batch", content="\n".join(lines).encode(), headers=NDJSON | headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    answers = [json.loads(answer) for answer in response.content.splitlines()]
    assert [AccountLineOut.model_validate_json(json.dumps(answer | {"account": None})).line for answer in answers] == [
        answer["line"] for answer in answers
    ]
    return answers


async def count(database: Database, model: type[Any]) -> int:
    async with database.session() as session:
        return await session.scalar(select(func.count()).select_from(model)) or 0


async def test_each_line_is_answered_in_order_with_its_account(client: httpx.AsyncClient, stored: Database) -> None:
    user = await make_user(client)
    answers = await batch(
        client,
        line("k1", user_id=user["id"], metadata={"region": "north"}, overdraft_limit=5),
        line("k2", purpose="cash_in", currency="EUR"),
        line("k3", user_id=str(uuid4())),
        line("k4", purpose="cash_in", currency="EUR"),
        line("k5", name=" Savings "),
    )
    assert [(answer["line"], answer["outcome"], answer["refusal"]) for answer in answers] == [
        (1, "opened", None),
        (2, "opened", None),
        (3, "refused", "unknown_user"),
        (4, "refused", "purpose_taken"),
        (5, "opened", None),
    ]
    assert [answer["account"] for answer in answers if answer["outcome"] == "refused"] == [None, None]
    assert [answer["detail"] for answer in answers] == [
        None,
        None,
        "user_id: the user doesn't exist",
        "purpose: there is already an account with this purpose and currency",
        None,
    ]
    for answer in answers:
        if answer["outcome"] == "opened":
            assert (await client.get(f"/accounts/{answer['account']['id']}")).json() == answer["account"]
    assert answers[1]["account"]["allows_negative"]
    assert (await count(stored, Account), await count(stored, IdempotencyKey)) == (3, 3)


async def test_a_batch_that_is_sent_again_is_replayed(client: httpx.AsyncClient, stored: Database) -> None:
    lines = [line(f"k{number}", metadata={"n": str(number)}) for number in range(30)]
    lines[7] = line("k7", user_id=str(uuid4()))
    lines[9] = line("k9", purpose="fees")
    first = await batch(client, *lines)
    accounts = [answer["account"] for answer in first if answer["outcome"] == "opened"]
    world = await make_account(client, allows_negative=True)
    await transfer(client, world, accounts[0], 5)
    assert (await change_account(client, accounts[0], name="Other", metadata={})).status_code == 200

    again = await batch(client, *lines)

    assert again == [answer | {"replayed": answer["outcome"] == "opened"} for answer in first]
    assert (await count(stored, Account), await count(stored, IdempotencyKey)) == (30, 29 + 1)


async def test_keys_are_shared_with_single_accounts_and_transfers(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    await transfer(client, a, b, 1, key="transfer")
    body = {"name": "Current account", "currency": "GBP"}
    single = await client.post("/accounts", json=body, headers={"Idempotency-Key": "single"})
    answers = await batch(client, line("transfer"), line("single"), line("single", name="Other"), line("batch"))
    assert [(answer["refusal"], answer["replayed"]) for answer in answers] == [
        ("key_reused", False),
        (None, True),
        ("key_reused", False),
        (None, False),
    ]
    assert answers[1]["account"] == single.json()
    again = await client.post("/accounts", json=body, headers={"Idempotency-Key": "batch"})
    assert (again.json(), again.headers["idempotency-replayed"]) == (answers[3]["account"], "true")
    assert_problem(await post_transfer(client, a, b, 1, key="batch"), 422, "key-reused")
    [in_own_transaction] = await batch(client, line("batch"), **sign_in(Role.OPERATOR))
    assert not in_own_transaction["replayed"]


async def test_a_key_used_twice_in_a_batch_opens_one_account(client: httpx.AsyncClient, stored: Database) -> None:
    stranger = str(uuid4())
    answers = await batch(
        client,
        *(line("k1"), line("k1"), line("k1", name="Other")),
        *(line("k2", user_id=stranger), line("k2", user_id=stranger), line("k2"), line("k2", name="Other"), line("k2")),
    )
    assert [(answer["refusal"], answer["replayed"]) for answer in answers] == [
        (None, False),
        (None, True),
        ("key_reused", False),
        ("unknown_user", False),
        ("unknown_user", False),
        (None, False),
        ("key_reused", False),
        (None, True),
    ]
    assert answers[0]["account"] == answers[1]["account"]
    assert await count(stored, Account) == 2


@pytest.mark.parametrize(
    "bad",
    [
        "nonsense",
        "{}",
        "[]",
        "1",
        "[" * 10_000,
        "x" * (MAX_LINE_BYTES + 1),
        line("k", currency="gbp"),
        line("k", balance=1),
        line("k", user_id="1"),
        line(""),
        line("a b"),
        json.dumps({"name": "No key", "currency": "GBP"}),
    ],
)
async def test_an_invalid_line_is_reported_and_the_other_lines_are_opened(
    client: httpx.AsyncClient, stored: Database, bad: str
) -> None:
    answers = await batch(client, line("k1"), "", bad, line("k2"))
    assert [(answer["line"], answer["outcome"]) for answer in answers] == [(1, "opened"), (3, "invalid"), (4, "opened")]
    assert 0 < len(answers[1]["detail"]) < 200
    assert await count(stored, Account) == 2


async def test_an_empty_batch_has_an_empty_response_and_another_media_type_is_rejected(
    client: httpx.AsyncClient,
) -> None:
    assert await batch(client, "") == []
    assert [answer["outcome"] for answer in await batch(client, "x")] == ["invalid"]
    response = await client.post("/accounts/batch", content=b"{}", headers={"Content-Type": "application/json"})
    assert_problem(response, 415, "unsupported-media-type")


async def test_a_long_batch_is_answered_completely(client: httpx.AsyncClient, stored: Database) -> None:
    """More lines than one transaction posts, and more bytes than the socket buffers hold, in both directions."""
    amount = 2 * BATCH_LINES + 100
    lines = [line(f"k{number}", metadata={"essay": "é" * 500}) for number in range(amount)]
    lines[700] = "nonsense"
    answers = await batch(client, *lines)
    assert [answer["line"] for answer in answers] == list(range(1, amount + 1))
    assert [number for number, answer in enumerate(answers) if answer["outcome"] != "opened"] == [700]
    assert await count(stored, Account) == amount - 1


async def test_concurrent_batches_in_opposite_orders_open_each_account_once_without_a_deadlock(
    stored: Database,
) -> None:
    """Each call is one transaction, which is not retried after a deadlock."""
    requests = requests_for(200) + [
        OpeningRequest(AccountIn(name="Account", currency=currency, purpose=purpose), f"{key}-{purpose}-{currency}")
        for key in ("one", "two")
        for purpose in AccountPurpose
        for currency in ("EUR", "CHF", "USD")
    ]

    async def open_all(is_reversed: bool) -> list[OpeningResult]:
        async with stored.begin() as session:
            return await open_accounts(session, requests[::-1] if is_reversed else requests)

    results = await asyncio.gather(*(open_all(number % 2 == 0) for number in range(8)))
    ids = [{result.unwrap().id for result in each if result.refusal is None} for each in results]
    assert len({frozenset(each) for each in ids}) == 1
    assert len(ids[0]) == 209 == await count(stored, Account)
    assert [result.refusal for each in results for result in each if result.refusal] == ["purpose_taken"] * 9 * 8
    assert sum(result.account is not None and not result.replayed for each in results for result in each) == 209


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    sent: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        sent.append(statement)

    event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    yield sent
    event.remove(database.engine.sync_engine, "before_cursor_execute", note)


def requests_for(amount: int, **values: Any) -> list[OpeningRequest]:
    return [OpeningRequest(AccountIn(name=f"Account {n}", currency="GBP", **values), f"k{n}") for n in range(amount)]


async def test_the_number_of_statements_does_not_grow_with_the_number_of_accounts(stored: Database) -> None:
    sent: list[int] = []
    for amount in (100, 400):
        async with stored.begin() as session:
            user = User(email=f"{amount}@example.com", name="Ada")
            session.add(user)
            await session.flush()
            with statements(stored) as noted:
                await open_accounts(session, requests_for(amount, user_id=user.id))
            await session.rollback()
        sent.append(len(noted))
    assert sent[0] == sent[1] < 10


async def test_open_accounts_returns_a_result_for_each_request_with_or_without_a_key(stored: Database) -> None:
    fees = AccountIn(name="Fees", currency="CHF", purpose=AccountPurpose.FEES)
    async with stored.begin() as session:
        assert await open_accounts(session, []) == []
        results = await open_accounts(
            session,
            [OpeningRequest(fees), OpeningRequest(fees), *[OpeningRequest(AccountIn(name="A", currency="GBP"))] * 2],
        )
    assert [result.refusal for result in results] == [None, OpeningRefusal.PURPOSE_TAKEN, None, None]
    assert len({result.unwrap().id for result in results if result.refusal is None}) == 3
    with pytest.raises(OpeningRefused, match="already an account with this purpose and currency"):
        results[1].unwrap()


async def test_an_account_of_a_user_who_is_being_deleted_waits_and_is_refused(
    client: httpx.AsyncClient, stored: Database
) -> None:
    user = await make_user(client)

    async def open_all() -> list[OpeningResult]:
        async with stored.begin() as session:
            return await open_accounts(session, requests_for(30, user_id=user["id"]))

    async with stored.session() as session:
        await session.delete(await session.get_one(User, user["id"]))
        await session.flush()
        waiting = in_own_transaction(open_all())
        await until_waiting(stored, 1)
        await session.commit()
    assert {result.refusal for result in await waiting} == {OpeningRefusal.UNKNOWN_USER}
    assert await count(stored, IdempotencyKey) == 0
