"""`POST /transfers/batch`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from howdah import Database
from howdah.fastapi import MAX_LINE_BYTES
from shop.ledger.check import check_ledger
from shop.ledger.http.transfer_batch import BATCH_LINES
from shop.ledger.transfer_schemas import BatchLineOut
from shop_tests.support.factories import balances, make_account, transfer
from shop_tests.support.problems import assert_problem

NDJSON = {"Content-Type": "application/x-ndjson"}


def line(source: dict[str, Any], target: dict[str, Any], amount: Any, key: str, **values: Any) -> str:
    body = {"from_account_id": source["id"], "to_account_id": target["id"], "amount": amount, "idempotency_key": key}
    return json.dumps(body | values)


async def batch(client: httpx.AsyncClient, *lines: str) -> list[dict[str, Any]]:
    response = await client.post("/transfers/batch", content="\n".join(lines).encode(), headers=NDJSON)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    answers = [json.loads(answer) for answer in response.content.splitlines()]
    assert [BatchLineOut.model_validate_json(answer).line for answer in response.content.splitlines()] == [
        answer["line"] for answer in answers
    ]
    return answers


async def test_each_line_is_answered_in_order(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    answers = await batch(
        client,
        line(b, a, 10, "k1"),
        line(a, b, 60, "k2", description="rent"),
        line(b, a, 10, "k3"),
        line(a, a, 1, "k4"),
        line(a, {"id": str(uuid4())}, 1, "k5"),
    )
    assert [answer["line"] for answer in answers] == [1, 2, 3, 4, 5]
    assert [answer["outcome"] for answer in answers] == ["refused", "posted", "posted", "refused", "refused"]
    assert [answer["refusal"] for answer in answers] == [
        "insufficient_funds",
        None,
        None,
        "same_account",
        "unknown_account",
    ]
    assert answers[1]["transfer"] == (await client.get(f"/transfers/{answers[1]['transfer']['id']}")).json()
    assert await balances(client, a, b) == [50, 50]


@pytest.mark.parametrize(
    "bad",
    [
        "nonsense",
        "{}",
        "[]",
        "1",
        "NaN",
        "[" * 10_000,
        '{"amount": ' + "9" * 5_000 + "}",
        "x" * (MAX_LINE_BYTES + 1),
        "\ufeff{}",
    ],
)
async def test_an_unreadable_line_is_reported_and_the_other_lines_are_posted(
    client: httpx.AsyncClient, bad: str
) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    answers = await batch(client, line(a, b, 1, "k1"), "", bad, line(a, b, 1, "k2"))
    assert [(answer["line"], answer["outcome"]) for answer in answers] == [(1, "posted"), (3, "invalid"), (4, "posted")]
    assert answers[1]["detail"]
    assert len(answers[1]["detail"]) < 200
    assert await balances(client, a, b) == [98, 2]


@pytest.mark.parametrize(
    "change",
    [
        {"amount": 0},
        {"amount": True},
        {"amount": "1"},
        {"amount": 10**30},
        {"description": "\x00"},
        {"description": "\ud800"},
        {"idempotency_key": ""},
        {"idempotency_key": "\x00"},
        {"idempotency_key": "x" * 256},
        {"idempotency_key": None},
        {"extra": 1},
        {"from_account_id": "1"},
    ],
)
async def test_an_invalid_line_is_rejected_and_the_other_lines_are_posted(
    client: httpx.AsyncClient, change: dict[str, Any]
) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    bad = json.dumps(json.loads(line(a, b, 1, "k2")) | change)
    answers = await batch(client, line(a, b, 1, "k1"), bad, line(a, b, 1, "k3"))
    assert [answer["outcome"] for answer in answers] == ["posted", "invalid", "posted"]
    assert await balances(client, a, b) == [98, 2]


async def test_bytes_that_are_not_utf8_fail_only_their_line(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    body = b"\xff\xfe\n" + line(a, b, 1, "k").encode() + b"\r\n"
    response = await client.post("/transfers/batch", content=body, headers=NDJSON)
    assert [json.loads(answer)["outcome"] for answer in response.content.splitlines()] == ["invalid", "posted"]


async def test_an_empty_batch_has_an_empty_response(client: httpx.AsyncClient) -> None:
    assert await batch(client, "") == []
    assert await batch(client, "", "  ", "") == []


async def test_a_body_of_another_media_type_is_rejected(client: httpx.AsyncClient) -> None:
    for kind in ("application/json", "text/plain"):
        response = await client.post("/transfers/batch", content=b"{}", headers={"Content-Type": kind})
        assert_problem(response, 415, "unsupported-media-type")
        assert response.headers["accept-post"] == "application/x-ndjson"


async def test_a_key_used_twice_in_a_batch_is_decided_once(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    answers = await batch(
        client,
        line(a, b, 10, "ten"),
        line(a, b, 10, "ten"),
        line(a, b, 11, "ten"),
        line(a, b, 999, "much"),
        line(a, b, 999, "much"),
    )
    assert [(answer["refusal"], answer["replayed"]) for answer in answers] == [
        (None, False),
        (None, True),
        ("key_reused", False),
        ("insufficient_funds", False),
        ("insufficient_funds", True),
    ]
    assert answers[0]["transfer"] == answers[1]["transfer"]
    assert await balances(client, a, b) == [90, 10]


async def test_keys_are_shared_with_single_transfers(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    moved = await transfer(client, a, b, 10, key="k")
    answers = await batch(client, line(a, b, 10, "k"), line(a, b, 11, "k"))
    assert (answers[0]["transfer"], answers[0]["replayed"]) == (moved, True)
    assert answers[1]["refusal"] == "key_reused"


async def test_a_long_batch_with_a_large_body_is_answered_completely_and_replayed(
    client: httpx.AsyncClient, stored: Database
) -> None:
    """More lines than one transaction posts, and more bytes than the socket buffers hold, in both directions: the
    client sends the whole body before it reads."""
    a, b = await make_account(client, 10**6), await make_account(client)
    count = 2 * BATCH_LINES + 100
    padding = "é" * 500
    lines = [line(a, b, n, f"k{n}", description=f"{n} {padding}"[:500]) for n in range(1, count + 1)]
    lines[700] = "nonsense"
    first = await batch(client, *lines)
    assert [answer["line"] for answer in first] == list(range(1, count + 1))
    assert [n for n, answer in enumerate(first) if answer["outcome"] != "posted"] == [700]
    moved = count * (count + 1) // 2 - 701
    assert await balances(client, a, b) == [10**6 - moved, moved]

    async def one_line_at_a_time() -> AsyncIterator[bytes]:
        for each in lines:
            yield each.encode() + b"\n"

    second = await client.post("/transfers/batch", content=one_line_at_a_time(), headers=NDJSON)
    assert [json.loads(answer) for answer in second.content.splitlines()] == [
        answer | {"replayed": answer["outcome"] == "posted"} for answer in first
    ]
    assert await balances(client, a, b) == [10**6 - moved, moved]
    async with stored.session() as session:
        assert (await check_ledger(session)).faults == {}
