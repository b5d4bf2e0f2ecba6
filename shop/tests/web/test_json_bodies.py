"""JSON bodies that two parsers may read differently are rejected on every route, and no money moves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from howdah.fastapi import StrictJSONRoute
from shop.ledger.http.account_routes import router as account_routes
from shop.ledger.http.transfer_routes import router as transfer_routes
from shop.orders.routes import router as order_routes
from shop.users.routes import router as user_routes
from shop_tests.support.factories import balances, make_account, make_order, make_user, transfer
from shop_tests.support.problems import assert_problem

JSON = {"Content-Type": "application/json"}
NDJSON = {"Content-Type": "application/x-ndjson"}


def test_every_route_of_the_service_reads_its_body_strictly() -> None:
    for router in (account_routes, order_routes, transfer_routes, user_routes):
        assert all(isinstance(route, StrictJSONRoute) for route in router.routes)


def twice(body: dict[str, Any], name: str, *, escaped: bool = False) -> str:
    """The JSON of the body, in which one name occurs twice with the same value."""
    again = "".join(f"\\u{ord(letter):04x}" for letter in name) if escaped else name
    return json.dumps(body)[:-1] + f', "{again}": {json.dumps(body[name])}}}'


@pytest.mark.parametrize("escaped", [False, True])
async def test_a_duplicate_name_is_rejected_on_every_route_that_moves_money(
    client: httpx.AsyncClient, escaped: bool
) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    moved = await transfer(client, a, b, 10)
    order = await make_order(client, (await make_user(client))["id"])
    accounts = {"from_account_id": a["id"], "to_account_id": b["id"]}
    body = accounts | {"amount": 1, "description": "rent", "metadata": {"region": "north"}}
    held = await client.post(
        "/transfers", json=accounts | {"amount": 5, "pending_seconds": 60}, headers={"Idempotency-Key": "hold"}
    )
    nested = json.dumps(body).replace('{"region"', '{"region": "south", "region"')
    account = {"name": "A", "currency": "GBP", "overdraft_limit": 0}
    requests: list[tuple[str, str, str, Sequence[str | int]]] = [
        *(("POST", "/transfers", twice(body, name, escaped=escaped), [name]) for name in body),
        ("POST", "/transfers", nested, ["metadata", "region"]),
        (
            "POST",
            "/transfers/linked",
            f'{{"transfers": [{json.dumps(body)}, {twice(body, "amount", escaped=escaped)}]}}',
            ["transfers", 1, "amount"],
        ),
        ("POST", "/transfers/linked", twice({"transfers": [body, body]}, "transfers"), ["transfers"]),
        *(
            ("POST", f"/transfers/{each['id']}/{verb}", twice({"amount": 1}, "amount", escaped=escaped), ["amount"])
            for each, verb in ((held.json(), "post"), (held.json(), "void"), (moved, "reverse"))
        ),
        ("POST", f"/orders/{order['id']}/pay", twice(accounts, "to_account_id", escaped=escaped), ["to_account_id"]),
        ("POST", "/accounts", twice(account, "overdraft_limit", escaped=escaped), ["overdraft_limit"]),
        ("PATCH", f"/accounts/{a['id']}", twice({"overdraft_limit": 5}, "overdraft_limit"), ["overdraft_limit"]),
    ]
    before = await balances(client, a, b)
    for method, path, content, place in requests:
        headers = JSON | {"Idempotency-Key": str(uuid4()), "If-Match": "*"}
        response = await client.request(method, path, content=content, headers=headers)
        problem = assert_problem(response, 422, "validation")
        [error] = problem["errors"]
        assert (error["loc"], error["type"]) == (["body", *place], "json_duplicate_name"), path
        assert f"'{place[-1]}' occurs more than once" in error["msg"]
    assert await balances(client, a, b) == before
    assert (await client.get(f"/accounts/{a['id']}")).json()["held"] == 5


async def test_a_body_with_a_duplicate_name_uses_no_idempotency_key(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    body = {"from_account_id": a["id"], "to_account_id": b["id"], "amount": 1}
    headers = JSON | {"Idempotency-Key": "k"}
    refused = await client.post("/transfers", content=twice(body, "amount"), headers=headers)
    assert refused.status_code == 422
    posted = await client.post("/transfers", json=body | {"amount": 2}, headers=headers)
    assert (posted.status_code, posted.json()["amount"]) == (201, 2)


@pytest.mark.parametrize(
    "amount",
    [
        "1.0",
        "1e2",
        "1E0",
        "-0",
        "NaN",
        "Infinity",
        "1e999",
        "true",
        '"1"',
        "null",
        "9" * 5_000,
        "1" + "0" * 30,
        "[1]",
        "01",
    ],
    ids=lambda value: value[:10],
)
async def test_an_amount_that_is_no_integer_is_rejected(client: httpx.AsyncClient, amount: str) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    body = json.dumps({"from_account_id": a["id"], "to_account_id": b["id"]})[:-1] + f', "amount": {amount}}}'
    headers = JSON | {"Idempotency-Key": "k"}
    alone = await client.post("/transfers", content=body, headers=headers)
    linked = await client.post("/transfers/linked", content=f'{{"transfers": [{body}, {body}]}}', headers=headers)
    batch = await client.post("/transfers/batch", content=body[:-1] + ', "idempotency_key": "b"}', headers=NDJSON)
    assert alone.status_code in (400, 422)
    assert linked.status_code in (400, 422)
    assert batch.json()["outcome"] == "invalid"
    assert len(batch.json()["detail"]) < 200
    assert await balances(client, a, b) == [100, 0]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
async def test_a_body_in_another_encoding_is_rejected(client: httpx.AsyncClient, encoding: str) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    body = {"from_account_id": a["id"], "to_account_id": b["id"], "amount": 1, "description": "café"}
    content = json.dumps(body, ensure_ascii=False).encode(encoding)
    headers = JSON | {"Idempotency-Key": "k"}
    assert (await client.post("/transfers", content=content, headers=headers)).status_code in (400, 422)
    marked = await client.post("/transfers", content=b"\xef\xbb\xbf" + json.dumps(body).encode(), headers=headers)
    assert (marked.status_code, marked.json()["description"]) == (201, "café")


async def test_a_line_with_a_duplicate_name_is_invalid_and_fails_alone(client: httpx.AsyncClient) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    accounts = {"from_account_id": a["id"], "to_account_id": b["id"]}

    def body(number: int) -> dict[str, Any]:
        return accounts | {"amount": 1, "idempotency_key": f"k{number}", "metadata": {"x": "y"}, "linked": False}

    names = [*body(0)]
    lines = [
        json.dumps(body(0)),
        *(twice(body(number), name) for number, name in enumerate(names, 1)),
        *(twice(body(number), name, escaped=True) for number, name in enumerate(names, 20)),
        json.dumps(body(40)).replace('{"x"', '{"x": "z", "x"'),
        json.dumps(body(41)),
    ]
    response = await client.post("/transfers/batch", content="\n".join(lines), headers=NDJSON)
    first, *bad, last = [json.loads(answer) for answer in response.content.splitlines()]
    assert (first["outcome"], last["outcome"]) == ("posted", "posted")
    assert [answer["outcome"] for answer in bad] == ["invalid"] * (2 * len(names) + 1)
    for answer, name in zip(bad, [*names, *names, "x"], strict=True):
        assert answer["detail"] == f"the name '{name}' occurs more than once in one object: send it once"
    assert await balances(client, a, b) == [98, 2]


@pytest.mark.parametrize(
    "linked",
    [
        '"linked": true, "linked": false',
        '"linked": false, "linked": true',
        r'"linked": false, "\u006cinked": true',
        '"linked": true, "linked": true',
        '"linked": true, "amount": 2',
        '"linked": true, "idempotency_key": "again"',
        '"linked": "yes"',
        '"linked": 1',
        '"linked": true, "amount": NaN',
        '"linked": true, "broken',
    ],
)
@pytest.mark.parametrize("place", [0, 1])
async def test_an_invalid_line_of_a_chain_prevents_the_whole_chain(
    client: httpx.AsyncClient, linked: str, place: int
) -> None:
    a, b = await make_account(client, 100), await make_account(client)
    body = {"from_account_id": a["id"], "to_account_id": b["id"], "amount": 1}
    chain = [json.dumps(body | {"idempotency_key": f"k{n}", "linked": n < 2}) for n in range(3)]
    chain[place] = json.dumps(body | {"idempotency_key": f"k{place}"})[:-1] + f", {linked}}}"
    lines = [*chain, json.dumps(body | {"idempotency_key": "after"})]
    response = await client.post("/transfers/batch", content="\n".join(lines), headers=NDJSON)
    outcomes = [json.loads(answer)["outcome"] for answer in response.content.splitlines()]
    assert outcomes == ["invalid", "invalid", "invalid", "posted"]
    assert await balances(client, a, b) == [99, 1]


@pytest.mark.parametrize("form", ["urn:uuid:{}", "{{{}}}", "{:.8}"])
async def test_another_spelling_of_an_account_id_is_the_same_account_or_rejected(
    client: httpx.AsyncClient, form: str
) -> None:
    """All spellings of a UUID have one meaning, unlike those of numbers and times."""
    a, b = await make_account(client, 100), await make_account(client)
    body = {"from_account_id": a["id"], "to_account_id": b["id"], "amount": 1}
    first = await client.post("/transfers", json=body, headers={"Idempotency-Key": "k"})
    body["from_account_id"] = form.format(a["id"])
    second = await client.post("/transfers", json=body, headers={"Idempotency-Key": "k"})
    if second.status_code == 201:
        assert (second.json(), second.headers["idempotency-replayed"]) == (first.json(), "true")
    else:
        assert_problem(second, 422, "validation")
    body["from_account_id"] = UUID(a["id"]).int
    assert_problem(await client.post("/transfers", json=body, headers={"Idempotency-Key": "k"}), 422, "validation")


@pytest.mark.parametrize("kind", [JSON, NDJSON], ids=["array", "lines"])
async def test_a_duplicate_name_in_a_bulk_body_is_reported_with_its_line(
    client: httpx.AsyncClient, kind: dict[str, str]
) -> None:
    users = ['{"email": "a@example.com", "name": "A"}', '{"email": "b@example.com", "name": "B", "name": "C"}']
    content = f"[{','.join(users)}]" if kind is JSON else "\n".join(users)
    response = await client.post("/users/bulk", content=content, headers=kind)
    problem = assert_problem(response, 422, "invalid-line", line=2)
    assert "the name 'name' occurs more than once" in problem["detail"]
    assert (await client.get("/users")).json()["items"] == []
