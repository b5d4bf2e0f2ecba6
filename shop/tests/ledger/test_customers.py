"""What a customer may read and move over HTTP. The account or transfer of another user looks like one that doesn't
exist."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import insert

from howdah import Database
from shop.identity.principals import Role
from shop.ledger.account_schemas import AccountIn
from shop.ledger.accounts import open_account
from shop.ledger.requests import TransferRequest
from shop.ledger.service import post_transfers
from shop.users.models import User
from shop_tests.support.factories import (
    balances,
    change_account,
    create,
    hold,
    post_transfer,
    settle,
    transfer,
    walk,
    walk_back,
)
from shop_tests.support.funded_accounts import assert_ledger_is_correct
from shop_tests.support.http_service import client_of
from shop_tests.support.identity import sign_in
from shop_tests.support.openapi import assert_matches_openapi
from shop_tests.support.problems import assert_problem

Row = dict[str, Any]


@dataclass(frozen=True)
class Bank:
    """Ada and Bob, their clients and accounts, and transfers between Bob and Carl, which are foreign to Ada."""

    admin: httpx.AsyncClient
    ada: httpx.AsyncClient
    bob: httpx.AsyncClient
    ada_id: str
    bob_id: str
    savings: Row
    """Ada's second account, which is empty. `account` has 100."""
    account: Row
    bobs: Row
    """Bob's account, which has 100."""
    foreign_transfer: Row
    foreign_hold: Row


@pytest.fixture
async def bank(client: httpx.AsyncClient, service: str, stored: Database) -> AsyncIterator[Bank]:
    ada, bob, carl = uuid4(), uuid4(), uuid4()
    async with stored.begin() as session:
        await session.execute(
            insert(User), [{"id": id_, "email": f"{id_}@example.com", "name": "Ada"} for id_ in (ada, bob, carl)]
        )
        world, savings, account, bobs, carls = [
            (
                await open_account(
                    session, AccountIn(name="Account", currency="GBP", user_id=user_id, allows_negative=user_id is None)
                )
            ).id
            for user_id in (None, ada, ada, bob, carl)
        ]
        deposits = [TransferRequest(world, each, 100) for each in (account, bobs, carls)]
        foreign = [TransferRequest(carls, bobs, 5), TransferRequest(carls, bobs, 5, pending_seconds=600)]
        foreign_transfer, foreign_hold = (await post_transfers(session, [*deposits, *foreign]))[-2:]
    hooks = {"response": [assert_matches_openapi]}
    async with (
        client_of(service, principal=sign_in(Role.CUSTOMER, ada), event_hooks=hooks) as ada_client,
        client_of(service, principal=sign_in(Role.CUSTOMER, bob), event_hooks=hooks) as bob_client,
    ):
        yield Bank(
            admin=client,
            ada=ada_client,
            bob=bob_client,
            ada_id=str(ada),
            bob_id=str(bob),
            savings={"id": str(savings)},
            account={"id": str(account)},
            bobs={"id": str(bobs)},
            foreign_transfer={"id": str(foreign_transfer.unwrap().id)},
            foreign_hold={"id": str(foreign_hold.unwrap().id)},
        )
        await assert_ledger_is_correct(stored)


async def send_lines(client: httpx.AsyncClient, path: str, *lines: Row) -> list[Row]:
    """The lines of the response, without their numbers."""
    body = "\n".join(json.dumps(line | {"idempotency_key": str(uuid4())}) for line in lines)
    response = await client.post(path, content=body, headers={"Content-Type": "application/x-ndjson"})
    assert response.status_code == 200, response.text
    results = [json.loads(line) for line in response.text.splitlines()]
    for result in results:
        del result["line"]
    return results


