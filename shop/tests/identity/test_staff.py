"""Admins invite operators and admins, and change roles."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import select

from howdah import Database
from shop.identity import staff
from shop.identity.clients import Client
from shop.identity.context import Identity
from shop.identity.errors import RoleRefused
from shop.identity.models import Credential
from shop.identity.principals import Principal, Role
from shop_tests.support.identity import sign_in
from shop_tests.support.people import (
    PASSWORD,
    Mailbox,
    bearer,
    new_address,
    post,
    sign_in_as_admin,
    sign_up,
)


async def test_an_invited_operator_chooses_a_password_and_enrols_an_app(
    anonymous: httpx.AsyncClient, stored: Database, mailbox: Mailbox
) -> None:
    admin = bearer(await sign_in_as_admin(anonymous, stored))
    email = new_address()
    await post(anonymous, "/auth/invitations", headers=admin, email=email, name="Grace Hopper", role="operator")
    body = {"token": await mailbox.token_for(email), "password": PASSWORD}
    answers = await asyncio.gather(*(anonymous.post("/auth/invitations/acceptance", json=body) for _ in range(3)))
    assert sorted(each.status_code for each in answers) == [201, 400, 400]
    [accepted] = [each.json() for each in answers if each.status_code == 201]
    assert accepted.keys() == {"enrolment_token"}
    begun = await post(anonymous, "/auth/totp", **accepted)
    assert begun["uri"].startswith("otpauth://totp/Shop:")
    refused = await anonymous.post("/auth/sign-in", json={"email": email, "password": PASSWORD})
    assert refused.json()["type"] == "urn:howdah:problem:enrolment-required"


async def test_an_invitation_to_a_known_address_is_refused(
    anonymous: httpx.AsyncClient, stored: Database, mailbox: Mailbox
) -> None:
    admin = bearer(await sign_in_as_admin(anonymous, stored))
    email = new_address()
    await sign_up(anonymous, mailbox, email)
    response = await anonymous.post(
        "/auth/invitations", json={"email": email, "name": "Ada", "role": "admin"}, headers=admin
    )
    assert (response.status_code, response.json()["type"]) == (409, "urn:howdah:problem:email-in-use")
    as_customer = {"email": new_address(), "name": "Ada", "role": "customer"}
    assert (await anonymous.post("/auth/invitations", json=as_customer, headers=admin)).status_code == 422


@pytest.mark.parametrize("is_deleted", [False, True])
async def test_an_invitation_of_a_former_admin_is_invalid(
    anonymous: httpx.AsyncClient, stored: Database, mailbox: Mailbox, is_deleted: bool
) -> None:
    """Otherwise an admin who loses the role could come back with an invitation to another address."""
    inviter, admin = await sign_in_as_admin(anonymous, stored), bearer(await sign_in_as_admin(anonymous, stored))
    email = new_address()
    await post(anonymous, "/auth/invitations", headers=bearer(inviter), email=email, name="Grace", role="admin")
    if is_deleted:
        path, headers = f"/users/{inviter['user_id']}", admin | {"If-Match": "*"}
        assert (await anonymous.delete(path, headers=headers)).status_code == 204
    else:
        path = f"/auth/users/{inviter['user_id']}/role"
        assert (await anonymous.put(path, json={"role": "operator"}, headers=admin)).status_code == 204
    body = {"token": await mailbox.token_for(email), "password": PASSWORD}
    answer = await anonymous.post("/auth/invitations/acceptance", json=body)
    assert (answer.status_code, answer.json()["type"]) == (400, "urn:howdah:problem:invalid-token")


async def test_a_change_of_role_ends_the_sessions(
    anonymous: httpx.AsyncClient, stored: Database, mailbox: Mailbox
) -> None:
    admin = bearer(await sign_in_as_admin(anonymous, stored))
    email = new_address()
    tokens = await sign_up(anonymous, mailbox, email)
    created = await post(anonymous, "/auth/api-keys", headers=bearer(tokens), name="key", scopes=["users:read"])
    with_key = {"X-API-Key": created["key"]}

    async def count_users() -> int:
        return len((await anonymous.get("/users", headers=with_key)).json()["items"])

    assert await count_users() == 1
    path = f"/auth/users/{tokens['user_id']}/role"
    assert (await anonymous.put(path, json={"role": "operator"}, headers=admin)).status_code == 204
    assert await count_users() == 2, "the key has the new role at once"
    assert (await anonymous.get("/auth/me", headers=bearer(tokens))).status_code == 401
    refreshed = await anonymous.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
    assert refreshed.status_code == 401
    refused = await anonymous.post("/auth/sign-in", json={"email": email, "password": PASSWORD})
    assert refused.json()["type"] == "urn:howdah:problem:enrolment-required"


async def test_an_admin_ends_the_sessions_of_a_user(
    anonymous: httpx.AsyncClient, stored: Database, mailbox: Mailbox
) -> None:
    admin = bearer(await sign_in_as_admin(anonymous, stored))
    tokens = await sign_up(anonymous, mailbox, new_address())
    path = f"/auth/users/{tokens['user_id']}"
    assert (await anonymous.delete(f"{path}/sessions", headers=admin)).status_code == 204
    assert (await anonymous.get("/auth/me", headers=bearer(tokens))).status_code == 401
    assert (await anonymous.delete(f"{path}/totp", headers=admin)).status_code == 404, "the user has no app"
    assert (await anonymous.delete(f"/auth/users/{uuid4()}/sessions", headers=admin)).status_code == 404
    missing = await anonymous.put(f"/auth/users/{uuid4()}/role", json={"role": "operator"}, headers=admin)
    assert missing.status_code == 404


async def test_nobody_changes_their_own_role(anonymous: httpx.AsyncClient, stored: Database) -> None:
    tokens = await sign_in_as_admin(anonymous, stored)
    path = f"/auth/users/{tokens['user_id']}/role"
    response = await anonymous.put(path, json={"role": "customer"}, headers=bearer(tokens))
    assert (response.status_code, response.json()["type"]) == (409, "urn:howdah:problem:role-refused")


async def test_two_admins_who_demote_each_other_at_the_same_moment_leave_one(
    anonymous: httpx.AsyncClient, stored: Database, identity: Identity
) -> None:
    one, two = [UUID((await sign_in_as_admin(anonymous, stored))["user_id"]) for _ in range(2)]
    answers = await asyncio.gather(
        staff.change_role(identity, Principal(one, Role.ADMIN), two, Role.CUSTOMER, client=Client()),
        staff.change_role(identity, Principal(two, Role.ADMIN), one, Role.CUSTOMER, client=Client()),
        return_exceptions=True,
    )
    assert sorted(type(each).__name__ for each in answers) == ["RoleRefused", "list"]
    async with stored.session() as session:
        assert sorted(await session.scalars(select(Credential.role))) == ["admin", "customer"]


async def test_an_access_token_of_a_former_admin_changes_nothing(
    anonymous: httpx.AsyncClient, stored: Database, identity: Identity, mailbox: Mailbox
) -> None:
    """Its role is in the token until the token expires; another process may not know yet that its session ended."""
    former = Principal(UUID((await sign_up(anonymous, mailbox, new_address()))["user_id"]), Role.ADMIN)
    tokens = await sign_up(anonymous, mailbox, new_address())
    other = UUID(tokens["user_id"])
    for change in (
        staff.change_role(identity, former, other, Role.ADMIN, client=Client()),
        staff.end_sessions(identity, former, other, client=Client()),
        staff.remove_app(identity, former, other, client=Client()),
    ):
        with pytest.raises(RoleRefused):
            await change
    assert (await anonymous.get("/auth/me", headers=bearer(tokens))).status_code == 200


@pytest.mark.parametrize("role", [Role.CUSTOMER, Role.OPERATOR])
async def test_only_admins_manage_users(anonymous: httpx.AsyncClient, role: Role) -> None:
    headers, path = sign_in(role), f"/auth/users/{uuid4()}"
    body = {"email": new_address(), "name": "Ada", "role": "admin"}
    answers = [
        await anonymous.post("/auth/invitations", json=body, headers=headers),
        await anonymous.put(f"{path}/role", json={"role": "admin"}, headers=headers),
        await anonymous.delete(f"{path}/sessions", headers=headers),
        await anonymous.delete(f"{path}/totp", headers=headers),
    ]
    assert [each.status_code for each in answers] == 4 * [403]
