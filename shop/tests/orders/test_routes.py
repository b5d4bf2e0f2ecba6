"""`/orders` over HTTP, except payments."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from shop_tests.support.factories import make_order, make_user, walk, walk_back
from shop_tests.support.problems import assert_problem

ITEM = {"sku": "TEA", "quantity": 2, "unit_price_cents": 150}


async def test_a_new_order_is_returned_with_its_items_and_its_total(client: httpx.AsyncClient) -> None:
    user = await make_user(client)
    items = [
        {"sku": " TEA ", "quantity": 2, "unit_price_cents": 150},
        {"sku": "CUP", "description": "A cup", "quantity": 1, "unit_price_cents": 0},
        {"sku": "TEA", "quantity": 10, "unit_price_cents": 33},
    ]
    response = await client.post("/orders", json={"user_id": user["id"], "items": items})

    assert response.status_code == 201
    order = response.json()
    assert response.headers["location"] == f"/orders/{order['id']}"
    assert order["total_cents"] == 2 * 150 + 0 + 10 * 33
    assert (order["status"], order["currency"], order["version"]) == ("pending", "GBP", 1)
    assert [order[name] for name in ("reference", "cancels_id", "transfer_id")] == [None] * 3
    assert order["items"] == [
        {"line_no": 1, "sku": "TEA", "description": None, "quantity": 2, "unit_price_cents": 150},
        {"line_no": 2, "sku": "CUP", "description": "A cup", "quantity": 1, "unit_price_cents": 0},
        {"line_no": 3, "sku": "TEA", "description": None, "quantity": 10, "unit_price_cents": 33},
    ]
    assert (await client.get(response.headers["location"])).json() == order


async def test_the_total_of_the_largest_order_can_be_stored(client: httpx.AsyncClient) -> None:
    user = await make_user(client)
    item = {"sku": "x" * 64, "description": "d" * 500, "quantity": 1_000_000, "unit_price_cents": 1_000_000_000}
    response = await client.post("/orders", json={"user_id": user["id"], "currency": "JPY", "items": [item] * 1_000})
    assert response.status_code == 201
    assert response.json()["total_cents"] == 10**18
    assert [item["line_no"] for item in response.json()["items"]] == list(range(1, 1_001))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"items": []}, id="no items"),
        pytest.param({"items": [ITEM] * 1_001}, id="too many items"),
        pytest.param({"items": None}, id="null"),
        pytest.param({"items": [ITEM | {"quantity": 0}]}, id="a quantity of zero"),
        pytest.param({"items": [ITEM | {"quantity": 1_000_001}]}, id="too large a quantity"),
        pytest.param({"items": [ITEM | {"quantity": True}]}, id="a boolean for a number"),
        pytest.param({"items": [ITEM | {"quantity": "2"}]}, id="a text for a number"),
        pytest.param({"items": [ITEM | {"quantity": 2.0}]}, id="a fraction"),
        pytest.param({"items": [ITEM | {"unit_price_cents": -1}]}, id="a negative price"),
        pytest.param({"items": [ITEM | {"unit_price_cents": 10**9 + 1}]}, id="too high a price"),
        pytest.param({"items": [ITEM | {"unit_price_cents": 10**400}]}, id="a huge price"),
        pytest.param({"items": [ITEM | {"sku": " "}]}, id="a blank article"),
        pytest.param({"items": [ITEM | {"sku": "x" * 65}]}, id="too long an article"),
        pytest.param({"items": [ITEM | {"sku": "\x00"}]}, id="an article with NUL"),
        pytest.param({"items": [ITEM | {"description": "\x00"}]}, id="a description with NUL"),
        pytest.param({"items": [ITEM | {"total": 1}]}, id="an extra field in an item"),
        pytest.param({"items": {"0": ITEM}}, id="an object for a list"),
        pytest.param({"total_cents": 1}, id="a total"),
        pytest.param({"status": "paid"}, id="a status"),
        pytest.param({"currency": "gbp"}, id="a currency in small letters"),
        pytest.param({"currency": "GBP\n"}, id="a currency and a line break"),
        pytest.param({"user_id": "1"}, id="a bad user"),
    ],
)
async def test_an_invalid_order_is_rejected(client: httpx.AsyncClient, change: dict[str, Any]) -> None:
    body = {"user_id": str(uuid4()), "items": [ITEM]} | change
    assert_problem(await client.post("/orders", json=body), 422, "validation")


async def test_an_order_of_an_unknown_user_is_rejected(client: httpx.AsyncClient) -> None:
    response = await client.post("/orders", json={"user_id": str(uuid4()), "items": [ITEM]})
    assert_problem(response, 409, "foreign-key-violation", constraint="fk_orders_user_id")
    assert (await client.get("/orders")).json()["items"] == []


async def test_an_unknown_order_is_not_found_and_an_invalid_id_is_rejected(client: httpx.AsyncClient) -> None:
    assert_problem(await client.get(f"/orders/{uuid4()}"), 404, "not-found")
    assert_problem(await client.get("/orders/nonsense"), 422, "validation")


async def test_pages_have_every_order_once_by_the_time_of_placing(client: httpx.AsyncClient) -> None:
    user = await make_user(client)
    orders = [(await make_order(client, user["id"]))["id"] for _ in range(7)]

    def ids(pages: list[list[dict[str, Any]]]) -> list[list[str]]:
        return [[order["id"] for order in page] for page in pages]

    assert ids(await walk(client, "/orders", limit=3)) == [orders[:3], orders[3:6], orders[6:]]
    assert ids(await walk_back(client, "/orders", limit=3)) == [orders[6:], orders[3:6], orders[:3]]


async def test_orders_are_filtered_by_user_status_and_time(client: httpx.AsyncClient) -> None:
    ada, grace = await make_user(client), await make_user(client)
    orders = [await make_order(client, user["id"]) for user in (ada, grace, ada, grace)]
    await client.patch("/orders/status", json={"order_ids": [orders[2]["id"]], "status": "shipped"})
    placed = [datetime.fromisoformat(order["placed_at"]) for order in orders]

    async def found(**filters: Any) -> list[int]:
        pages = await walk(client, "/orders", limit=1, **filters)
        ids = [order["id"] for order in orders]
        return [ids.index(order["id"]) for page in pages for order in page]

    assert await found(user_id=ada["id"]) == [0, 2]
    assert await found(user_id=uuid4()) == []
    assert await found(status="shipped") == [2]
    assert await found(status="pending") == [0, 1, 3]
    assert await found(placed_from=placed[1].isoformat()) == [1, 2, 3]
    assert await found(placed_before=placed[1].isoformat()) == [0]
    assert await found(placed_from=placed[1].isoformat(), placed_before=placed[3].isoformat()) == [1, 2]
    elsewhere = placed[1].astimezone(tz=None) + timedelta(microseconds=1)
    assert await found(placed_from=elsewhere.isoformat(), user_id=grace["id"], status="pending") == [3]


async def test_orders_are_filtered_by_their_total(client: httpx.AsyncClient) -> None:
    user = await make_user(client)
    orders = [(await make_order(client, user["id"], price))["id"] for price in (300, 0, 100, 200, 2**29)]

    async def found(**filters: Any) -> list[int]:
        pages = await walk(client, "/orders", limit=1, **filters)
        return [orders.index(order["id"]) for page in pages for order in page]

    assert await found(total_from=200) == [0, 3, 4]
    assert await found(total_to=100) == [1, 2]
    assert await found(total_from=100, total_to=200) == [2, 3]
    assert await found(total_from=0, total_to=2**63 - 1, user_id=user["id"], status="pending") == [0, 1, 2, 3, 4]
    assert await found(total_from=200, total_to=100) == []


@pytest.mark.parametrize(
    "query",
    [
        "status=lost",
        "status=PENDING",
        "user_id=1",
        "placed_from=2026-01-01T00:00:00",
        "placed_from=yesterday",
        "placed_before=1e300",
        "total_from=-1",
        "total_to=9223372036854775808",
        "total_to=1.5",
        "total=100",
        "limit=0",
        "offset=5",
        "after=x&before=y",
    ],
)
async def test_an_invalid_query_is_rejected(client: httpx.AsyncClient, query: str) -> None:
    assert_problem(await client.get(f"/orders?{query}"), 422, "validation")


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
async def test_a_time_that_has_no_utc_form_is_rejected(client: httpx.AsyncClient, time: str) -> None:
    assert_problem(await client.get("/orders", params={"placed_from": time}), 422, "validation")


async def test_the_status_of_many_orders_is_set_and_unknown_ids_are_returned(client: httpx.AsyncClient) -> None:
    user = await make_user(client)
    orders = [await make_order(client, user["id"]) for _ in range(3)]
    unknown = [str(uuid4()), str(uuid4())]
    ids = [unknown[0], orders[2]["id"], orders[0]["id"], unknown[1], orders[2]["id"], unknown[0]]

    response = await client.patch("/orders/status", json={"order_ids": ids, "status": "shipped"})

    assert response.status_code == 200
    assert response.json() == {"updated": 2, "missing": unknown}
    found = [(await client.get(f"/orders/{order['id']}")).json() for order in orders]
    assert [(order["status"], order["version"]) for order in found] == [("shipped", 2), ("pending", 1), ("shipped", 2)]
    assert found[0]["updated_at"] > orders[0]["updated_at"]
    assert found[1] == orders[1]


@pytest.mark.parametrize(
    "body",
    [
        {"order_ids": [str(uuid4())], "status": "lost"},
        {"order_ids": [str(uuid4())], "status": None},
        {"order_ids": [str(uuid4())]},
        {"order_ids": [], "status": "paid"},
        {"order_ids": ["1"], "status": "paid"},
        {"order_ids": str(uuid4()), "status": "paid"},
        {"order_ids": [None], "status": "paid"},
        {"order_ids": [str(uuid4())], "status": "paid", "force": True},
    ],
)
async def test_an_invalid_change_of_status_is_rejected(client: httpx.AsyncClient, body: Any) -> None:
    assert_problem(await client.patch("/orders/status", json=body), 422, "validation")


async def test_more_than_a_hundred_thousand_ids_are_rejected(client: httpx.AsyncClient) -> None:
    body = {"order_ids": [str(uuid4())] * 100_001, "status": "paid"}
    assert_problem(await client.patch("/orders/status", json=body), 422, "validation")


async def test_the_first_twenty_of_many_validation_errors_are_returned(client: httpx.AsyncClient) -> None:
    response = await client.patch("/orders/status", json={"order_ids": [""] * 10_000, "status": "paid"})
    assert len(assert_problem(response, 422, "validation")["errors"]) == 20


@pytest.mark.parametrize("sort", ["placed_at", "-placed_at", "total_cents", "-total_cents"])
async def test_orders_are_listed_in_the_chosen_order(client: httpx.AsyncClient, sort: str) -> None:
    user = await make_user(client)
    for total in (300, 100, 200):
        await make_order(client, user["id"], total)
    listed = [order for page in await walk(client, "/orders", limit=1, sort=sort) for order in page]
    values = [order[sort.removeprefix("-")] for order in listed]
    assert len(values) == 3
    assert values == sorted(values, reverse=sort.startswith("-"))