async def send_to_account(client: httpx.AsyncClient, own: Row, id_: str) -> list[httpx.Response]:
    """The responses of every route that names the account `id_`. `own` is another account of the client."""
    path = f"/accounts/{id_}"
    body = {"from_account_id": id_, "to_account_id": own["id"], "amount": 1}
    chain = [{"from_account_id": own["id"], "to_account_id": id_, "amount": 1}, body]
    keys = [{"Idempotency-Key": str(uuid4())} for _ in range(3)]
    return [
        await client.get(path),
        await client.patch(path, json={"name": "Mine"}, headers={"If-Match": '"9-0"'}),
        await client.patch(path, json={"state": "frozen"}, headers={"If-Match": "*"}),
        await client.get(f"{path}/balance"),
        await client.get(f"{path}/balance", params={"entry_number": 1}),
        await client.get(f"{path}/balance", params={"at": "2026-01-01T00:00:00Z"}),
        await client.get(f"{path}/balance", params={"effective_at": "2026-01-01T00:00:00Z"}),
        await client.get(f"{path}/entries"),
        await client.get(f"{path}/entries", params={"created_from": "2026-01-01T00:00:00Z"}),
        await client.get("/transfers", params={"account_id": id_}),
        await client.get("/transfers", params={"from_account_id": id_, "state": "pending"}),
        await client.get("/transfers", params={"to_account_id": id_, "created_from": "2026-01-01T00:00:00Z"}),
        await client.post("/transfers", json=body, headers=keys[0]),
        await client.post("/transfers", json=body, headers=keys[0]),  # a replay
        await client.post("/transfers", json=body | {"pending_seconds": 60}, headers=keys[1]),
        await client.post("/transfers/linked", json={"transfers": [body, *chain]}, headers=keys[2]),
    ]


async def send_to_transfer(client: httpx.AsyncClient, id_: str) -> list[httpx.Response]:
    """The responses of every route that names the transfer `id_`."""
    path = f"/transfers/{id_}"
    named = [{name: id_} for name in ("posts", "voids", "reverses")]
    return [
        await client.get(path),
        *[await settle(client, {"id": id_}, how) for how in ("post", "void", "reverse")],
        await settle(client, {"id": id_}, "reverse", amount=1),
        await client.get("/transfers", params={"reverses_id": id_}),
        *[
            await client.post(
                "/transfers/linked", json={"transfers": [each, each]}, headers={"Idempotency-Key": str(uuid4())}
            )
            for each in named
        ],
    ]


def describe(responses: list[httpx.Response], id_: str) -> list[tuple[int, set[str], str]]:
    """The status, header names and body of each response, without the id."""
    return [(each.status_code, {*each.headers}, each.text.replace(id_, "ID")) for each in responses]


async def test_a_foreign_account_looks_like_a_missing_one(bank: Bank) -> None:
    missing = str(uuid4())
    foreign = await send_to_account(bank.ada, bank.account, bank.bobs["id"])
    assert describe(foreign, bank.bobs["id"]) == describe(
        await send_to_account(bank.ada, bank.account, missing), missing
    )
    assert {each.status_code for each in foreign} == {404, 200, 422}
    assert [each.json()["items"] for each in foreign if each.status_code == 200] == [[]] * 3
    own = await send_to_account(bank.ada, bank.savings, bank.account["id"])
    assert [each.status_code for each in own] == [200, 412, 403, *[200] * 9, *[201] * 4]
    assert await balances(bank.admin, bank.bobs) == [105]


async def test_a_foreign_transfer_looks_like_a_missing_one(bank: Bank) -> None:
    missing = str(uuid4())
    expected = describe(await send_to_transfer(bank.ada, missing), missing)
    for each in (bank.foreign_transfer, bank.foreign_hold):
        found = await send_to_transfer(bank.ada, each["id"])
        assert describe(found, each["id"]) == expected
        assert {response.status_code for response in found} == {404, 200}
    # the payee of the same transfers is not refused as if they were missing
    assert 404 not in {each.status_code for each in await send_to_transfer(bank.bob, bank.foreign_hold["id"])}


