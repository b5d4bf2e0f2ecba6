"""Nothing that a deleted user has got works any longer."""

from __future__ import annotations

import httpx
from sqlalchemy import select

from howdah import Database
from shop.identity.models import SignInSession
from shop.identity.revocation import Revocations
from shop_tests.support.people import Mailbox, bearer, new_address, post, sign_in_as_admin, sign_up


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


async def test_other_processes_read_that_the_sessions_have_ended(
    anonymous: httpx.AsyncClient, stored: Database, mailbox: Mailbox
) -> None:
    admin, deleted = await sign_in_as_admin(anonymous, stored), await sign_up(anonymous, mailbox, new_address())
    other_process = Revocations(stored)
    await other_process.poll()
    await delete_user(anonymous, bearer(admin), deleted["user_id"])
    await other_process.poll()
    async with stored.session(read_only=True) as session:
        rows = await session.scalars(select(SignInSession).where(SignInSession.user_id.is_(None)))
        [ended] = rows.all()
    assert ended.id in other_process._forget_at
    assert (ended.address, ended.network, ended.user_agent) == (None, None, None)
