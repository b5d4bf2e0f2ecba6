"""Sign up, sign in and sign out, and what an attacker learns from the answers: nothing."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import httpx
import pytest
from sqlalchemy import text, update

from howdah import Database
from shop.identity import service
from shop.identity.clients import Client
from shop.identity.context import Identity
from shop.identity.errors import HashingBusy, SignInFailed
from shop.identity.hashing import PasswordHashing
from shop.identity.models import OneTimeToken
from shop_tests.support.http_service import client_of
from shop_tests.support.people import OTHER_PASSWORD, PASSWORD, Mailbox, bearer, new_address, post, sign_up

_TOKENS = {"access_token", "token_type", "expires_in", "refresh_token", "user_id", "role"}


async def test_a_customer_signs_up_and_in(anonymous: httpx.AsyncClient, mailbox: Mailbox) -> None:
    email = new_address()
    signed_up = await sign_up(anonymous, mailbox, email)
    assert signed_up.keys() == _TOKENS
    assert (signed_up["role"], signed_up["expires_in"], signed_up["token_type"]) == ("customer", 600, "Bearer")
    signed_in = await post(anonymous, "/auth/sign-in", email=email.upper(), password=PASSWORD)
    me = await anonymous.get("/auth/me", headers=bearer(signed_in))
    assert me.json() == {
        "user_id": signed_up["user_id"],
        "email": email,
        "name": "Ada Lovelace",
        "role": "customer",
        "has_password": True,
        "has_totp": False,
    }
    assert me.headers["cache-control"] == "no-store"


async def test_an_unknown_user_and_a_wrong_password_get_the_same_answer(
    anonymous: httpx.AsyncClient, mailbox: Mailbox, client: httpx.AsyncClient
) -> None:
    email, without_password = new_address(), new_address()
    await sign_up(anonymous, mailbox, email)
    await post(client, "/users", email=without_password, name="Grace")
    wrong, unknown, unset = [
        await anonymous.post("/auth/sign-in", json={"email": each, "password": OTHER_PASSWORD})
        for each in (email, new_address(), without_password)
    ]
    assert (wrong.status_code, wrong.json()["type"]) == (401, "urn:howdah:problem:sign-in-failed")
    assert wrong.content == unknown.content == unset.content
    hidden = {"date", "x-request-id"}
    assert [{**each.headers, **dict.fromkeys(hidden)} for each in (unknown, unset)] == 2 * [
        {**wrong.headers, **dict.fromkeys(hidden)}
    ]


async def test_an_unknown_user_costs_one_hash_like_a_known_one(
    anonymous: httpx.AsyncClient, mailbox: Mailbox, identity: Identity
) -> None:
    email = new_address()
    await sign_up(anonymous, mailbox, email)
    for each in (email, new_address()):
        before = identity.hashing.verified
        with pytest.raises(SignInFailed):
            await service.sign_in(identity, email=each, password=OTHER_PASSWORD, client=Client("192.0.2.1"))
        assert identity.hashing.verified == before + 1


@pytest.mark.parametrize(("email", "password"), [("a" * 255, "x"), ("a\0", "x"), ("ada@example.com", "x" * 385)])
async def test_a_text_that_no_user_can_have_is_not_hashed(identity: Identity, email: str, password: str) -> None:
    with pytest.raises(SignInFailed):
        await service.sign_in(identity, email=email, password=password, client=Client("192.0.2.1"))
    assert identity.hashing.verified == 0


async def test_a_sign_up_with_a_known_address_gets_the_same_answer(
    anonymous: httpx.AsyncClient, mailbox: Mailbox
) -> None:
    known, unknown = new_address(), new_address()
    await sign_up(anonymous, mailbox, known)
    first, second = [
        await anonymous.post("/auth/sign-up", json={"email": each, "name": "Mallory"}) for each in (known, unknown)
    ]
    assert (first.status_code, first.content) == (202, second.content)
    assert "token:" not in (await mailbox.wait_for(known, number=2)).text
    assert "token:" in (await mailbox.wait_for(unknown)).text
    assert "Mallory" not in mailbox.to(known)[-1].text + mailbox.to(unknown)[-1].text


async def test_a_token_for_sign_up_is_used_once_also_at_the_same_moment(
    anonymous: httpx.AsyncClient, mailbox: Mailbox
) -> None:
    email = new_address()
    await post(anonymous, "/auth/sign-up", email=email, name="Ada")
    body = {"token": await mailbox.token_for(email), "password": PASSWORD}
    answers = await asyncio.gather(
        *(anonymous.post("/auth/sign-up/confirmation", json=body) for _ in range(8)),
    )
    assert sorted(each.status_code for each in answers) == [201] + 7 * [400]
    assert {each.json()["type"] for each in answers if each.status_code == 400} == {"urn:howdah:problem:invalid-token"}


@pytest.mark.parametrize("path", ["/auth/password-reset/confirmation", "/auth/invitations/acceptance"])
async def test_a_token_is_of_no_use_for_another_purpose(
    anonymous: httpx.AsyncClient, mailbox: Mailbox, path: str
) -> None:
    email = new_address()
    await post(anonymous, "/auth/sign-up", email=email, name="Ada")
    body = {"token": await mailbox.token_for(email), "password": PASSWORD}
    assert (await anonymous.post(path, json=body)).json()["type"] == "urn:howdah:problem:invalid-token"


async def test_an_expired_token_is_refused(anonymous: httpx.AsyncClient, mailbox: Mailbox, stored: Database) -> None:
    email = new_address()
    await post(anonymous, "/auth/sign-up", email=email, name="Ada")
    body = {"token": await mailbox.token_for(email), "password": PASSWORD}
    async with stored.begin() as session:
        await session.execute(update(OneTimeToken).values(expires_at=OneTimeToken.expires_at - timedelta(hours=24)))
    response = await anonymous.post("/auth/sign-up/confirmation", json=body)
    assert (response.status_code, response.json()["type"]) == (400, "urn:howdah:problem:invalid-token")


async def test_the_same_address_is_confirmed_by_one_of_two_tokens(
    anonymous: httpx.AsyncClient, mailbox: Mailbox
) -> None:
    email = new_address()
    await post(anonymous, "/auth/sign-up", email=email, name="Ada")
    other = await mailbox.token_for(email)
    await post(anonymous, "/auth/sign-up", email=email, name="Ada")
    token = await mailbox.token_for(email, number=2)
    await post(anonymous, "/auth/sign-up/confirmation", token=token, password=PASSWORD)
    response = await anonymous.post("/auth/sign-up/confirmation", json={"token": other, "password": PASSWORD})
    assert (response.status_code, response.json()["type"]) == (409, "urn:howdah:problem:email-in-use")


@pytest.mark.parametrize(
    ("password", "reason"),
    [
        ("short", "length"),
        ("x" * 129, "length"),
        ("qwertyuiop123", "common"),
        ("Password!!!2026", "common"),
        ("abcabcabcabcabc", "pattern"),
        ("09876543210987", "pattern"),
        ("lovelace1234", "personal"),
    ],
)
async def test_a_bad_password_is_refused_and_the_token_stays_valid(
    anonymous: httpx.AsyncClient, mailbox: Mailbox, password: str, reason: str
) -> None:
    email = new_address()
    await post(anonymous, "/auth/sign-up", email=email, name="Ada Lovelace")
    token = await mailbox.token_for(email)
    response = await anonymous.post("/auth/sign-up/confirmation", json={"token": token, "password": password})
    assert (response.status_code, response.json()["reason"]) == (422, reason)
    assert password not in response.text
    await post(anonymous, "/auth/sign-up/confirmation", token=token, password="Пароль 密码 ñandú")


async def test_a_password_may_have_any_characters_in_any_form(anonymous: httpx.AsyncClient, mailbox: Mailbox) -> None:
    email = new_address()
    await sign_up(anonymous, mailbox, email, "caf\u00e9\u00a0\u5bc6\u7801 \U0001f511 na\u00efve")
    await post(anonymous, "/auth/sign-in", email=email, password="cafe\u0301 \u5bc6\u7801 \U0001f511 nai\u0308ve")


@pytest.mark.parametrize(
    "body",
    [
        {"email": "ada@example.com", "password": 1234567890123},
        {"email": "ada@example.com", "password": "open-sesame-" * 100},
        {"email": "ada@example.com", "password": ["open-sesame-1234"]},
        {"email": "open-sesame-1234", "password": "open-sesame-1234"},
        {"email": "ada@example.com", "password": "open-sesame-1234", "code": "open-sesame-1234" * 9},
        {"email": "ada@example.com", "password": "open-sesame-1234", "more": "open-sesame-1234"},
    ],
)
async def test_an_invalid_body_is_answered_without_its_secrets(anonymous: httpx.AsyncClient, body: object) -> None:
    response = await anonymous.post("/auth/sign-in", json=body)
    assert response.status_code == 422
    assert "sesame" not in response.text
    assert "1234567890123" not in response.text


async def test_a_sign_out_ends_the_session_at_once(anonymous: httpx.AsyncClient, mailbox: Mailbox) -> None:
    tokens = await sign_up(anonymous, mailbox, new_address())
    await post(anonymous, "/auth/sign-out", headers=bearer(tokens))
    assert (await anonymous.get("/auth/me", headers=bearer(tokens))).status_code == 401
    refreshed = await anonymous.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
    assert (refreshed.status_code, refreshed.json()["type"]) == (401, "urn:howdah:problem:invalid-refresh-token")


async def test_no_token_and_no_password_is_stored_or_logged(
    anonymous: httpx.AsyncClient, mailbox: Mailbox, stored: Database, caplog: pytest.LogCaptureFixture
) -> None:
    email = new_address()
    await post(anonymous, "/auth/sign-up", email=email, name="Ada")
    one_time = await mailbox.token_for(email)
    tokens = await post(anonymous, "/auth/sign-up/confirmation", token=one_time, password=PASSWORD)
    refreshed = await post(anonymous, "/auth/refresh", refresh_token=tokens["refresh_token"])
    secrets = [one_time, PASSWORD, tokens["refresh_token"], refreshed["refresh_token"], tokens["access_token"]]
    names = ["credentials", "sign_in_sessions", "refresh_tokens", "one_time_tokens", "sign_in_throttles"]
    async with stored.session() as session:
        dump = "".join([str((await session.execute(text(f"TABLE {name}"))).all()) for name in names])
    assert "argon2id" in dump
    assert not [secret for secret in secrets if secret in dump or secret in caplog.text]


async def test_the_hash_is_renewed_at_the_next_sign_in(
    anonymous: httpx.AsyncClient, mailbox: Mailbox, stored: Database
) -> None:
    async def stored_hash() -> str:
        async with stored.session() as session:
            return str(await session.scalar(text("SELECT password_hash FROM credentials")))

    email = new_address()
    await sign_up(anonymous, mailbox, email)
    stronger = PasswordHashing(memory_kib=16, iterations=2, threads=1)
    async with stored.begin() as session:
        old = {"hash": await stronger.hash(PASSWORD)}
        await session.execute(text("UPDATE credentials SET password_hash = :hash"), old)
    stronger.close()
    assert "m=16,t=2" in await stored_hash()
    await post(anonymous, "/auth/sign-in", email=email, password=PASSWORD)
    assert "m=8,t=1" in await stored_hash()
    await post(anonymous, "/auth/sign-in", email=email, password=PASSWORD)


async def test_a_full_queue_of_hashes_is_refused_at_once() -> None:
    hashing = PasswordHashing(memory_kib=8, iterations=1, threads=1)
    answers = await asyncio.gather(*(hashing.verify(PASSWORD, None) for _ in range(100)), return_exceptions=True)
    assert {type(each) for each in answers} == {tuple, HashingBusy}
    assert await hashing.verify(PASSWORD, await hashing.hash(PASSWORD)) == (True, None)
    hashing.close()


async def test_the_address_of_the_service_in_a_mail_is_not_that_of_the_request(
    mailing_service: str, mailbox: Mailbox, stored: Database
) -> None:
    email = new_address()
    async with client_of(mailing_service, signs_in=False) as attacker:
        await attacker.post("/auth/sign-up", json={"email": email, "name": "x"}, headers={"Host": "evil.example"})
    assert "evil" not in (await mailbox.wait_for(email)).text
