"""`/transfers` over HTTP, but for the batch."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import httpx
import pytest
from making import balances, make_account, post_transfer, transfer
from problems import assert_problem

from shop.transfers.service import MAX_AMOUNT


def replayed(response: httpx.Response) -> bool:
    return "idempotency-replayed" in response.headers


async def test_a_transfer_is_answered_with_where_it_is(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 1_000), await make_account(client)
    response = await client.post(
        "/transfers",
        json={"from_account_id": a["id"], "to_account_id": b["id"], "amount": 300, "description": "rent"},
        headers={"Idempotency-Key": "k"},
    )
    assert response.status_code == 201
    moved = response.json()
    assert response.headers["location"] == f"/transfers/{moved['id']}"
    assert not replayed(response)
    assert (moved["from_account_id"], moved["to_account_id"], moved["amount"]) == (a["id"], b["id"], 300)
    assert (moved["currency"], moved["description"], moved["reverses_id"]) == ("GBP", "rent", None)
    assert (await client.get(response.headers["location"])).json() == moved
    assert await balances(client, a, b) == [700, 300]


async def test_every_refusal_has_its_problem(client: httpx.AsyncClient) -> None:
    a, b, euros = (
        await make_account(client, 100),
        await make_account(client),
        await make_account(client, currency="EUR"),
    )
    full, drained = (
        await make_account(client, allows_negative=True),
        await make_account(client, allows_negative=True),
    )
    await transfer(client, drained, full, MAX_AMOUNT)
    nobody = {"id": str(uuid4())}

    assert_problem(await post_transfer(client, a, b, 101), 409, "insufficient-funds")
    assert_problem(await post_transfer(client, drained, full, MAX_AMOUNT), 409, "balance-out-of-range")
    assert_problem(await post_transfer(client, a, a, 1), 422, "same-account")
    assert_problem(await post_transfer(client, a, nobody, 1), 422, "unknown-account")
    assert_problem(await post_transfer(client, nobody, b, 1), 422, "unknown-account")
    assert_problem(await post_transfer(client, a, euros, 1), 422, "currency-mismatch")
    assert await balances(client, a, b, euros, full) == [100, 0, 0, MAX_AMOUNT]


@pytest.mark.parametrize(
    "change",
    [
        {"amount": 0},
        {"amount": -1},
        {"amount": MAX_AMOUNT + 1},
        {"amount": 10**400},
        {"amount": True},
        {"amount": 1.0},
        {"amount": "1"},
        {"amount": None},
        {"from_account_id": "1"},
        {"to_account_id": None},
        {"description": "\x00"},
        {"description": "x" * 501},
        {"currency": "GBP"},
        {"idempotency_key": "k"},
        {"reverses": str(uuid4())},
    ],
)
async def test_a_transfer_that_is_not_as_described_is_refused(
    client: httpx.AsyncClient, change: dict[str, Any]
) -> None:
    body = {"from_account_id": str(uuid4()), "to_account_id": str(uuid4()), "amount": 1} | change
    assert_problem(await client.post("/transfers", json=body, headers={"Idempotency-Key": "k"}), 422, "validation")


@pytest.mark.parametrize("key", ["", "two words", "x" * 256, "é"])
async def test_a_key_that_is_none_is_refused(client: httpx.AsyncClient, key: str) -> None:
    body = {"from_account_id": str(uuid4()), "to_account_id": str(uuid4()), "amount": 1}
    headers = [(b"Idempotency-Key", key.encode("latin-1"))]
    assert_problem(await client.post("/transfers", json=body, headers=headers), 422, "validation")
    assert_problem(await client.post("/transfers", json=body), 400, "idempotency-key-missing")


async def test_an_unknown_transfer_is_not_found_and_a_bad_id_is_refused(client: httpx.AsyncClient) -> None:
    for method, path in (("GET", "/transfers/{}"), ("POST", "/transfers/{}/reverse")):
        assert_problem(await client.request(method, path.format(uuid4())), 404, "not-found")
        assert_problem(await client.request(method, path.format("nonsense")), 422, "validation")


async def test_the_same_request_under_the_same_key_gets_the_same_answer(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    first, second = [await post_transfer(client, a, b, 60, key="k") for _ in range(2)]
    assert (first.status_code, replayed(first)) == (201, False)
    assert (second.status_code, replayed(second)) == (201, True)
    assert second.content == first.content
    assert second.headers["location"] == first.headers["location"]
    assert await balances(client, a, b) == [40, 60]


async def test_a_refusal_is_replayed_too_even_if_it_would_now_be_granted(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    first = await post_transfer(client, a, b, 101, key="k")
    await transfer(client, await make_account(client, 1_000), a, 1_000)
    second = await post_transfer(client, a, b, 101, key="k")
    for answer in (first, second):
        assert_problem(answer, 409, "insufficient-funds")
    assert second.content == first.content
    assert (replayed(first), replayed(second)) == (False, True)
    assert await balances(client, a, b) == [1_100, 0]
    assert (await post_transfer(client, a, b, 101, key="another")).status_code == 201


async def test_the_same_key_with_another_body_is_refused(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    body = {"from_account_id": a["id"], "to_account_id": b["id"], "amount": 10, "description": None}
    headers = {"Idempotency-Key": "k"}
    moved = (await client.post("/transfers", json=body, headers=headers)).json()
    other = await make_account(client)
    for change in (
        {"amount": 11},
        {"to_account_id": other["id"]},
        {"from_account_id": other["id"]},
        {"description": ""},
    ):
        answer = await client.post("/transfers", json=body | change, headers=headers)
        assert_problem(answer, 422, "key-reused")
        assert not replayed(answer)
    answer = await client.post(f"/transfers/{moved['id']}/reverse", headers=headers)
    assert_problem(answer, 422, "key-reused")
    assert await balances(client, a, b, other) == [90, 10, 0]


async def test_a_body_written_otherwise_that_means_the_same_is_the_same(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    moved = await transfer(client, a, b, 10, key="k")
    text = (
        f'{{"description" : null, "amount": 10, "to_account_id": "{b["id"].upper()}",'
        f' "from_account_id": "{a["id"].replace("-", "")}"}}'
    )
    headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
    response = await client.post("/transfers", content=text, headers=headers)
    assert (response.status_code, response.json(), replayed(response)) == (201, moved, True)


async def test_twenty_duplicates_at_a_time_make_one_transfer_and_get_one_answer(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    answers = await asyncio.gather(*(post_transfer(client, a, b, 60, key="k") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sum(replayed(answer) for answer in answers) == 19
    assert await balances(client, a, b) == [40, 60]


async def test_twenty_refused_duplicates_at_a_time_get_one_answer(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client), await make_account(client)
    answers = await asyncio.gather(*(post_transfer(client, a, b, 60, key="k") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {409}
    assert len({answer.content for answer in answers}) == 1
    assert sum(replayed(answer) for answer in answers) == 19


async def test_a_transfer_is_reversed_once(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    moved = await transfer(client, a, b, 60)

    response = await client.post(f"/transfers/{moved['id']}/reverse")

    assert response.status_code == 201
    back = response.json()
    assert response.headers["location"] == f"/transfers/{back['id']}"
    assert (back["from_account_id"], back["to_account_id"], back["amount"]) == (b["id"], a["id"], 60)
    assert back["reverses_id"] == moved["id"]
    assert await balances(client, a, b) == [100, 0]
    assert_problem(await client.post(f"/transfers/{moved['id']}/reverse"), 409, "already-reversed")
    assert await balances(client, a, b) == [100, 0]


async def test_a_reversal_that_the_balance_does_not_cover_is_refused(client: httpx.AsyncClient) -> None:
    a, b, c = await make_account(client, 100), await make_account(client), await make_account(client)
    moved = await transfer(client, a, b, 60)
    await transfer(client, b, c, 1)
    assert_problem(await client.post(f"/transfers/{moved['id']}/reverse"), 409, "insufficient-funds")
    assert await balances(client, a, b, c) == [40, 59, 1]
    await transfer(client, c, b, 1)
    assert (await client.post(f"/transfers/{moved['id']}/reverse")).status_code == 201


async def test_a_reversal_under_a_key_is_replayed(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    moved = await transfer(client, a, b, 60)
    headers = {"Idempotency-Key": "k"}
    first, second = [await client.post(f"/transfers/{moved['id']}/reverse", headers=headers) for _ in range(2)]
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.content == second.content
    assert (replayed(first), replayed(second)) == (False, True)


async def test_of_two_reversals_at_a_time_one_is_made(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client, 1_000)
    moved = await transfer(client, a, b, 60)
    answers = await asyncio.gather(*(client.post(f"/transfers/{moved['id']}/reverse") for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7
    for answer in answers:
        if answer.status_code == 409:
            assert_problem(answer, 409, "already-reversed")
    assert await balances(client, a, b) == [100, 1_000]


async def test_a_part_of_a_transfer_is_taken_back_under_a_key(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    moved = (await post_transfer(client, a, b, 60)).json()
    path = f"/transfers/{moved['id']}/reverse"
    assert_problem(await client.post(path, json={"amount": 20}), 400, "idempotency-key-missing")
    for replayed in (False, True):
        answer = await client.post(path, json={"amount": 20}, headers={"Idempotency-Key": "part"})
        assert (answer.status_code, "idempotency-replayed" in answer.headers) == (201, replayed)
        assert (answer.json()["amount"], answer.json()["reversed_total"]) == (20, 20)
    over = await client.post(path, json={"amount": 41}, headers={"Idempotency-Key": "more"})
    assert_problem(over, 409, "more-than-is-left")
    assert (await client.post(path)).json()["amount"] == 40
    assert_problem(await client.post(path), 409, "already-reversed")
    assert await balances(client, a, b) == [100, 0]
    for body in ({"amount": 0}, {"amount": "1"}, {"sum": 1}, []):
        assert_problem(await client.post(path, json=body), 422, "validation")
