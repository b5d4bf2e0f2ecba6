"""What each role may do with users. To a customer, another user is like a missing one.

Row-level security is off for customers, so that only the rules are tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import httpx
import pytest

from shop.identity.principals import Role
from shop.users import rules
from shop_tests.support.factories import make_order, make_user
from shop_tests.support.identity import sign_in
from shop_tests.support.problems import assert_problem, assert_same_problem
from shop_tests.support.row_security import disable_row_security

NDJSON = {"Content-Type": "application/x-ndjson"}
GRACE = {"email": "grace@example.com", "name": "Grace"}


@pytest.fixture(autouse=True)
def _first_line_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    disable_row_security(monkeypatch)


def as_customer(user: Mapping[str, Any]) -> dict[str, str]:
    return sign_in(Role.CUSTOMER, user["id"])


async def test_a_customer_reads_and_changes_only_themselves(client: httpx.AsyncClient) -> None:
    ada, bob = await make_user(client), await make_user(client)
    await make_order(client, bob["id"])
    own = as_customer(ada)
    etag = (await client.get(f"/users/{ada['id']}", headers=own)).headers["etag"]
    bobs_etag = (await client.get(f"/users/{bob['id']}")).headers["etag"]
    assert (await client.get(f"/users/{ada['id']}/order-summary", headers=own)).json()["user"] == ada
    changed = await client.patch(f"/users/{ada['id']}", json={"name": "Grace"}, headers=own | {"If-Match": etag})
    assert (changed.status_code, changed.json()["name"]) == (200, "Grace")
    for method, path, headers in (
        ("GET", "/users/{}", {}),
        ("HEAD", "/users/{}", {}),
        ("GET", "/users/{}", {"If-None-Match": bobs_etag}),
        ("GET", "/users/{}", {"If-None-Match": "*"}),
        ("GET", "/users/{}/order-summary", {}),
        ("HEAD", "/users/{}/order-summary", {}),
        ("PATCH", "/users/{}", {"If-Match": bobs_etag}),
        ("PATCH", "/users/{}", {"If-Match": '"9"'}),
        ("PATCH", "/users/{}", {"If-Match": "*"}),
    ):
        body: dict[str, Any] = {"json": {"name": "Eve"}} if method == "PATCH" else {}
        foreign, missing = [
            await client.request(method, path.format(id_), headers=own | headers, **body)
            for id_ in (bob["id"], str(uuid4()))
        ]
        assert_same_problem(foreign, missing, status=404)
    assert (await client.get(f"/users/{bob['id']}")).json()["name"] == "Ada"


async def test_the_list_of_a_customer_has_only_the_customer(client: httpx.AsyncClient) -> None:
    ada, bob = await make_user(client), await make_user(client)
    own = as_customer(ada)
    for parameters, expected in (
        ({}, [ada["id"]]),
        ({"limit": "1"}, [ada["id"]]),
        ({"email_prefix": ada["email"][:1]}, [ada["id"]]),
        ({"created_from": bob["created_at"]}, []),
    ):
        page = (await client.get("/users", params=parameters, headers=own)).json()
        assert [each["id"] for each in page["items"]] == expected
        assert (page["next"], page["previous"]) == (None, None)
    assert (await client.get("/users", params={"email_prefix": bob["email"]}, headers=own)).json()["items"] == []
    of_admin = (await client.get("/users", params={"limit": 1})).json()["next"]
    stolen = await client.get("/users", params={"after": of_admin}, headers=own)
    assert_problem(stolen, 400, "invalid-cursor")


async def test_only_staff_create_users_and_only_admins_delete_them(client: httpx.AsyncClient) -> None:
    ada = await make_user(client)
    customer, operator = as_customer(ada), sign_in(Role.OPERATOR)
    for path, content in (("/users", {"json": GRACE}), ("/users/bulk", {"json": [GRACE]})):
        assert_problem(await client.post(path, headers=customer, **content), 403, "not-allowed")
    for headers in (customer, operator):
        assert_problem(await client.delete(f"/users/{ada['id']}", headers=headers), 403, "not-allowed")
    assert (await client.post("/users", json=GRACE, headers=operator)).status_code == 201
    many = await client.post(
        "/users/bulk", content='{"email": "z@example.com", "name": "Z"}', headers=operator | NDJSON
    )
    assert many.status_code == 201
    assert (await client.delete(f"/users/{ada['id']}")).status_code == 204


async def test_only_an_admin_changes_an_address_and_a_customer_learns_no_address(client: httpx.AsyncClient) -> None:
    ada, bob = await make_user(client), await make_user(client)
    path = f"/users/{ada['id']}"
    for headers in (as_customer(ada), sign_in(Role.OPERATOR)):
        for email in (bob["email"], "new@example.com"):  # the first one would be a 409
            changed = await client.patch(path, json={"email": email}, headers=headers | {"If-Match": "*"})
            assert_problem(changed, 403, "not-allowed")
    same = {"email": ada["email"].upper(), "name": "Grace"}  # a form that sends every field
    for headers, status in ((as_customer(ada), 200), (sign_in(Role.OPERATOR), 403)):
        assert (await client.patch(path, json=same, headers=headers | {"If-Match": "*"})).status_code == status
    for field in ("id", "role", "version", "created_at"):
        forged = await client.patch(path, json={field: "x"}, headers=as_customer(ada) | {"If-Match": "*"})
        assert_problem(forged, 422, "validation")
    assert (await client.get(path)).json()["email"] == ada["email"]
    moved = await client.patch(path, json={"email": "new@example.com"}, headers={"If-Match": "*"})
    assert moved.json()["email"] == "new@example.com"


async def test_a_stored_answer_is_not_replayed_to_another_principal_or_after_a_change_of_the_role(
    client: httpx.AsyncClient,
) -> None:
    ada = await make_user(client)
    key = {"Idempotency-Key": "k"}
    created = await client.post("/users", json=GRACE, headers=sign_in(Role.OPERATOR, ada["id"]) | key)
    assert created.status_code == 201
    again = await client.post("/users", json=GRACE, headers=sign_in(Role.ADMIN, ada["id"]) | key)
    assert again.headers["idempotency-replayed"] == "true"
    for headers, status in ((sign_in(Role.OPERATOR), 409), (as_customer(ada), 403), (as_customer(created.json()), 403)):
        answer = await client.post("/users", json=GRACE, headers=headers | key)
        assert (answer.status_code, "idempotency-replayed" in answer.headers) == (status, False)


async def test_control_without_the_rule_a_customer_reads_and_lists_others(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, bob = await make_user(client), await make_user(client)
    monkeypatch.setattr(rules.OWN_USERS, "find_customer", lambda principal: None)
    own = as_customer(ada)
    assert len((await client.get("/users", headers=own)).json()["items"]) == 2
    assert (await client.get(f"/users/{bob['id']}", headers=own)).status_code == 200
