"""What each role may do with orders. To a customer, an order of another user is like a missing one.

Row-level security is off for customers, so that only the rules are tested.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import httpx
import pytest

from shop.identity.principals import Role
from shop.orders import rules
from shop_tests.support.factories import balances, make_account, make_order, make_user
from shop_tests.support.identity import sign_in
from shop_tests.support.problems import assert_problem, assert_same_problem
from shop_tests.support.row_security import disable_posted_by, disable_row_security

ITEMS = [{"sku": "TEA", "quantity": 1, "unit_price_cents": 10}]


@pytest.fixture(autouse=True)
def _first_line_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    disable_row_security(monkeypatch)


def as_customer(user: Mapping[str, Any]) -> dict[str, str]:
    return sign_in(Role.CUSTOMER, user["id"])


async def pay(
    client: httpx.AsyncClient, headers: dict[str, str], order_id: str, source: str, target: str
) -> httpx.Response:
    body = {"from_account_id": source, "to_account_id": target}
    key = {"Idempotency-Key": str(uuid4())}
    return await client.post(f"/orders/{order_id}/pay", json=body, headers=headers | key)


async def test_a_customer_places_orders_only_for_themselves(client: httpx.AsyncClient) -> None:
    ada, bob = await make_user(client), await make_user(client)
    own = as_customer(ada)
    for body in ({}, {"user_id": None}, {"user_id": ada["id"]}):
        placed = await client.post("/orders", json={"items": ITEMS} | body, headers=own)
        assert (placed.status_code, placed.json()["user_id"]) == (201, ada["id"])
        assert (await client.get(placed.headers["location"], headers=own)).json() == placed.json()
    foreign, missing = [
        await client.post("/orders", json={"items": ITEMS, "user_id": id_}, headers=own)
        for id_ in (bob["id"], str(uuid4()))
    ]
    assert_same_problem(foreign, missing, status=404)
    for field in ("status", "total_cents", "reference", "id", "placed_at"):
        forged = await client.post("/orders", json={"items": ITEMS, field: "paid"}, headers=own)
        assert_problem(forged, 422, "validation")
    assert (await client.get("/orders", params={"user_id": bob["id"]})).json()["items"] == []


async def test_a_customer_lists_and_exports_only_their_own_orders(client: httpx.AsyncClient) -> None:
    ada, bob = await make_user(client), await make_user(client)
    hers = [(await make_order(client, ada["id"], price))["id"] for price in (30, 10, 20)]
    his = [(await make_order(client, bob["id"], price))["id"] for price in (15, 25)]
    own = as_customer(ada)

    async def ids(**parameters: str) -> list[str]:
        listed = (await client.get("/orders", params=parameters, headers=own)).json()["items"]
        exported = await client.get("/orders/export", params=parameters, headers=own)
        table = await client.get("/orders/export", params=parameters | {"format": "csv"}, headers=own)
        found = [each["id"] for each in listed]
        assert [json.loads(line)["id"] for line in exported.iter_lines()] == found
        assert [row["id"] for row in csv.DictReader(io.StringIO(table.text))] == found
        return found

    assert await ids() == await ids(user_id=ada["id"]) == hers
    assert await ids(sort="-total_cents") == [hers[0], hers[2], hers[1]]
    assert await ids(total_from="15", total_to="25") == [hers[2]]
    assert await ids(user_id=bob["id"]) == await ids(user_id=str(uuid4())) == []
    of_admin = (await client.get("/orders", params={"limit": 1})).json()["next"]
    of_bob = (await client.get("/orders", params={"limit": 1}, headers=as_customer(bob))).json()["next"]
    for cursor in (of_admin, of_bob):
        stolen = await client.get("/orders", params={"after": cursor}, headers=own)
        assert_problem(stolen, 400, "invalid-cursor")
    assert [each["id"] for each in (await client.get("/orders", headers=sign_in(Role.OPERATOR))).json()["items"]] == [
        *hers,
        *his,
    ]


async def test_an_order_of_another_user_is_like_a_missing_one_in_batched_reads(client: httpx.AsyncClient) -> None:
    users = [await make_user(client) for _ in range(3)]
    orders = [await make_order(client, user["id"]) for user in users]
    etag = (await client.get(f"/orders/{orders[0]['id']}")).headers["etag"]
    for headers in ({}, {"If-None-Match": etag}, {"If-None-Match": "*"}):
        for method in ("GET", "HEAD"):
            foreign, missing = [
                await client.request(method, f"/orders/{id_}", headers=as_customer(users[1]) | headers)
                for id_ in (orders[0]["id"], str(uuid4()))
            ]
            assert_same_problem(foreign, missing, status=404)

    async def read(user: dict[str, Any], order: dict[str, Any]) -> int:
        return (await client.get(f"/orders/{order['id']}", headers=as_customer(user))).status_code

    statuses = await asyncio.gather(*(read(user, order) for user in users for order in orders for _ in range(3)))
    assert statuses == [200 if user == order else 404 for user in range(3) for order in range(3) for _ in range(3)]
    own = await client.get(f"/orders/{orders[1]['id']}", headers=as_customer(users[1]) | {"If-None-Match": "*"})
    assert own.status_code == 304


async def test_a_customer_pays_their_own_order_from_their_own_account_to_the_shop(client: httpx.AsyncClient) -> None:
    ada, bob = await make_user(client), await make_user(client)
    hers, his = await make_account(client, 100, user_id=ada["id"]), await make_account(client, 100, user_id=bob["id"])
    spare, till = await make_account(client, user_id=ada["id"]), await make_account(client)
    order, bobs_order = await make_order(client, ada["id"], 10), await make_order(client, bob["id"], 10)
    own = as_customer(ada)
    assert_same_problem(
        await pay(client, own, bobs_order["id"], hers["id"], till["id"]),
        await pay(client, own, str(uuid4()), hers["id"], till["id"]),
        status=404,
    )
    unknown = await pay(client, own, order["id"], str(uuid4()), till["id"])
    assert_problem(unknown, 422, "unknown-account")
    for source, target in (
        (his, till),  # an account of another customer
        (till, his),
        (hers, his),  # the money would stay with a customer
        (hers, spare),
        (hers, hers),
        (hers, {"id": str(uuid4())}),
    ):
        assert_same_problem(await pay(client, own, order["id"], source["id"], target["id"]), unknown, status=422)
    assert await balances(client, hers, his, spare, till) == [100, 100, 0, 0]
    paid = await pay(client, own, order["id"], hers["id"], till["id"])
    assert (paid.status_code, paid.json()["status"]) == (200, "paid")
    assert await balances(client, hers, till) == [90, 10]


async def test_customers_set_no_status_and_operators_place_and_pay_no_order(client: httpx.AsyncClient) -> None:
    ada = await make_user(client)
    order = await make_order(client, ada["id"])
    operator, till = sign_in(Role.OPERATOR, ada["id"]), await make_account(client)
    buyer = await make_account(client, 100, user_id=ada["id"])
    assert_problem(await client.post("/orders", json={"items": ITEMS}, headers=operator), 403, "not-allowed")
    assert_problem(await pay(client, operator, order["id"], buyer["id"], till["id"]), 403, "not-allowed")
    body = {"order_ids": [order["id"]], "status": "paid"}
    assert_problem(await client.patch("/orders/status", json=body, headers=as_customer(ada)), 403, "not-allowed")
    assert (await client.get(f"/orders/{order['id']}")).json()["status"] == "pending"
    assert (await client.patch("/orders/status", json=body, headers=sign_in(Role.OPERATOR))).json()["updated"] == 1


async def test_a_stored_order_is_not_replayed_to_another_principal_or_after_a_change_of_the_role(
    client: httpx.AsyncClient,
) -> None:
    ada, bob = await make_user(client), await make_user(client)
    key = {"Idempotency-Key": "k"}
    for_bob, for_ada = ({"items": ITEMS, "user_id": each["id"]} for each in (bob, ada))
    placed = await client.post("/orders", json=for_bob, headers=sign_in(Role.ADMIN, ada["id"]) | key)
    assert placed.status_code == 201
    demoted = await client.post("/orders", json=for_bob, headers=as_customer(ada) | key)
    assert_problem(demoted, 404, "not-found")
    for body in (for_bob, {"items": ITEMS}):
        others = await client.post("/orders", json=body, headers=as_customer(bob) | key)
        assert "idempotency-replayed" not in others.headers
    assert_problem(
        await client.post("/orders", json=for_ada, headers=as_customer(ada) | key), 422, "idempotency-key-reused"
    )


async def test_control_without_the_rules_a_customer_reads_lists_and_pays_for_others(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, bob = await make_user(client), await make_user(client)
    hers, spare = await make_account(client, 100, user_id=ada["id"]), await make_account(client, user_id=ada["id"])
    order = await make_order(client, bob["id"], 10)
    disable_posted_by(monkeypatch)
    for rule in (rules.OWN_ORDERS, rules.OWN_PAYING_ACCOUNTS):
        monkeypatch.setattr(rule, "find_customer", lambda principal: None)
    own = as_customer(ada)
    assert len((await client.get("/orders", headers=own)).json()["items"]) == 1
    assert (await client.get(f"/orders/{order['id']}", headers=own)).status_code == 200
    assert (await client.get("/orders/export", headers=own)).text
    assert (await pay(client, own, order["id"], hers["id"], spare["id"])).json()["status"] == "paid"
