"""`/users/{user_id}` and its order summary over HTTP."""

from __future__ import annotations

from uuid import uuid4

import httpx
import pytest

from shop_tests.support.factories import make_order, make_user
from shop_tests.support.problems import assert_problem


async def test_a_user_is_returned_with_their_orders_by_the_time_of_placing(client: httpx.AsyncClient) -> None:
    user, other = await make_user(client), await make_user(client)
    orders = [await make_order(client, user["id"], price) for price in (100, 200, 300)]
    await make_order(client, other["id"])

    response = await client.get(f"/users/{user['id']}")

    assert response.status_code == 200
    assert response.headers["etag"].startswith('"1-')
    assert [order["id"] for order in response.json()["orders"]] == [order["id"] for order in orders]
    assert [order["total_cents"] for order in response.json()["orders"]] == [100, 200, 300]
    assert set(response.json()["orders"][0]) == {"id", "reference", "status", "currency", "total_cents", "placed_at"}


async def test_a_read_with_the_current_etag_is_304_until_an_order_is_added(client: httpx.AsyncClient) -> None:
    user = await make_user(client)
    etag = (await client.get(f"/users/{user['id']}")).headers["etag"]

    same = await client.get(f"/users/{user['id']}", headers={"If-None-Match": etag})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)

    await make_order(client, user["id"])
    other = await client.get(f"/users/{user['id']}", headers={"If-None-Match": etag})
    assert (other.status_code, len(other.json()["orders"])) == (200, 1)
    assert other.headers["etag"] != etag


async def test_the_etag_of_a_user_with_orders_is_accepted_as_if_match_of_a_change(client: httpx.AsyncClient) -> None:
    user = await make_user(client)
    etag = (await client.get(f"/users/{user['id']}")).headers["etag"]
    await make_order(client, user["id"])  # doesn't change the version of the user
    for status in (200, 412):
        response = await client.patch(f"/users/{user['id']}", json={"name": "Grace"}, headers={"If-Match": etag})
        assert response.status_code == status


@pytest.mark.parametrize("path", ["/users/{}", "/users/{}/order-summary"])
async def test_an_unknown_user_is_not_found_and_an_invalid_id_is_rejected(client: httpx.AsyncClient, path: str) -> None:
    assert_problem(await client.get(path.format(uuid4())), 404, "not-found")
    for invalid in ("1", "x" * 500, "%00", "%ff", "0" * 33):
        assert_problem(await client.get(path.format(invalid)), 422, "validation")


async def test_the_order_summary_leaves_out_cancelled_and_refunded_orders(client: httpx.AsyncClient) -> None:
    user = await make_user(client)
    orders = [await make_order(client, user["id"], price) for price in (100, 201, 1000, 5000)]
    await client.patch("/orders/status", json={"order_ids": [orders[2]["id"]], "status": "cancelled"})
    await client.patch("/orders/status", json={"order_ids": [orders[3]["id"]], "status": "refunded"})

    summary = (await client.get(f"/users/{user['id']}/order-summary")).json()

    assert summary["user"] == user
    assert (summary["total_orders"], summary["total_spent_cents"], summary["avg_order_cents"]) == (2, 301, 150.5)
    assert summary["by_status"] == {
        "pending": {"orders": 2, "total_cents": 301},
        "cancelled": {"orders": 1, "total_cents": 1000},
        "refunded": {"orders": 1, "total_cents": 5000},
    }
    months = {order["placed_at"][:7] for order in orders}
    assert sum(summary["by_month"][month]["total_cents"] for month in months) == 301


async def test_the_summary_of_a_user_without_orders_has_zeros(client: httpx.AsyncClient) -> None:
    user = await make_user(client)
    summary = (await client.get(f"/users/{user['id']}/order-summary")).json()
    assert summary == {
        "user": user,
        "total_orders": 0,
        "total_spent_cents": 0,
        "avg_order_cents": 0.0,
        "by_status": {},
        "by_month": {},
    }
