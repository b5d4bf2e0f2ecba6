"""Responses of the service are compared with its OpenAPI description."""

from __future__ import annotations

from uuid import uuid4

import httpx
import pytest

from shop_tests.support.factories import make_account, make_order, make_user, transfer
from shop_tests.support.http_service import create_service, http_client
from shop_tests.support.openapi import assert_matches_openapi, description

NDJSON = {"Content-Type": "application/x-ndjson"}


async def test_every_status_that_the_service_returns_is_described(client: httpx.AsyncClient) -> None:
    user = await make_user(client)
    duplicate = {"email": user["email"], "name": "Another"}
    path, nobody = f"/users/{user['id']}", f"/users/{uuid4()}"
    etag = (await client.get(path)).headers["etag"]
    answers = [
        await client.get(path, headers={"If-None-Match": etag}),
        await client.get("/users", params={"after": "damaged"}),
        await client.post("/transfers", json={}, headers={"Idempotency-Key": "k"}),
        await client.post("/users", content=b"\xff", headers={"Content-Type": "application/json"}),
        await client.get(nobody),
        await client.post("/users", json=duplicate),
        await client.patch(path, json={"name": "B"}, headers={"If-Match": '"9"'}),
        await client.delete(path, headers={"If-Match": '"9"'}),
        await client.post("/users/bulk", content=b"", headers={"Content-Type": "text/plain"}),
        await client.post("/users/bulk", content=b"{}", headers=NDJSON),
        await client.get("/users/no-uuid"),
        await client.patch(path, json={"name": "B"}),
        await client.delete(path),
    ]
    # the `client` fixture has compared each of them with the description
    assert [answer.status_code for answer in answers] == [
        *(304, 400, 422, 400, 404, 409, 412, 412, 415, 422, 422, 428, 204),
    ]


async def test_every_list_matches_the_openapi_description(client: httpx.AsyncClient) -> None:
    user = await make_user(client)
    await make_order(client, user["id"])
    account, other = await make_account(client, 100), await make_account(client)
    await transfer(client, account, other, 5)
    for path in ("/users", "/orders", "/accounts", "/transfers", f"/accounts/{account['id']}/entries"):
        for parameters in ({}, {"limit": 1}):
            answer = await client.get(path, params=parameters)
            assert answer.json().keys() == {"items", "next", "previous"}, path
            assert answer.json()["items"]
    described = description()["paths"]
    for path, item in {"/users": "UserOut", "/orders": "OrderOut", "/transfers": "TransferOut"}.items():
        schema = described[path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/PageOut_{item}_"}


async def test_the_responses_without_a_database_are_described() -> None:
    async with http_client(create_service("postgresql://nobody@127.0.0.1:1/nothing")) as client:
        client.event_hooks = {"response": [assert_matches_openapi]}
        key = {"Idempotency-Key": "k"}
        ids = {"from_account_id": str(uuid4()), "to_account_id": str(uuid4())}
        answers = [
            *[await client.get(f"/{name}") for name in ("users", "orders", "accounts", "transfers", "readyz")],
            *[await client.get(f"/{name}/{uuid4()}") for name in ("users", "orders", "accounts", "transfers")],
            await client.get("/orders/export"),
            await client.post("/users", json={"email": "ada@example.com", "name": "Ada"}),
            await client.post("/users/bulk", content=b'{"email": "ada@example.com", "name": "Ada"}', headers=NDJSON),
            await client.post("/transfers", json=ids | {"amount": 1}, headers=key),
            await client.post(f"/transfers/{uuid4()}/void", json={}, headers=key),
            await client.post(f"/orders/{uuid4()}/pay", json=ids, headers=key),
            await client.patch("/orders/status", json={"order_ids": [str(uuid4())], "status": "paid"}),
            await client.delete(f"/users/{uuid4()}"),
        ]
    assert {answer.status_code for answer in answers} == {503}


@pytest.mark.parametrize(
    ("status", "headers", "content"),
    [
        (418, {"Content-Type": "application/json"}, b"{}"),
        (200, {"Content-Type": "text/plain"}, b"{}"),
        (404, {"Content-Type": "application/json"}, b'{"type": "", "title": "", "status": 404}'),
        (503, {"Content-Type": "application/problem+json"}, b'{"type": "", "title": "", "status": 503}'),
        (200, {"Content-Type": "application/json"}, b'{"id": 5}'),
        (404, {"Content-Type": "application/problem+json"}, b'{"type": "", "title": "", "status": "404"}'),
    ],
    ids=["a status", "a media type", "not a problem", "without Retry-After", "a body", "a member"],
)
async def test_control_an_undescribed_response_is_noticed(status: int, headers: dict[str, str], content: bytes) -> None:
    request = httpx.Request("GET", f"http://test/users/{uuid4()}")
    with pytest.raises(AssertionError):
        await assert_matches_openapi(httpx.Response(status, headers=headers, content=content, request=request))
