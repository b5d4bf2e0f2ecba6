"""`/accounts` over HTTP."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import httpx
import pytest
from making import make_account, make_user, transfer, walk, walk_back
from problems import assert_problem


async def test_a_new_account_has_nothing_on_it(client: httpx.AsyncClient) -> None:
    user = await make_user(client)
    body = {"name": " Savings ", "currency": "EUR", "user_id": user["id"], "allows_negative": True}
    response = await client.post("/accounts", json=body)
    assert response.status_code == 201
    account = response.json()
    assert response.headers["location"] == f"/accounts/{account['id']}"
    assert (account["name"], account["currency"], account["user_id"]) == ("Savings", "EUR", user["id"])
    assert (account["balance"], account["version"], account["allows_negative"]) == (0, 0, True)
    assert (await client.get(response.headers["location"])).json() == account


async def test_an_account_is_of_the_house_and_covered_unless_it_says_otherwise(client: httpx.AsyncClient) -> None:
    account = await make_account(client)
    assert (account["user_id"], account["allows_negative"]) == (None, False)


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
        {"version": 1},
    ],
)
async def test_an_account_that_is_not_as_described_is_refused(
    client: httpx.AsyncClient, change: dict[str, Any]
) -> None:
    body = {"name": "Current account", "currency": "GBP"} | change
    assert_problem(await client.post("/accounts", json=body), 422, "validation")


async def test_an_account_of_nobody_is_refused(client: httpx.AsyncClient) -> None:
    body = {"name": "Current account", "currency": "GBP", "user_id": str(uuid4())}
    response = await client.post("/accounts", json=body)
    assert_problem(response, 409, "foreign-key-violation", constraint="fk_accounts_user_id")


@pytest.mark.parametrize("path", ["/accounts/{}", "/accounts/{}/entries", "/accounts/{}/balance?at=2030-01-01T00:00Z"])
async def test_an_unknown_account_is_not_found_and_a_bad_id_is_refused(client: httpx.AsyncClient, path: str) -> None:
    assert_problem(await client.get(path.format(uuid4())), 404, "not-found")
    assert_problem(await client.get(path.format("nonsense")), 422, "validation")


async def test_the_statement_has_every_entry_once_the_oldest_first(client: httpx.AsyncClient) -> None:
    account = await make_account(client, 100)
    other = await make_account(client)
    for amount in (10, 20, 30):
        await transfer(client, account, other, amount)
    await transfer(client, other, account, 5)

    pages = await walk(client, f"/accounts/{account['id']}/entries", limit=2)

    entries = [entry for page in pages for entry in page]
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [entry["version"] for entry in entries] == [1, 2, 3, 4, 5]
    assert [entry["amount"] for entry in entries] == [100, -10, -20, -30, 5]
    assert [entry["balance_after"] for entry in entries] == [100, 90, 70, 40, 45]
    assert await walk_back(client, f"/accounts/{account['id']}/entries", limit=2) == pages[::-1]
    elsewhere = f"/accounts/{other['id']}/entries"
    cursor = (await client.get(f"/accounts/{account['id']}/entries", params={"limit": 2})).json()["next"]
    assert_problem(await client.get(elsewhere, params={"after": cursor}), 400, "invalid-cursor")


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "at=2030-01-01T00:00Z", "after=x&before=y"])
async def test_a_statement_query_that_is_not_as_described_is_refused(client: httpx.AsyncClient, query: str) -> None:
    account = await make_account(client)
    assert_problem(await client.get(f"/accounts/{account['id']}/entries?{query}"), 422, "validation")


async def test_the_balance_is_told_as_it_was_at_a_time(client: httpx.AsyncClient) -> None:
    account, other = await make_account(client, 100), await make_account(client)
    made = [await transfer(client, account, other, amount) for amount in (10, 20)]

    async def balance(at: str) -> tuple[int, int]:
        response = await client.get(f"/accounts/{account['id']}/balance", params={"at": at})
        assert response.status_code == 200, response.text
        assert response.json()["account_id"] == account["id"]
        return response.json()["balance"], response.json()["version"]

    assert await balance(account["created_at"]) == (0, 0)
    assert await balance(made[0]["created_at"]) == (90, 2)
    assert await balance(made[1]["created_at"]) == (70, 3)
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
async def test_a_time_that_cannot_be_told_is_refused(client: httpx.AsyncClient, at: str, code: str) -> None:
    account = await make_account(client)
    assert_problem(await client.get(f"/accounts/{account['id']}/balance", params={"at": at}), 422, code)
    assert_problem(await client.get(f"/accounts/{account['id']}/balance"), 422, "validation")
