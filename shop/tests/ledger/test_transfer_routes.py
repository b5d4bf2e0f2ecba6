"""`/transfers` over HTTP, without the batch."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import httpx
import pytest

from shop.ledger.requests import MAX_AMOUNT
from shop_tests.support.factories import balances, make_account, post_transfer, transfer
from shop_tests.support.problems import assert_problem


async def reverse(client: httpx.AsyncClient, transfer: dict[str, Any], **options: Any) -> httpx.Response:
    headers = {"Idempotency-Key": str(uuid4())}
    return await client.post(f"/transfers/{transfer['id']}/reverse", headers=headers, **options)


def is_replayed(response: httpx.Response) -> bool:
    return "idempotency-replayed" in response.headers


async def test_a_new_transfer_is_returned_with_its_location(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 1_000), await make_account(client)
    response = await client.post(
        "/transfers",
        json={"from_account_id": a["id"], "to_account_id": b["id"], "amount": 300, "description": "rent"},
        headers={"Idempotency-Key": "k"},
    )
    assert response.status_code == 201
    moved = response.json()
    assert response.headers["location"] == f"/transfers/{moved['id']}"
    assert not is_replayed(response)
    assert (moved["from_account_id"], moved["to_account_id"], moved["amount"]) == (a["id"], b["id"], 300)
    assert (moved["currency"], moved["description"], moved["reverses_id"]) == ("GBP", "rent", None)
    assert (await client.get(response.headers["location"])).json() == moved
    assert await balances(client, a, b) == [700, 300]


async def test_every_refusal_has_its_problem_code(client: httpx.AsyncClient) -> None:
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
async def test_an_invalid_transfer_is_rejected(client: httpx.AsyncClient, change: dict[str, Any]) -> None:
    body = {"from_account_id": str(uuid4()), "to_account_id": str(uuid4()), "amount": 1} | change
    assert_problem(await client.post("/transfers", json=body, headers={"Idempotency-Key": "k"}), 422, "validation")


@pytest.mark.parametrize("key", ["", "two words", "x" * 256, "é"])
async def test_an_invalid_key_is_rejected(client: httpx.AsyncClient, key: str) -> None:
    body = {"from_account_id": str(uuid4()), "to_account_id": str(uuid4()), "amount": 1}
    headers = [(b"Idempotency-Key", key.encode("latin-1"))]
    assert_problem(await client.post("/transfers", json=body, headers=headers), 422, "validation")
    assert_problem(await client.post("/transfers", json=body), 400, "idempotency-key-missing")


async def test_an_unknown_transfer_is_not_found_and_an_invalid_id_is_rejected(client: httpx.AsyncClient) -> None:
    paths = [("GET", "/transfers/{}"), *(("POST", f"/transfers/{{}}/{what}") for what in ("reverse", "post", "void"))]
    for method, path in paths:
        headers = {"Idempotency-Key": "k"}
        assert_problem(await client.request(method, path.format(uuid4()), headers=headers), 404, "not-found")
        assert_problem(await client.request(method, path.format("nonsense"), headers=headers), 422, "validation")


async def test_the_same_request_with_the_same_key_is_is_replayed(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    first, second = [await post_transfer(client, a, b, 60, key="k") for _ in range(2)]
    assert (first.status_code, is_replayed(first)) == (201, False)
    assert (second.status_code, is_replayed(second)) == (201, True)
    assert second.content == first.content
    assert second.headers["location"] == first.headers["location"]
    assert await balances(client, a, b) == [40, 60]


async def test_a_refusal_is_replayed_even_if_the_transfer_is_now_possible(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    first = await post_transfer(client, a, b, 101, key="k")
    await transfer(client, await make_account(client, 1_000), a, 1_000)
    second = await post_transfer(client, a, b, 101, key="k")
    for answer in (first, second):
        assert_problem(answer, 409, "insufficient-funds")
    assert second.content == first.content
    assert (is_replayed(first), is_replayed(second)) == (False, True)
    assert await balances(client, a, b) == [1_100, 0]
    assert (await post_transfer(client, a, b, 101, key="another")).status_code == 201


@pytest.mark.parametrize(
    "values",
    [
        {"metadata": {"zz": "1", "b": "2", "a": "3", "é": "4"}},
        {"effective_at": "2026-01-01T00:00:00.5+05:00"},
        {"effective_at": "9999-12-29T23:59:59.999999Z"},
        {"effective_at": "0001-01-02T00:00:00Z"},
        {"metadata": {"b": "x", "aa": "y"}, "pending_seconds": 60, "effective_at": "2026-01-01T00:00:00-01:00"},
    ],
)
async def test_a_replayed_response_has_the_same_bytes(client: httpx.AsyncClient, values: dict[str, Any]) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    body = {"from_account_id": a["id"], "to_account_id": b["id"], "amount": 10} | values
    first, again = [await client.post("/transfers", json=body, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert (first.status_code, again.content) == (201, first.content)
    assert (await client.get(f"/transfers/{first.json()['id']}")).content == first.content
    if "effective_at" in values:
        moment = datetime.fromisoformat(values["effective_at"]).astimezone(timezone(timedelta(hours=-3)))
        same = await client.post(
            "/transfers", json=body | {"effective_at": moment.isoformat()}, headers={"Idempotency-Key": "k"}
        )
        assert (same.status_code, same.content) == (201, first.content)


@pytest.mark.parametrize(
    "at", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-01T00:00:00", "", 5e300]
)
async def test_a_time_that_cannot_be_stored_is_rejected_and_fails_only_its_line(
    client: httpx.AsyncClient, at: Any
) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    body = {"from_account_id": a["id"], "to_account_id": b["id"], "amount": 1}
    answer = await client.post("/transfers", json=body | {"effective_at": at}, headers={"Idempotency-Key": "k"})
    assert_problem(answer, 422, "validation")
    lines = [body | {"idempotency_key": f"{n}"} | ({"effective_at": at} if n == 1 else {}) for n in range(3)]
    batch = await client.post(
        "/transfers/batch",
        content="\n".join(map(json.dumps, lines)),
        headers={"Content-Type": "application/x-ndjson"},
    )
    assert [json.loads(line)["outcome"] for line in batch.iter_lines()] == ["posted", "invalid", "posted"]


async def test_a_repeated_header_is_rejected(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    body = {"from_account_id": a["id"], "to_account_id": b["id"], "amount": 1}
    headers = [("Idempotency-Key", "k"), ("Idempotency-Key", "evil")]
    assert_problem(await client.post("/transfers", json=body, headers=headers), 400, "repeated-header")
    assert await balances(client, a, b) == [100, 0]


async def test_a_key_that_is_reused_with_another_body_is_refused(client: httpx.AsyncClient) -> None:
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
        assert not is_replayed(answer)
    answer = await client.post(f"/transfers/{moved['id']}/reverse", headers=headers)
    assert_problem(answer, 422, "key-reused")
    assert await balances(client, a, b, other) == [90, 10, 0]


async def test_a_retry_that_is_written_differently_is_a_replay(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    moved = await transfer(client, a, b, 10, key="k")
    text = (
        f'{{"description" : null, "amount": 10, "to_account_id": "{b["id"].upper()}",'
        f' "from_account_id": "{a["id"].replace("-", "")}"}}'
    )
    headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
    response = await client.post("/transfers", content=text, headers=headers)
    assert (response.status_code, response.json(), is_replayed(response)) == (201, moved, True)


async def test_twenty_concurrent_duplicates_post_one_transfer(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    answers = await asyncio.gather(*(post_transfer(client, a, b, 60, key="k") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sum(is_replayed(answer) for answer in answers) == 19
    assert await balances(client, a, b) == [40, 60]


async def test_twenty_concurrent_refused_duplicates_get_one_answer(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client), await make_account(client)
    answers = await asyncio.gather(*(post_transfer(client, a, b, 60, key="k") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {409}
    assert len({answer.content for answer in answers}) == 1
    assert sum(is_replayed(answer) for answer in answers) == 19


async def test_a_transfer_is_reversed_once(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    moved = await transfer(client, a, b, 60)

    response = await reverse(client, moved)

    assert response.status_code == 201
    back = response.json()
    assert response.headers["location"] == f"/transfers/{back['id']}"
    assert (back["from_account_id"], back["to_account_id"], back["amount"]) == (b["id"], a["id"], 60)
    assert back["reverses_id"] == moved["id"]
    assert await balances(client, a, b) == [100, 0]
    assert_problem(await reverse(client, moved), 409, "already-reversed")
    assert await balances(client, a, b) == [100, 0]


async def test_a_reversal_without_sufficient_funds_is_refused(client: httpx.AsyncClient) -> None:
    a, b, c = await make_account(client, 100), await make_account(client), await make_account(client)
    moved = await transfer(client, a, b, 60)
    await transfer(client, b, c, 1)
    assert_problem(await reverse(client, moved), 409, "insufficient-funds")
    assert await balances(client, a, b, c) == [40, 59, 1]
    await transfer(client, c, b, 1)
    assert (await reverse(client, moved)).status_code == 201


async def test_a_reversal_with_a_used_key_is_is_replayed(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    moved = await transfer(client, a, b, 60)
    headers = {"Idempotency-Key": "k"}
    first, second = [await client.post(f"/transfers/{moved['id']}/reverse", headers=headers) for _ in range(2)]
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.content == second.content
    assert (is_replayed(first), is_replayed(second)) == (False, True)


async def test_one_of_eight_concurrent_reversals_is_posted(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client, 1_000)
    moved = await transfer(client, a, b, 60)
    answers = await asyncio.gather(*(reverse(client, moved) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7
    for answer in answers:
        if answer.status_code == 409:
            assert_problem(answer, 409, "already-reversed")
    assert await balances(client, a, b) == [100, 1_000]


async def test_a_transfer_is_partly_reversed_once_per_key(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    moved = (await post_transfer(client, a, b, 60)).json()
    path = f"/transfers/{moved['id']}/reverse"
    assert_problem(await client.post(path, json={"amount": 20}), 400, "idempotency-key-missing")
    for is_replay in (False, True):
        answer = await client.post(path, json={"amount": 20}, headers={"Idempotency-Key": "part"})
        assert (answer.status_code, "idempotency-replayed" in answer.headers) == (201, is_replay)
        assert (answer.json()["amount"], answer.json()["reversed_total"]) == (20, 20)
    over = await client.post(path, json={"amount": 41}, headers={"Idempotency-Key": "more"})
    assert_problem(over, 409, "exceeds-reversible-amount")
    assert (await reverse(client, moved)).json()["amount"] == 40
    assert_problem(await reverse(client, moved), 409, "already-reversed")
    assert await balances(client, a, b) == [100, 0]
    bodies: list[Any] = [{"amount": 0}, {"amount": "1"}, {"sum": 1}, []]
    for body in bodies:
        assert_problem(await reverse(client, moved, json=body), 422, "validation")