async def test_foreign_lines_of_a_batch_are_refused_like_unknown_ones_and_the_others_are_posted(bank: Bank) -> None:
    def lines_of(account_id: str, transfer_id: str, hold_id: str) -> list[Row]:
        own = {"from_account_id": bank.account["id"], "to_account_id": bank.savings["id"], "amount": 1}
        return [
            own,
            own | {"from_account_id": account_id},
            {"posts": hold_id},
            {"voids": hold_id},
            {"reverses": transfer_id},
            own | {"linked": True},
            own | {"from_account_id": account_id},
            own,
        ]

    foreign = bank.bobs["id"], bank.foreign_transfer["id"], bank.foreign_hold["id"]
    missing = str(uuid4()), str(uuid4()), str(uuid4())
    answers = [await send_lines(bank.ada, "/transfers/batch", *lines_of(*ids)) for ids in (foreign, missing)]
    for lines, ids in zip(answers, (foreign, missing), strict=True):
        refused = ["refused", *["invalid"] * 3, "refused", "refused"]
        assert [line["outcome"] for line in lines] == ["posted", *refused, "posted"]
        for line in lines:
            for id_ in ids:
                line["detail"] = line["detail"] and line["detail"].replace(id_, "ID")
    assert answers[0][1:-1] == answers[1][1:-1]
    assert await balances(bank.admin, bank.account, bank.savings, bank.bobs) == [96, 4, 105]


def sides(row: Row) -> tuple[Any, ...]:
    return row["from_balance"], row["from_entry_number"], row["to_balance"], row["to_entry_number"]


async def test_a_customer_sees_only_their_own_side_of_a_transfer(bank: Bank) -> None:
    body = {"from_account_id": bank.account["id"], "to_account_id": bank.bobs["id"], "amount": 10}
    headers = {"Idempotency-Key": "k"}
    posted, replayed = [await bank.ada.post("/transfers", json=body, headers=headers) for _ in range(2)]
    assert (posted.status_code, replayed.content) == (201, posted.content)
    own, bobs_side, both = (90, 2, None, None), (None, None, 115, 3), (90, 2, 115, 3)
    assert sides(posted.json()) == own
    path = f"/transfers/{posted.json()['id']}"
    for client, expected in ((bank.ada, own), (bank.bob, bobs_side), (bank.admin, both)):
        assert sides((await client.get(path)).json()) == expected
        listed = (await client.get("/transfers", params={"from_account_id": bank.account["id"]})).json()["items"]
        assert [sides(each) for each in listed] == ([expected] if client is not bank.bob else [])
    listed = (await bank.bob.get("/transfers", params={"account_id": bank.bobs["id"], "order": "newest"})).json()
    assert sides(listed["items"][0]) == bobs_side

    [line, _] = await send_lines(bank.ada, "/transfers/batch", body, body)
    assert sides(line["transfer"]) == (80, 3, None, None)
    to_savings = body | {"to_account_id": bank.savings["id"]}
    linked = await bank.ada.post(
        "/transfers/linked", json={"transfers": [body, to_savings]}, headers={"Idempotency-Key": "l"}
    )
    assert [sides(each) for each in linked.json()["transfers"]] == [(60, 5, None, None), (50, 6, 10, 1)]
    held = (await hold(bank.ada, bank.account, bank.bobs, 5)).json()
    assert sides((await settle(bank.bob, held, "post")).json()) == (None, None, 150, 7)
    assert sides((await settle(bank.bob, held, "reverse")).json()) == (145, 8, None, None)
    # The stored answer has both sides. The role of the present request decides.
    promoted = await bank.admin.post("/transfers", json=body, headers=headers | sign_in(Role.ADMIN, bank.ada_id))
    assert (promoted.headers["idempotency-replayed"], sides(promoted.json())) == ("true", both)


async def test_a_hold_is_posted_and_voided_by_the_payee(bank: Bank) -> None:
    held = (await hold(bank.ada, bank.account, bank.bobs, 30)).json()
    for how in ("post", "void"):
        assert_problem(await settle(bank.ada, held, how), 409, "not-payee")
    assert [line["refusal"] for line in await send_lines(bank.ada, "/transfers/batch", {"voids": held["id"]})] == [
        "not_payee"
    ]
    assert (await settle(bank.bob, held, "post", amount=20)).status_code == 201
    assert_problem(await settle(bank.ada, held, "reverse"), 409, "not-payee")
    assert (await settle(bank.bob, held, "reverse", amount=5)).status_code == 201
    assert await balances(bank.admin, bank.account, bank.bobs) == [85, 120]
    voided = (await hold(bank.ada, bank.account, bank.bobs, 30)).json()
    assert (await settle(bank.bob, voided, "void")).json()["state"] == "voided"
    by_admin = (await hold(bank.ada, bank.account, bank.bobs, 30)).json()
    assert (await settle(bank.admin, by_admin, "void")).json()["state"] == "voided"
    own = (await hold(bank.ada, bank.account, bank.savings, 30)).json()
    assert (await settle(bank.ada, own, "post")).json()["state"] == "posted"


