"""`Idempotency-Key` of the requests that create users and orders. The ledger's keys have tests of their own."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, text

from howdah import Database
from shop.identity.principals import Role
from shop.ledger import maintenance
from shop.users.models import User
from shop.web.models import IdempotentRequest
from shop_tests.support.factories import make_user
from shop_tests.support.identity import sign_in
from shop_tests.support.openapi import description
from shop_tests.support.problems import assert_problem

USER = {"email": "ada@example.com", "name": "Ada"}
NDJSON = {"Content-Type": "application/x-ndjson"}


async def count(stored: Database, model: type[Any]) -> int:
    async with stored.session() as session:
        return await session.scalar(select(func.count()).select_from(model)) or 0


def test_every_post_that_creates_something_accepts_a_key() -> None:
    """In a batch of transfers or accounts, each line has its own key. `/auth` has one-time tokens, or creates secrets
    that must not be stored."""
    without_key = {
        path
        for path, operations in description()["paths"].items()
        for parameters in [operations.get("post", {}).get("parameters", [])]
        if "post" in operations
        and not path.startswith("/auth/")
        and not any(each["name"] == "Idempotency-Key" for each in parameters)
    }
    assert without_key == {"/transfers/batch", "/accounts/batch"}


@pytest.mark.parametrize("path", ["/users", "/users/bulk", "/orders"])
async def test_a_retry_creates_nothing_and_gets_the_same_response(
    client: httpx.AsyncClient, stored: Database, path: str
) -> None:
    order = {"user_id": (await make_user(client))["id"], "items": [{"sku": "A", "quantity": 1, "unit_price_cents": 5}]}
    bodies: dict[str, Any] = {"/users": USER, "/users/bulk": [USER], "/orders": order}
    body: dict[str, Any] = {"json": bodies[path]}

    async def send(**other: Any) -> httpx.Response:
        return await client.post(path, headers={"Idempotency-Key": "k"}, **(body | other))

    first, *others = await asyncio.gather(*(send() for _ in range(5)))
    assert first.status_code == 201, first.text
    assert {(each.status_code, each.content, each.headers.get("location")) for each in others} == {
        (201, first.content, first.headers.get("location"))
    }
    replays = sorted(each.headers.get("idempotency-replayed", "") for each in [first, *others])
    assert replays == ["", "true", "true", "true", "true"]
    assert_problem(await send(json={}), 422, "idempotency-key-reused")
    assert_problem(await send(params={"a": "b"}), 422, "idempotency-key-reused")
    assert await count(stored, IdempotentRequest) == 1


async def test_ndjson_of_any_length_is_compared_as_a_whole(client: httpx.AsyncClient, stored: Database) -> None:
    lines = [f'{{"email": "user{number}@example.com", "name": "Ada"}}\n' for number in range(3000)]
    headers = {"Idempotency-Key": "k"} | NDJSON
    answers = [
        await client.post("/users/bulk", content="".join(lines[:end]), headers=headers) for end in (3000, 3000, 2999)
    ]
    assert [answer.status_code for answer in answers] == [201, 201, 422]
    assert answers[1].headers["idempotency-replayed"] == "true"
    assert await count(stored, User) == 3000


async def test_a_rejected_user_uses_no_key_and_principals_have_their_own_keys(client: httpx.AsyncClient) -> None:
    await make_user(client, email="ada@example.com")
    for name in ("grace", "bob"):
        headers = {"Idempotency-Key": "k"} | sign_in(Role.OPERATOR)
        assert_problem(await client.post("/users", json=USER, headers=headers), 409, "unique-violation")
        other = USER | {"email": f"{name}@example.org"}
        created = await client.post("/users", json=other, headers=headers)
        assert (created.status_code, created.json()["email"]) == (201, other["email"])
        assert "idempotency-replayed" not in created.headers


async def test_the_maintenance_deletes_old_responses(client: httpx.AsyncClient, stored: Database) -> None:
    for key in ("old", "new"):
        await client.post("/users", json={"email": f"{key}@example.com", "name": "A"}, headers={"Idempotency-Key": key})
    async with stored.begin() as session:
        change = "UPDATE idempotent_requests SET created_at = created_at - interval '2 days' WHERE key = 'old'"
        await session.execute(text(change))
    assert await maintenance.delete_old_keys(stored, timedelta(days=1)) == 1
    assert await count(stored, IdempotentRequest) == 1
