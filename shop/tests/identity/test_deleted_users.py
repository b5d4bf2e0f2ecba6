"""Nothing that a deleted user has got works any longer."""

from __future__ import annotations

import httpx

from howdah import Database
from shop_tests.support.people import bearer, post, sign_in_as_admin
from shop_tests.support.problems import assert_problem


async def delete_user(client: httpx.AsyncClient, admin: dict[str, str], user_id: str) -> None:
    response = await client.delete(f"/users/{user_id}", headers=admin | {"If-Match": "*"})
    assert response.status_code == 204, response.text


async def test_a_deleted_admin_is_no_admin_any_more(anonymous: httpx.AsyncClient, stored: Database) -> None:
    admin, deleted = await sign_in_as_admin(anonymous, stored), await sign_in_as_admin(anonymous, stored)
    body = {"name": "machine", "scopes": ["users:read"]}
    key = (await post(anonymous, "/auth/api-keys", headers=bearer(deleted), **body))["key"]
    assert (await anonymous.get("/users", headers={"X-API-Key": key})).status_code == 200
    await delete_user(anonymous, bearer(admin), deleted["user_id"])
    assert (await anonymous.get("/users", headers=bearer(deleted))).status_code == 401
    assert (await anonymous.get("/users", headers={"X-API-Key": key})).status_code == 401
    refreshed = await anonymous.post("/auth/refresh", json={"refresh_token": deleted["refresh_token"]})
    assert refreshed.status_code == 401
    assert (await anonymous.get("/users", headers=bearer(admin))).status_code == 200


async def test_nobody_deletes_their_own_user(anonymous: httpx.AsyncClient, stored: Database) -> None:
    admin = await sign_in_as_admin(anonymous, stored)
    response = await anonymous.delete(f"/users/{admin['user_id']}", headers=bearer(admin) | {"If-Match": "*"})
    assert_problem(response, 409, "own-user")
    assert (await anonymous.get("/auth/me", headers=bearer(admin))).status_code == 200
