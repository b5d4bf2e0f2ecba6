"""Reset a password, and change the address."""

from __future__ import annotations

import asyncio

import httpx

from howdah import Database
from shop_tests.support.people import (
    OTHER_PASSWORD,
    PASSWORD,
    Mailbox,
    bearer,
    new_address,
    post,
    sign_up,
)


async def reset(client: httpx.AsyncClient, token: str) -> int:
    body = {"token": token, "password": OTHER_PASSWORD}
    return (await client.post("/auth/password-reset/confirmation", json=body)).status_code


async def test_a_reset_sets_the_password_once_and_ends_all_sessions(
    anonymous: httpx.AsyncClient, mailbox: Mailbox
) -> None:
    email = new_address()
    tokens = await sign_up(anonymous, mailbox, email)
    await post(anonymous, "/auth/password-reset", email=email)
    earlier = await mailbox.token_for(email, number=2)
    await post(anonymous, "/auth/password-reset", email=email)
    token = await mailbox.token_for(email, number=3)
    statuses = await asyncio.gather(*(reset(anonymous, token) for _ in range(5)))
    assert sorted(statuses) == [204, 400, 400, 400, 400]
    assert (await anonymous.get("/auth/me", headers=bearer(tokens))).status_code == 401
    assert await reset(anonymous, earlier) == 400, "it was sent before the password was changed"
    await post(anonymous, "/auth/sign-in", email=email, password=OTHER_PASSWORD)
    assert "password was changed" in (await mailbox.wait_for(email, number=4)).subject


async def test_a_reset_revokes_the_api_keys_and_a_change_does_not(
    anonymous: httpx.AsyncClient, mailbox: Mailbox
) -> None:
    email = new_address()
    tokens = await sign_up(anonymous, mailbox, email)
    body = {"name": "machine", "scopes": ["users:read"]}
    key = {"X-API-Key": (await post(anonymous, "/auth/api-keys", headers=bearer(tokens), **body))["key"]}
    changed = {"current_password": PASSWORD, "new_password": OTHER_PASSWORD}
    assert (await anonymous.put("/auth/password", json=changed, headers=bearer(tokens))).status_code == 204
    assert (await anonymous.get("/users", headers=key)).status_code == 200
    await mailbox.wait_for(email, number=2)
    await post(anonymous, "/auth/password-reset", email=email)
    assert await reset(anonymous, await mailbox.token_for(email, number=3)) == 204
    assert (await anonymous.get("/users", headers=key)).status_code == 401
    assert "API keys were revoked" in (await mailbox.wait_for(email, number=4)).text


async def test_a_reset_for_an_unknown_address_gets_the_same_answer_and_no_mail(
    anonymous: httpx.AsyncClient, mailbox: Mailbox
) -> None:
    known, unknown = new_address(), new_address()
    await sign_up(anonymous, mailbox, known)
    answers = [await anonymous.post("/auth/password-reset", json={"email": each}) for each in (unknown, known)]
    assert [each.status_code for each in answers] == [202, 202]
    assert answers[0].content == answers[1].content
    await mailbox.wait_for(known, number=2)
    assert not mailbox.to(unknown)


async def test_a_customer_whom_an_operator_has_created_sets_a_password(
    anonymous: httpx.AsyncClient, client: httpx.AsyncClient, mailbox: Mailbox
) -> None:
    email = new_address()
    await post(client, "/users", email=email, name="Grace")
    await post(anonymous, "/auth/password-reset", email=email)
    assert await reset(anonymous, await mailbox.token_for(email)) == 204
    signed_in = await post(anonymous, "/auth/sign-in", email=email, password=OTHER_PASSWORD)
    assert signed_in["role"] == "customer"


async def test_a_change_of_the_address_is_confirmed_at_the_new_and_told_at_the_old_one(
    anonymous: httpx.AsyncClient, mailbox: Mailbox
) -> None:
    old, new = new_address(), new_address()
    headers = bearer(await sign_up(anonymous, mailbox, old))
    await post(anonymous, "/auth/password-reset", email=old)
    sent_to_old = await mailbox.token_for(old, number=2)
    body = {"new_email": new, "password": OTHER_PASSWORD}
    assert (await anonymous.post("/auth/email-change", json=body, headers=headers)).status_code == 401
    await post(anonymous, "/auth/email-change", headers=headers, new_email=new, password=PASSWORD)
    token = await mailbox.token_for(new)
    statuses = await asyncio.gather(
        *(anonymous.post("/auth/email-change/confirmation", json={"token": token}) for _ in range(3))
    )
    assert sorted(each.status_code for each in statuses) == [204, 400, 400]
    assert "address" in (await mailbox.wait_for(old, number=3)).subject
    assert await reset(anonymous, sent_to_old) == 400, "the old address opens the account no more"
    await post(anonymous, "/auth/sign-in", email=new, password=PASSWORD)
    assert (await anonymous.post("/auth/sign-in", json={"email": old, "password": PASSWORD})).status_code == 401


async def test_a_change_to_a_taken_address_gets_the_same_answer(
    anonymous: httpx.AsyncClient, mailbox: Mailbox, stored: Database
) -> None:
    mine, taken, free = new_address(), new_address(), new_address()
    headers = bearer(await sign_up(anonymous, mailbox, mine))
    await sign_up(anonymous, mailbox, taken)
    answers = [
        await anonymous.post("/auth/email-change", json={"new_email": each, "password": PASSWORD}, headers=headers)
        for each in (taken, free)
    ]
    assert answers[0].content == answers[1].content
    assert "token:" not in (await mailbox.wait_for(taken, number=2)).text
    assert "token:" in (await mailbox.wait_for(free)).text
