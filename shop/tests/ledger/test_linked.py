"""Linked chains: transfers that are posted together or not at all."""

from __future__ import annotations

import asyncio
import json
from itertools import chain
from typing import Any
from uuid import uuid4

import httpx
import pytest

from howdah import Database
from shop.ledger.check import check_ledger
from shop.ledger.group_commit import Ledger
from shop.ledger.requests import MAX_LINKED, TransferRequest
from shop_tests.support.factories import balances, make_account
from shop_tests.support.problems import assert_problem


def transfer_body(source: dict[str, Any], target: dict[str, Any], amount: int, **values: Any) -> dict[str, Any]:
    return {"from_account_id": source["id"], "to_account_id": target["id"], "amount": amount} | values


async def link(client: httpx.AsyncClient, *transfers: dict[str, Any], key: str | None = None) -> httpx.Response:
    headers = {"Idempotency-Key": key or str(uuid4())}
    return await client.post("/transfers/linked", json={"transfers": transfers}, headers=headers)


async def test_one_account_pays_many_or_none(client: httpx.AsyncClient, stored: Database) -> None:
    payer, *payees = [await make_account(client, balance) for balance in (100, 0, 0, 0)]
    answer = await link(client, *(transfer_body(payer, payee, 30, description="wages") for payee in payees))
    assert answer.status_code == 201
    transfers = answer.json()["transfers"]
    assert [(each["to_account_id"], each["amount"]) for each in transfers] == [(payee["id"], 30) for payee in payees]
    assert len({each["group_id"] for each in transfers} - {None}) == 1
    listed = (await client.get("/transfers", params={"group_id": transfers[0]["group_id"]})).json()["items"]
    assert listed == transfers

    refused = await link(client, *(transfer_body(payer, payee, 4) for payee in payees))
    assert_problem(refused, 409, "insufficient-funds", index=2)
    assert await balances(client, payer, *payees) == [10, 30, 30, 30]
    async with stored.session() as session:
        assert (await check_ledger(session)).faults == {}


async def test_each_linked_transfer_is_decided_after_those_before_it(client: httpx.AsyncClient) -> None:
    a, between, c = await make_account(client, 50), await make_account(client), await make_account(client)
    two_steps = transfer_body(a, between, 50), transfer_body(between, c, 50)
    assert_problem(await link(client, *two_steps[::-1]), 409, "insufficient-funds", index=0)
    assert (await link(client, *two_steps)).status_code == 201
    assert await balances(client, a, between, c) == [0, 0, 50]