async def test_a_refusal_does_not_say_what_is_wrong_with_the_other_account(bank: Bank) -> None:
    answers: list[str] = []
    held = (await hold(bank.ada, bank.account, bank.bobs, 1)).json()
    for changes in ({"balance_limit": 105}, {"balance_limit": None, "state": "frozen"}):
        assert (await change_account(bank.admin, bank.bobs, **changes)).status_code == 200
        refused = await post_transfer(bank.ada, bank.account, bank.bobs, 1, key=(key := str(uuid4())))
        assert_problem(refused, 409, "counterparty-unavailable")
        answers.append(refused.text)
        replayed = await post_transfer(bank.ada, bank.account, bank.bobs, 1, key=key)
        assert (replayed.text, replayed.headers["idempotency-replayed"]) == (refused.text, "true")
    assert answers[0] == answers[1]
    assert_problem(await settle(bank.bob, held, "post"), 409, "account-frozen")  # the payee's own account
    assert_problem(await post_transfer(bank.admin, bank.account, bank.bobs, 1), 409, "account-frozen")
    assert_problem(await post_transfer(bank.ada, bank.account, bank.bobs, 1_000), 409, "insufficient-funds")
    await change_account(bank.admin, bank.bobs, state="open")
    await change_account(bank.admin, bank.account, state="frozen")
    assert_problem(await post_transfer(bank.ada, bank.account, bank.bobs, 1), 409, "account-frozen")
    assert_problem(await settle(bank.bob, held, "post"), 409, "counterparty-unavailable")
    await change_account(bank.admin, bank.account, state="open")
    assert (await settle(bank.bob, held, "post")).status_code == 201


async def test_lists_have_the_transfers_of_all_own_accounts_once(bank: Bank) -> None:
    deposit = (await bank.admin.get("/transfers", params={"account_id": bank.account["id"]})).json()["items"][0]["id"]
    within = (await transfer(bank.ada, bank.account, bank.savings, 10))["id"]
    outgoing = (await transfer(bank.ada, bank.account, bank.bobs, 10))["id"]
    incoming = (await transfer(bank.bob, bank.bobs, bank.savings, 10))["id"]
    pending = (await hold(bank.ada, bank.savings, bank.account, 10)).json()["id"]

    async def listed(**parameters: Any) -> list[str]:
        """Checks that the newest first are the same transfers."""
        pages = [
            (await bank.ada.get("/transfers", params=parameters | {"order": order})).json()["items"]
            for order in ("oldest", "newest")
        ]
        oldest, newest = [[each["id"] for each in page] for page in pages]
        assert newest == oldest[::-1]
        return oldest

    account, savings, bobs = (each["id"] for each in (bank.account, bank.savings, bank.bobs))
    assert await listed() == [deposit, within, outgoing, incoming, pending]
    pages = await walk(bank.ada, "/transfers", limit=2)
    assert [each["id"] for page in pages for each in page] == await listed()
    assert (await walk_back(bank.ada, "/transfers", limit=2))[::-1] == pages
    assert await listed(account_id=account) == [deposit, within, outgoing, pending]
    assert await listed(account_id=savings, state="posted") == [within, incoming]
    assert await listed(state="pending") == [pending]
    assert await listed(from_account_id=account, to_account_id=savings) == [within]
    assert await listed(from_account_id=account, to_account_id=bobs) == [outgoing]
    assert await listed(from_account_id=bobs, to_account_id=savings) == [incoming]
    assert await listed(account_id=bobs, from_account_id=account) == [outgoing]
    assert await listed(from_account_id=bobs) == await listed(account_id=bobs) == []
    since = (await bank.ada.get(f"/transfers/{outgoing}")).json()["created_at"]
    for filters in ({}, {"account_id": account}, {"from_account_id": account, "to_account_id": bobs}):
        assert (await listed(created_from=since, **filters))[0] == outgoing
        assert outgoing not in await listed(created_before=since, **filters)


