"""Texts that people read, long texts of clients, and methods, in every feature."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from shop_tests.support.factories import make_account, make_order, make_user
from shop_tests.support.http_service import client_of, run_shop_serve

HIDDEN = "gnp\u202exe"
LONG = "x" * 5_000


def bodies(text: str, user_id: str) -> list[tuple[str, dict[str, Any]]]:
    """A request for each text that a client can store."""
    item = {"sku": "1", "quantity": 1, "unit_price_cents": 1}
    account = {"name": "Current", "currency": "GBP"}
    transfer = {"from_account_id": str(uuid4()), "to_account_id": str(uuid4()), "amount": 1}
    return [
        ("/users", {"email": "ada@example.com", "name": text}),
        ("/users", {"email": "ada@example.com", "name": "Ada", "country": text}),
        ("/orders", {"user_id": user_id, "items": [{**item, "sku": text}]}),
        ("/orders", {"user_id": user_id, "items": [{**item, "description": text}]}),
        ("/accounts", {**account, "name": text}),
        ("/accounts", {**account, "metadata": {text: "north"}}),
        ("/accounts", {**account, "metadata": {"region": text}}),
        ("/transfers", {**transfer, "description": text}),
        ("/transfers", {**transfer, "metadata": {text: "north"}}),
    ]


@pytest.mark.parametrize("text", [HIDDEN, "a\u200bb", LONG, "a\x00b"])
async def test_no_text_has_hidden_characters_and_none_is_repeated(client: httpx.AsyncClient, text: str) -> None:
    user = await make_user(client)
    for path, body in bodies(text, user["id"]):
        answer = await client.post(path, json=body, headers={"Idempotency-Key": str(uuid4())})
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:howdah:problem:validation"), (path, body)
        assert "x" * 101 not in answer.text


async def test_metadata_names_that_become_equal_are_rejected(client: httpx.AsyncClient) -> None:
    body = {"name": "Current", "currency": "GBP", "metadata": {"Zoë": "1", "Zoe\u0308": "2"}}
    answer = await client.post("/accounts", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["type"]) == (422, "equal_names")


@pytest.mark.parametrize(
    "path",
    [
        f"/{LONG}",
        f"/users/{LONG}",
        f"/users?after={LONG}",
        f"/orders?status={LONG}",
        f"/orders?sort={LONG}",
        f"/orders?placed_from={LONG}",
        f"/orders?total_from={LONG}",
        f"/users?{LONG}=1",
        f"/transfers?metadata[{LONG}]=1",
        f"/accounts?currency={LONG}",
    ],
)
async def test_a_long_parameter_is_not_repeated(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code in (400, 404, 422)
    assert "x" * 101 not in answer.text


async def test_head_is_answered_wherever_get_is(client: httpx.AsyncClient) -> None:
    user, account = await make_user(client), await make_account(client)
    order = await make_order(client, user["id"])
    paths = ["/users", f"/users/{user['id']}", f"/orders/{order['id']}", "/orders/export", f"/accounts/{account['id']}"]
    client.event_hooks = {}  # the description has no HEAD
    for path in (*paths, "/transfers", f"/users/{uuid4()}", "/healthz", "/metrics"):
        get, head = await client.get(path), await client.head(path)
        for name in ("content-length", "content-type", "etag", "cache-control", "x-content-type-options"):
            if path != "/metrics" or name != "content-length":
                assert head.headers.get(name) == get.headers.get(name), (path, name)
        assert (head.status_code, head.content) == (get.status_code, b"")


async def test_a_fixed_path_is_not_treated_as_an_id(client: httpx.AsyncClient) -> None:
    client.event_hooks = {}  # the description has no responses to undeclared methods
    for path, allowed in {"/orders/status": "OPTIONS, PATCH", "/users/bulk": "OPTIONS, POST"}.items():
        for method in ("GET", "HEAD", "DELETE"):
            answer = await client.request(method, path)
            assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        assert (await client.options(path)).headers["allow"] == allowed


async def test_the_internal_port_has_the_operators_pages(committed_url: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    settings = {"SHOP_INTERNAL_PORT": str(port)}
    async with (
        run_shop_serve(committed_url, tmp_path / "log", **settings) as (_, address),
        client_of(address) as public,
        client_of(f"http://127.0.0.1:{port}") as internal,
    ):
        for path in ("/metrics", "/docs", "/openapi.json"):
            assert (await public.get(path)).status_code == 404
            assert (await internal.get(path)).status_code == 200
        assert (await internal.get("/readyz")).status_code == 200
        assert (await internal.get("/users")).status_code == 404
        assert (await public.get("/users")).status_code == 200
        assert (await public.get("/users", headers={"Host": "evil.example"})).status_code == 421
