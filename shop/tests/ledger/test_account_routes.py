"""`/accounts` over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import httpx
import pytest

from shop_tests.support.factories import (
    change_account,
    create,
    make_account,
    make_user,
    post_transfer,
    transfer,
    walk,
    walk_back,
)
from shop_tests.support.problems import assert_problem


async def test_a_new_account_is_empty(client: httpx.AsyncClient) -> None:
    user = await make_user(client)
    body = {"name": " Savings ", "currency": "EUR", "user_id": user["id"], "allows_negative": True}
    response = await client.post("/accounts", json=body)
    assert response.status_code == 201
    account = response.json()
    assert response.headers["location"] == f"/accounts/{account['id']}"
    assert (account["name"], account["currency"], account["user_id"]) == ("Savings", "EUR", user["id"])
    assert (account["balance"], account["entry_count"], account["allows_negative"]) == (0, 0, True)
    found = await client.get(response.headers["location"])
    assert (found.json(), found.headers["etag"]) == (account, response.headers["etag"])


async def test_by_default_an_account_has_no_owner_and_no_overdraft(client: httpx.AsyncClient) -> None:
    account = await make_account(client)
    assert (account["user_id"], account["allows_negative"]) == (None, False)
    assert (account["state"], account["overdraft_limit"], account["balance_limit"]) == ("open", 0, None)
    assert account["metadata"] == {}


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "x" * 101},
        {"name": "\x00"},
        {"name": None},
        {"currency": "gbp"},
        {"currency": "GBPX"},
        {"currency": None},
        {"user_id": "1"},
        {"allows_negative": "yes"},
        {"allows_negative": 1},
        {"balance": 100},
        {"entry_count": 1},
        {"overdraft_limit": -1},
        {"balance_limit": "many"},
        {"metadata": {"x": 1}},
        {"metadata": {"": "x"}},
        {"metadata": {"x": "\x00"}},
        {"metadata": {str(n): "" for n in range(51)}},
        {"state": "frozen"},
    ],
)
async def test_an_invalid_account_is_rejected(client: httpx.AsyncClient, change: dict[str, Any]) -> None:
    body = {"name": "Current account", "currency": "GBP"} | change
    assert_problem(await client.post("/accounts", json=body), 422, "validation")


async def test_an_account_of_an_unknown_user_is_rejected(client: httpx.AsyncClient) -> None:
    body = {"name": "Current account", "currency": "GBP", "user_id": str(uuid4())}
    response = await client.post("/accounts", json=body)
    assert_problem(response, 409, "foreign-key-violation", constraint="fk_accounts_user_id")


@pytest.mark.parametrize(
    "path", ["/accounts/{}", "/accounts/{}/entries", "/accounts/{}/balance?at=2030-01-01T00:00:00Z"]
)
async def test_an_unknown_account_is_not_found_and_an_invalid_id_is_rejected(
    client: httpx.AsyncClient, path: str
) -> None:
    assert_problem(await client.get(path.format(uuid4())), 404, "not-found")
    assert_problem(await client.get(path.format("nonsense")), 422, "validation")


async def test_the_statement_has_every_entry_once_oldest_first(client: httpx.AsyncClient) -> None:
    account = await make_account(client, 100)
    other = await make_account(client)
    for amount in (10, 20, 30):
        await transfer(client, account, other, amount)
    await transfer(client, other, account, 5)

    pages = await walk(client, f"/accounts/{account['id']}/entries", limit=2)

    entries = [entry for page in pages for entry in page]
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [entry["entry_number"] for entry in entries] == [1, 2, 3, 4, 5]
    assert [entry["amount"] for entry in entries] == [100, -10, -20, -30, 5]
    assert [entry["balance_after"] for entry in entries] == [100, 90, 70, 40, 45]
    assert await walk_back(client, f"/accounts/{account['id']}/entries", limit=2) == pages[::-1]
    elsewhere = f"/accounts/{other['id']}/entries"
    cursor = (await client.get(f"/accounts/{account['id']}/entries", params={"limit": 2})).json()["next"]
    assert_problem(await client.get(elsewhere, params={"after": cursor}), 400, "invalid-cursor")


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "at=2030-01-01T00:00:00Z", "after=x&before=y"])
async def test_an_invalid_statement_query_is_rejected(client: httpx.AsyncClient, query: str) -> None:
    account = await make_account(client)
    assert_problem(await client.get(f"/accounts/{account['id']}/entries?{query}"), 422, "validation")


async def test_the_balance_at_a_past_time_is_returned(client: httpx.AsyncClient) -> None:
    account, other = await make_account(client, 100), await make_account(client)
    moved = [await transfer(client, account, other, amount) for amount in (10, 20)]

    async def balance(at: str) -> tuple[int, int]:
        response = await client.get(f"/accounts/{account['id']}/balance", params={"at": at})
        assert response.status_code == 200, response.text
        assert response.json()["account_id"] == account["id"]
        return response.json()["balance"], response.json()["entry_number"]

    assert await balance(account["created_at"]) == (0, 0)
    assert await balance(moved[0]["created_at"]) == (90, 2)
    assert await balance(moved[1]["created_at"]) == (70, 3)
    assert await balance("9999-12-31T23:59:59Z") == (70, 3)
    assert await balance("0001-01-01T00:00:00+00:00") == (0, 0)


@pytest.mark.parametrize(
    ("at", "code"),
    [
        ("2030-01-01T00:00:00", "validation"),
        ("yesterday", "validation"),
        ("", "validation"),
        ("\x00", "validation"),
        ("9" * 400, "validation"),
        ("nan", "validation"),
        ("0001-01-01T00:00:00+14:00", "out-of-range"),
        ("9999-12-31T23:59:59-14:00", "out-of-range"),
    ],
)
async def test_an_invalid_time_is_rejected(client: httpx.AsyncClient, at: str, code: str) -> None:
    account = await make_account(client)
    assert_problem(await client.get(f"/accounts/{account['id']}/balance", params={"at": at}), 422, code)


async def test_a_frozen_account_refuses_transfers_until_it_is_opened_again(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    frozen = await change_account(client, a, state="frozen")
    assert (frozen.status_code, frozen.json()["state"]) == (200, "frozen")
    for source, target in ((a, b), (b, a)):
        assert_problem(await post_transfer(client, source, target, 1), 409, "account-frozen")
    await change_account(client, a, state="open")
    assert (await post_transfer(client, a, b, 1)).status_code == 201


async def test_only_an_empty_account_can_be_closed_and_it_stays_closed(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    assert_problem(await change_account(client, a, state="closed"), 409, "account-unchangeable")
    await transfer(client, a, b, 100)
    assert (await change_account(client, a, state="closed")).json()["state"] == "closed"
    assert_problem(await post_transfer(client, b, a, 1), 409, "account-closed")
    for change in ({"state": "open"}, {"name": "New"}):
        assert_problem(await change_account(client, a, **change), 409, "account-unchangeable")
    assert (await change_account(client, a)).status_code == 200


async def test_a_limit_can_be_changed_only_if_the_balance_is_within_it(client: httpx.AsyncClient) -> None:
    a = await make_account(client, overdraft_limit=50, balance_limit=200, metadata={"region": "north"})
    b = await make_account(client, 100)
    path = f"/accounts/{a['id']}"
    assert_problem(await post_transfer(client, a, b, 51), 409, "insufficient-funds")
    assert (await post_transfer(client, a, b, 50)).status_code == 201
    assert_problem(await change_account(client, a, overdraft_limit=49), 409, "account-unchangeable")
    await transfer(client, b, a, 150)
    assert_problem(await change_account(client, a, balance_limit=99), 409, "account-unchangeable")
    changed = (await change_account(client, a, balance_limit=100, overdraft_limit=0, name=" New ")).json()
    assert (changed["balance_limit"], changed["overdraft_limit"], changed["name"]) == (100, 0, "New")
    assert (changed["balance"], changed["metadata"]) == (100, {"region": "north"})
    assert (await client.get(path)).json() == changed
    assert (await change_account(client, a, balance_limit=None)).json()["balance_limit"] is None


@pytest.mark.parametrize("body", [{"state": "gone"}, {"state": None}, {"balance": 1}, {"overdraft_limit": None}, []])
async def test_an_invalid_change_of_an_account_is_rejected(client: httpx.AsyncClient, body: Any) -> None:
    account = await make_account(client)
    for headers in ({}, {"If-Match": "*"}):
        response = await client.patch(f"/accounts/{account['id']}", json=body, headers=headers)
        assert_problem(response, 422, "validation")
        assert_problem(
            await client.patch(f"/accounts/{uuid4()}", json={"name": "x"}, headers=headers), 404, "not-found"
        )


async def test_a_change_of_an_account_without_if_match_is_rejected(client: httpx.AsyncClient) -> None:
    account = await make_account(client)
    assert_problem(await client.patch(f"/accounts/{account['id']}", json={"name": "x"}), 428, "precondition-required")
    assert (await client.get(f"/accounts/{account['id']}")).json() == account


@pytest.mark.parametrize("if_match", ["*", '"0-0"', '"0"', '"7-0", "0-9"'])
async def test_a_change_with_the_current_etag_is_accepted(client: httpx.AsyncClient, if_match: str) -> None:
    account = await make_account(client)
    path = f"/accounts/{account['id']}"
    response = await client.patch(path, json={"name": "New"}, headers={"If-Match": if_match})
    assert (response.status_code, response.json()["name"], response.headers["etag"]) == (200, "New", '"1-0"')
    assert (await client.get(path)).headers["etag"] == '"1-0"'


@pytest.mark.parametrize("if_match", ['"1-0"', 'W/"0-0"', "0-0", "", '""', '"00-0"', '"-0"', "nonsense", '"0-0'])
async def test_a_change_with_another_etag_is_rejected(client: httpx.AsyncClient, if_match: str) -> None:
    account = await make_account(client)
    path = f"/accounts/{account['id']}"
    response = await client.patch(path, json={"name": "New"}, headers={"If-Match": if_match})
    assert_problem(response, 412, "precondition-failed")
    assert (await client.get(path)).json() == account


async def test_a_hold_changes_the_accepted_etag_and_a_transfer_does_not(client: httpx.AsyncClient) -> None:
    account, other = await make_account(client, 100), await make_account(client)
    path = f"/accounts/{account['id']}"
    etag = (await client.get(path)).headers["etag"]
    await transfer(client, account, other, 1)
    moved = (await client.get(path)).headers["etag"]
    assert moved != etag
    changed = await client.patch(path, json={"name": "New"}, headers={"If-Match": etag})
    assert (changed.status_code, changed.json()["balance"]) == (200, 99)
    assert_problem(
        await client.patch(path, json={"name": "x"}, headers={"If-Match": moved}), 412, "precondition-failed"
    )

    hold = {"from_account_id": account["id"], "to_account_id": other["id"], "amount": 1, "pending_seconds": 60}
    await create(client, "/transfers", hold, headers={"Idempotency-Key": "hold"})
    stale = await client.patch(path, json={"name": "x"}, headers={"If-Match": changed.headers["etag"]})
    assert_problem(stale, 412, "precondition-failed")


async def test_the_precondition_is_checked_before_the_state_of_the_account(client: httpx.AsyncClient) -> None:
    account = await make_account(client, 100)
    path = f"/accounts/{account['id']}"
    stale = await client.patch(path, json={"state": "closed"}, headers={"If-Match": '"9-0"'})
    assert_problem(stale, 412, "precondition-failed")
    assert_problem(await client.patch(path, json={"state": "closed"}), 428, "precondition-required")


async def test_one_of_ten_concurrent_changes_of_an_account_is_accepted(client: httpx.AsyncClient) -> None:
    account = await make_account(client)
    path = f"/accounts/{account['id']}"

    async def rename(number: int) -> httpx.Response:
        return await client.patch(path, json={"name": f"name {number}"}, headers={"If-Match": '"0-0"'})

    answers = await asyncio.gather(*(rename(number) for number in range(10)))

    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 9
    [changed] = [answer.json() for answer in answers if answer.status_code == 200]
    assert (await client.get(path)).json() == changed


async def test_without_the_precondition_a_later_change_undoes_an_earlier_one(client: httpx.AsyncClient) -> None:
    """The control test: `*` matches every version."""
    account = await make_account(client, metadata={"a": "1"})
    path = f"/accounts/{account['id']}"
    read = [(await client.get(path)).json()["metadata"] for _ in range(2)]
    for metadata, addition in zip(read, ({"b": "2"}, {"c": "3"}), strict=True):
        response = await client.patch(path, json={"metadata": metadata | addition}, headers={"If-Match": "*"})
        assert response.status_code == 200
    assert (await client.get(path)).json()["metadata"] == {"a": "1", "c": "3"}