async def test_a_customer_opens_accounts_only_for_themselves(bank: Bank) -> None:
    terms: Row = {"name": "Mine", "currency": "GBP"}
    optional: list[Row] = [{}, {"user_id": bank.ada_id}, {"user_id": None, "purpose": None, "overdraft_limit": 0}]
    for each in optional:
        opened = await create(bank.ada, "/accounts", terms | each, headers={"Idempotency-Key": "same"})
        assert opened["user_id"] == bank.ada_id
    missing = str(uuid4())
    responses = [await bank.ada.post("/accounts", json=terms | {"user_id": id_}) for id_ in (bank.bob_id, missing)]
    assert [each.status_code for each in responses] == [404, 404]
    assert describe(responses[:1], bank.bob_id) == describe(responses[1:], missing)
    excluded: list[Row] = [{"allows_negative": True}, {"overdraft_limit": 1}, {"balance_limit": 1}, {"purpose": "fees"}]
    for each in excluded:
        assert_problem(await bank.ada.post("/accounts", json=terms | each), 403, "not-allowed")
    lines = [
        terms,
        *[terms | each for each in excluded],
        terms | {"user_id": bank.bob_id},
        terms | {"user_id": missing},
    ]
    results = await send_lines(bank.ada, "/accounts/batch", *lines)
    assert [each["refusal"] for each in results] == [None, *["not_allowed"] * 4, *["unknown_user"] * 2]
    assert (results[0]["account"]["user_id"], results[-1]) == (bank.ada_id, results[-2])

    own = {account["id"] for page in await walk(bank.ada, "/accounts") for account in page}
    assert own == {bank.savings["id"], bank.account["id"], opened["id"], results[0]["account"]["id"]}
    assert (await bank.ada.get("/accounts", params={"user_id": bank.bob_id})).json()["items"] == []


async def test_a_customer_changes_only_the_name_and_the_metadata(bank: Bank) -> None:
    changed = await change_account(bank.ada, bank.account, name="Rent", metadata={"a": "b"})
    assert (changed.status_code, changed.json()["name"]) == (200, "Rent")
    for change in (
        {"state": "frozen"},
        {"state": "open"},
        {"overdraft_limit": 9},
        {"balance_limit": None, "name": "x"},
    ):
        assert_problem(await change_account(bank.ada, bank.account, **change), 403, "not-allowed")
    assert_problem(await change_account(bank.ada, bank.savings, state="closed"), 403, "not-allowed")
    operator = sign_in(Role.OPERATOR)
    current = await bank.admin.get(f"/accounts/{bank.account['id']}")
    frozen = await bank.admin.patch(
        f"/accounts/{bank.account['id']}",
        json={"state": "frozen"},
        headers={"If-Match": current.headers["etag"], **operator},
    )
    assert frozen.json()["state"] == "frozen"


async def test_operators_read_all_transfers_and_post_none(bank: Bank, service: str) -> None:
    async with client_of(service, principal=sign_in(Role.OPERATOR)) as operator:
        assert (await operator.get(f"/transfers/{bank.foreign_transfer['id']}")).status_code == 200
        await assert_may_not_post(operator, bank)


async def assert_may_not_post(operator: httpx.AsyncClient, bank: Bank) -> None:
    body = {"from_account_id": bank.account["id"], "to_account_id": bank.bobs["id"], "amount": 1}
    headers = {"Idempotency-Key": "k"}
    for path, content in (
        ("/transfers", body),
        ("/transfers/linked", {"transfers": [body, body]}),
        *((f"/transfers/{bank.foreign_hold['id']}/{how}", {}) for how in ("post", "void", "reverse")),
    ):
        assert (await operator.post(path, json=content, headers=headers)).status_code == 403
    lines = json.dumps(body)
    response = await operator.post("/transfers/batch", content=lines, headers={"Content-Type": "application/x-ndjson"})
    assert response.status_code == 403
