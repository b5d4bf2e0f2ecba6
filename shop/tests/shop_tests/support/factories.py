"""Users, orders, accounts and transfers, created over HTTP."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any
from uuid import uuid4

import httpx

_numbers = count(1)


async def create(client: httpx.AsyncClient, path: str, body: Any, **options: Any) -> dict[str, Any]:
    response = await client.post(path, json=body, **options)
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


async def make_user(client: httpx.AsyncClient, **values: Any) -> dict[str, Any]:
    return await create(client, "/users", {"email": f"user{next(_numbers)}@example.com", "name": "Ada"} | values)


async def make_order(client: httpx.AsyncClient, user_id: str, *prices: int, **values: Any) -> dict[str, Any]:
    """Create a pending order with one item per price."""
    items = [{"sku": "TEA", "quantity": 1, "unit_price_cents": price} for price in prices or (100,)]
    return await create(client, "/orders", {"user_id": user_id, "items": items} | values)


async def make_account(client: httpx.AsyncClient, balance: int = 0, **values: Any) -> dict[str, Any]:
    """Create an account with this balance, which comes from another new account."""
    account = await create(client, "/accounts", {"name": "Current account", "currency": "GBP"} | values)
    if balance:
        world = await create(
            client, "/accounts", {"name": "World", "currency": account["currency"], "allows_negative": True}
        )
        await transfer(client, world, account, balance)
        account = (await client.get(f"/accounts/{account['id']}")).json()
    return account


async def change_account(client: httpx.AsyncClient, account: dict[str, Any], **changes: Any) -> httpx.Response:
    """Change the account, with its current ETag."""
    path = f"/accounts/{account['id']}"
    current = (await client.get(path)).headers["etag"]
    return await client.patch(path, json=changes, headers={"If-Match": current})


async def post_transfer(
    client: httpx.AsyncClient, source: dict[str, Any], target: dict[str, Any], amount: Any, *, key: str | None = None
) -> httpx.Response:
    return await client.post(
        "/transfers",
        json={"from_account_id": source["id"], "to_account_id": target["id"], "amount": amount},
        headers={"Idempotency-Key": key or str(uuid4())},
    )


async def transfer(
    client: httpx.AsyncClient, source: dict[str, Any], target: dict[str, Any], amount: int, *, key: str | None = None
) -> dict[str, Any]:
    response = await post_transfer(client, source, target, amount, key=key)
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


async def hold(
    client: httpx.AsyncClient, source: dict[str, Any], target: dict[str, Any], amount: int, **values: Any
) -> httpx.Response:
    body = {"from_account_id": source["id"], "to_account_id": target["id"], "amount": amount, "pending_seconds": 600}
    return await client.post("/transfers", json=body | values, headers={"Idempotency-Key": str(uuid4())})


async def settle(
    client: httpx.AsyncClient, pending: dict[str, Any], how: str, *, key: str | None = None, **body: Any
) -> httpx.Response:
    headers = {"Idempotency-Key": key or str(uuid4())}
    return await client.post(f"/transfers/{pending['id']}/{how}", json=body or None, headers=headers)


async def held_amount(client: httpx.AsyncClient, account: dict[str, Any]) -> int:
    found: int = (await client.get(f"/accounts/{account['id']}")).json()["held"]
    return found


async def balances(client: httpx.AsyncClient, *accounts: dict[str, Any]) -> list[int]:
    found = await asyncio.gather(*(client.get(f"/accounts/{account['id']}") for account in accounts))
    return [response.json()["balance"] for response in found]


async def walk(client: httpx.AsyncClient, path: str, **parameters: Any) -> list[list[dict[str, Any]]]:
    """The pages of a list, from the first to the last."""
    pages: list[list[dict[str, Any]]] = []
    after: dict[str, Any] = {}
    while True:
        response = await client.get(path, params=parameters | after)
        assert response.status_code == 200, response.text
        pages.append(response.json()["items"])
        if response.json()["next"] is None:
            return pages
        after = {"after": response.json()["next"]}


async def walk_back(client: httpx.AsyncClient, path: str, **parameters: Any) -> list[list[dict[str, Any]]]:
    """The pages of a list, from the last to the first."""
    last: dict[str, Any] = {}
    while True:
        page = (await client.get(path, params=parameters | last)).json()
        if page["next"] is None:
            break
        last = {"after": page["next"]}
    pages = [page["items"]]
    while page["previous"] is not None:
        page = (await client.get(path, params=parameters | {"before": page["previous"]})).json()
        pages.append(page["items"])
    return pages