async def test_linked_transfers_have_one_key(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    first, again = [await link(client, transfer_body(a, b, 1), transfer_body(a, b, 2), key="k") for _ in range(2)]
    assert (first.status_code, again.status_code) == (201, 201)
    assert (again.content, again.headers["idempotency-replayed"]) == (first.content, "true")
    for other in (
        [transfer_body(a, b, 1), transfer_body(a, b, 3)],
        [transfer_body(a, b, 2), transfer_body(a, b, 1)],
        [transfer_body(a, b, 1), transfer_body(a, b, 2), transfer_body(a, b, 3)],
    ):
        assert_problem(await link(client, *other, key="k"), 422, "key-reused")
    alone = await client.post("/transfers", json=transfer_body(a, b, 1), headers={"Idempotency-Key": "k"})
    assert_problem(alone, 422, "key-reused")
    refused = [await link(client, transfer_body(a, b, 1), transfer_body(a, b, 1_000), key="much") for _ in range(2)]
    for answer in refused:
        assert_problem(answer, 409, "insufficient-funds", index=1)
    assert ["idempotency-replayed" in answer.headers for answer in refused] == [False, True]
    assert await balances(client, a, b) == [97, 3]


async def test_twenty_concurrent_duplicates_are_posted_once(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    answers = await asyncio.gather(
        *(link(client, transfer_body(a, b, 1), transfer_body(b, a, 1), key="k") for _ in range(20))
    )
    assert {answer.content for answer in answers} == {answers[0].content}
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 19


async def test_pending_transfers_can_be_linked(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    refused = await link(client, transfer_body(a, b, 60, pending_seconds=60), transfer_body(a, b, 60))
    assert_problem(refused, 409, "insufficient-funds", index=1)
    assert (await client.get(f"/accounts/{a['id']}")).json()["held"] == 0
    transfers = (await link(client, transfer_body(a, b, 60, pending_seconds=60), transfer_body(a, b, 40))).json()[
        "transfers"
    ]
    assert [each["state"] for each in transfers] == ["pending", "posted"]


@pytest.mark.parametrize("count", [0, 1, MAX_LINKED + 1])
async def test_a_chain_has_2_to_100_transfers(client: httpx.AsyncClient, count: int) -> None:
    account = {"id": str(uuid4())}
    assert_problem(await link(client, *[transfer_body(account, account, 1)] * count), 422, "validation")
    assert_problem(
        await client.post("/transfers/linked", json={"transfers": [transfer_body(account, account, 1)] * 2}),
        400,
        "idempotency-key-missing",
    )


async def test_a_contradictory_list_is_rejected_before_a_decision(stored: Database) -> None:
    a, b = uuid4(), uuid4()
    async with Ledger(stored) as ledger:
        for wrong in (
            [TransferRequest(a, b, 1, linked=True)],
            [TransferRequest(a, b, 1, linked=True)] * (MAX_LINKED + 1) + [TransferRequest(a, b, 1)],
            [TransferRequest(a, b, 1, pending_seconds=1, reverses=uuid4())],
            [TransferRequest(a, b, 1, pending_seconds=0)],
            [TransferRequest(a, b, 1, key="k", linked=True), TransferRequest(a, b, 1)],
        ):
            with pytest.raises(ValueError, match=r"linked|one of these|seconds"):
                await ledger.submit_many(wrong)
        with pytest.raises(ValueError, match="linked"):
            await ledger.submit(TransferRequest(a, b, 1, linked=True))
        assert await ledger.submit_many([]) == []


async def test_a_line_of_a_batch_can_be_linked_to_the_next(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    chains: list[list[tuple[int, bool] | str]] = [
        [(60, True), (60, False)],  # their sum exceeds the balance
        [(10, True), (20, False)],
        ["nonsense"],
        [(1, True), "nonsense", (1, False)],
        [(1, False)],
        [(1, True), (0, True), (1, True), "nonsense", (1, False)],
        [(1, False)],
        [(1, True)],
    ]
    lines = []
    for number, each in enumerate(chain.from_iterable(chains)):
        if isinstance(each, str):
            lines.append(each)
        else:
            lines.append(json.dumps(transfer_body(a, b, each[0], linked=each[1], idempotency_key=f"k{number}")))
    bodies = [
        await client.post(
            "/transfers/batch", content="\n".join(lines), headers={"Content-Type": "application/x-ndjson"}
        )
        for _ in range(2)
    ]
    first, second = [[json.loads(line) for line in body.content.splitlines()] for body in bodies]
    assert [(each["outcome"], each["refusal"]) for each in first] == [
        ("refused", "linked_transfer_failed"),
        ("refused", "insufficient_funds"),
        ("posted", None),
        ("posted", None),
        *[("invalid", None)] * 4,
        ("posted", None),
        *[("invalid", None)] * 5,
        ("posted", None),
        ("invalid", None),
    ]
    assert ["linked" in (each["detail"] or "") for each in first[4:]] == [
        *(False, True, False, True, False),
        *(True, False, True, False, True),
        *(False, True),
    ]
    assert second == [each | {"replayed": each["outcome"] != "invalid"} for each in first]
    assert await balances(client, a, b) == [68, 32]


async def test_a_chain_of_lines_is_never_split_between_transactions(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 10_000), await make_account(client)
    longest = [{"linked": True}] * (MAX_LINKED - 1) + [{"linked": False}]
    over = [{"linked": True}] * (MAX_LINKED + 49) + [{"linked": False}]
    lines = [
        json.dumps(transfer_body(a, b, 1, idempotency_key=f"k{number}") | values)
        for number, values in enumerate([*[{"linked": False}] * 450, *longest, *over])
    ]
    body = await client.post(
        "/transfers/batch", content="\n".join(lines), headers={"Content-Type": "application/x-ndjson"}
    )
    outcomes = [json.loads(line)["outcome"] for line in body.content.splitlines()]
    assert outcomes == ["posted"] * 550 + ["invalid"] * (MAX_LINKED + 50)
    assert await balances(client, b) == [550]
