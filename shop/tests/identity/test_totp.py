"""Operators and admins need an authenticator app for their passwords. A code is of use once."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pyotp
import pytest
from sqlalchemy import select, text, update

from howdah import Database
from shop.identity import service
from shop.identity.clients import Client
from shop.identity.context import Identity
from shop.identity.encryption import SecretBox
from shop.identity.errors import TotpUnavailable
from shop.identity.models import TotpDevice
from shop.identity.totp import verify_code
from shop.keyrings import new_key, parse_keyring
from shop_tests.support.people import (
    PASSWORD,
    Mailbox,
    bearer,
    new_address,
    post,
    sign_in_as_admin,
    sign_up,
)

_STEP = 30


def code_of(secret: str, *, steps: int = 0) -> str:
    """The code of the app, some steps of 30 seconds later."""
    return pyotp.TOTP(secret).at(int(time.time()) + steps * _STEP)


async def forget_last_code(stored: Database) -> None:
    """As if the last code had been used long ago, so that the current one can be used."""
    async with stored.begin() as session:
        await session.execute(update(TotpDevice).values(last_counter=0))


async def current_step(stored: Database) -> int:
    """The current step of 30 seconds, by the database's clock."""
    async with stored.session() as session:
        step = await session.scalar(text("SELECT floor(extract(epoch FROM clock_timestamp()) / 30)::bigint"))
    return int(step)


async def enrol(client: httpx.AsyncClient, enrolment_token: str) -> tuple[str, dict[str, Any]]:
    """The secret of the app, and the answer to its confirmation."""
    secret = (await post(client, "/auth/totp", enrolment_token=enrolment_token))["secret"]
    code = code_of(secret)
    return secret, await post(client, "/auth/totp/confirmation", enrolment_token=enrolment_token, code=code)


async def make_admin_with_app(client: httpx.AsyncClient, stored: Database, email: str) -> tuple[str, dict[str, Any]]:
    """An admin with a password and an app: the secret and the answer."""
    tokens = await sign_in_as_admin(client, stored, email)
    changed = await client.put("/auth/password", json={"new_password": PASSWORD}, headers=bearer(tokens))
    assert changed.status_code == 204, changed.text
    refused = await client.post("/auth/sign-in", json={"email": email, "password": PASSWORD})
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:howdah:problem:enrolment-required")
    return await enrol(client, refused.json()["enrolment_token"])


async def try_sign_in(client: httpx.AsyncClient, email: str, code: str | None = None) -> str:
    """`ok`, or the code of the problem."""
    body = {"email": email, "password": PASSWORD} | ({} if code is None else {"code": code})
    response = await client.post("/auth/sign-in", json=body)
    return "ok" if response.is_success else response.json()["type"].rpartition(":")[2]


async def test_an_admin_needs_the_code_of_an_app(
    anonymous: httpx.AsyncClient, stored: Database, mailbox: Mailbox
) -> None:
    email = new_address()
    secret, enrolled = await make_admin_with_app(anonymous, stored, email)
    assert enrolled["role"] == "admin"
    assert (await anonymous.get("/auth/me", headers=bearer(enrolled))).json()["has_totp"] is True
    assert await try_sign_in(anonymous, email) == "code-required"
    wrong = f"{(int(code_of(secret)) + 500_000) % 1_000_000:06}"
    assert await try_sign_in(anonymous, email, wrong) == "sign-in-failed"
    await forget_last_code(stored)
    assert await try_sign_in(anonymous, email, code_of(secret)) == "ok"
    assert "authenticator app" in (await mailbox.wait_for(email, number=2)).text


async def test_a_code_is_refused_the_second_time_also_at_the_same_moment(
    anonymous: httpx.AsyncClient, stored: Database, identity: Identity
) -> None:
    email = new_address()
    secret, _ = await make_admin_with_app(anonymous, stored, email)
    assert await try_sign_in(anonymous, email, code_of(secret)) == "sign-in-failed", "it has confirmed the enrolment"
    await forget_last_code(stored)
    code = code_of(secret)
    answers = await asyncio.gather(
        *(
            service.sign_in(identity, email=email, password=PASSWORD, code=code, client=Client(f"192.0.2.{number}"))
            for number in range(4)
        ),
        return_exceptions=True,
    )
    assert sorted(type(each).__name__ for each in answers) == [
        "SignInFailed",
        "SignInFailed",
        "SignInFailed",
        "SignedIn",
    ]
    assert await try_sign_in(anonymous, email, code_of(secret, steps=-1)) == "sign-in-failed", "an older one"


async def test_a_code_is_right_in_one_of_several_transactions(
    anonymous: httpx.AsyncClient, stored: Database, identity: Identity
) -> None:
    """Without the lock of the app's row, each of them would read that the code wasn't used."""
    secret, enrolled = await make_admin_with_app(anonymous, stored, new_address())
    await forget_last_code(stored)
    code = code_of(secret)

    async def use() -> bool:
        async with stored.begin() as session:
            return await verify_code(session, identity.box, enrolled["user_id"], code) is not None

    assert sorted(await asyncio.gather(*(use() for _ in range(4)))) == [False, False, False, True]


async def test_codes_of_a_clock_that_is_half_a_minute_off_are_accepted(
    anonymous: httpx.AsyncClient, stored: Database, identity: Identity
) -> None:
    secret, enrolled = await make_admin_with_app(anonymous, stored, new_address())
    step, accepted = -1, list[int]()
    while step != await current_step(stored):  # again, if a step has passed between a computation and its check
        step, accepted = await current_step(stored), []
        for steps in (-2, -1, 0, 1, 2):
            await forget_last_code(stored)
            async with stored.begin() as session:
                code = pyotp.TOTP(secret).generate_otp(step + steps)
                if await verify_code(session, identity.box, enrolled["user_id"], code):
                    accepted.append(steps)
    assert accepted == [-1, 0, 1]


async def test_a_recovery_code_is_used_once(anonymous: httpx.AsyncClient, stored: Database) -> None:
    email = new_address()
    _, enrolled = await make_admin_with_app(anonymous, stored, email)
    codes = enrolled["recovery_codes"]
    assert len(set(codes)) == 10
    assert await try_sign_in(anonymous, email, codes[0].lower().replace("-", " ")) == "ok"
    assert await try_sign_in(anonymous, email, codes[0]) == "sign-in-failed"
    assert await try_sign_in(anonymous, email, codes[1]) == "ok"


async def test_the_token_of_an_enrolment_allows_nothing_else(anonymous: httpx.AsyncClient, stored: Database) -> None:
    email = new_address()
    tokens = await sign_in_as_admin(anonymous, stored, email)
    await anonymous.put("/auth/password", json={"new_password": PASSWORD}, headers=bearer(tokens))
    refused = await anonymous.post("/auth/sign-in", json={"email": email, "password": PASSWORD})
    token = refused.json()["enrolment_token"]
    assert (await anonymous.get("/auth/me", headers={"Authorization": f"Bearer {token}"})).status_code == 401
    for path, body in (("/auth/one-time", {"token": token}), ("/auth/refresh", {"refresh_token": token})):
        assert (await anonymous.post(path, json=body)).status_code in (400, 401)
    await enrol(anonymous, token)
    again = await anonymous.post("/auth/totp", json={"enrolment_token": token})
    assert (again.status_code, again.json()["type"]) == (400, "urn:howdah:problem:invalid-token")


async def test_another_app_replaces_the_first_one_only_when_it_is_confirmed(
    anonymous: httpx.AsyncClient, stored: Database
) -> None:
    email = new_address()
    secret, enrolled = await make_admin_with_app(anonymous, stored, email)
    body = {"password": PASSWORD}
    path = "/auth/totp/enrolment-token"
    assert (await anonymous.post(path, json=body, headers=bearer(enrolled))).status_code == 401, "without a code"
    await forget_last_code(stored)
    token = (await post(anonymous, path, headers=bearer(enrolled), **body, code=code_of(secret)))["enrolment_token"]
    await post(anonymous, "/auth/totp", enrolment_token=token)
    wrong = await anonymous.post("/auth/totp/confirmation", json={"enrolment_token": token, "code": "000000"})
    assert wrong.status_code == 401
    await forget_last_code(stored)
    assert await try_sign_in(anonymous, email, code_of(secret)) == "ok"
    new_secret, _ = await enrol(anonymous, token)
    await forget_last_code(stored)
    assert await try_sign_in(anonymous, email, code_of(secret)) == "sign-in-failed"
    assert await try_sign_in(anonymous, email, code_of(new_secret)) == "ok"


@pytest.mark.parametrize("is_removed", [False, True])
async def test_a_token_for_an_enrolment_is_invalid_after_another_enrolment_and_after_a_removal(
    anonymous: httpx.AsyncClient, stored: Database, is_removed: bool
) -> None:
    """Somebody who knows the password has requested it, and would replace the app of the owner."""
    email = new_address()
    secret, enrolled = await make_admin_with_app(anonymous, stored, email)
    tokens = []
    for _ in range(2):
        await forget_last_code(stored)
        body = {"password": PASSWORD, "code": code_of(secret)}
        answer = await post(anonymous, "/auth/totp/enrolment-token", headers=bearer(enrolled), **body)
        tokens.append(answer["enrolment_token"])
    stolen, own = tokens
    if is_removed:
        admin = bearer(await sign_in_as_admin(anonymous, stored))
        removed = await anonymous.delete(f"/auth/users/{enrolled['user_id']}/totp", headers=admin)
        assert removed.status_code == 204
    else:
        await enrol(anonymous, own)
    answer = await anonymous.post("/auth/totp", json={"enrolment_token": stolen})
    assert (answer.status_code, answer.json()["type"]) == (400, "urn:howdah:problem:invalid-token")


async def test_a_customer_may_enrol_an_app(anonymous: httpx.AsyncClient, mailbox: Mailbox, stored: Database) -> None:
    email = new_address()
    tokens = await sign_up(anonymous, mailbox, email)
    token = (await post(anonymous, "/auth/totp/enrolment-token", headers=bearer(tokens), password=PASSWORD))[
        "enrolment_token"
    ]
    secret, _ = await enrol(anonymous, token)
    assert (await anonymous.get("/auth/me", headers=bearer(tokens))).status_code == 401, "earlier sessions end"
    assert await try_sign_in(anonymous, email) == "code-required"
    await forget_last_code(stored)
    assert await try_sign_in(anonymous, email, code_of(secret)) == "ok"


@pytest.mark.usefixtures("long_first_wait")
async def test_guesses_of_a_code_are_throttled(anonymous: httpx.AsyncClient, stored: Database) -> None:
    email = new_address()
    await make_admin_with_app(anonymous, stored, email)
    answers = [await try_sign_in(anonymous, email, f"{number:06}") for number in range(6)]
    assert answers[-1] == "too-many-attempts"


async def test_guesses_of_a_code_for_another_app_are_throttled(anonymous: httpx.AsyncClient, stored: Database) -> None:
    """Somebody has an access token and the password. Right passwords don't set the count of wrong codes to zero."""
    secret, enrolled = await make_admin_with_app(anonymous, stored, new_address())
    await forget_last_code(stored)

    async def request(code: str) -> httpx.Response:
        body = {"password": PASSWORD, "code": code}
        return await anonymous.post("/auth/totp/enrolment-token", json=body, headers=bearer(enrolled))

    async def change_email() -> int:
        """It needs the password only."""
        body = {"new_email": new_address(), "password": PASSWORD}
        return (await anonymous.post("/auth/email-change", json=body, headers=bearer(enrolled))).status_code

    assert [(await request("wrong")).status_code for _ in range(4)] == [401] * 4
    assert (await request(code_of(secret))).status_code == 200, "a right code begins the count again"
    assert [(await request("wrong")).status_code for _ in range(3)] == [401] * 3
    assert await change_email() == 202
    assert [(await request("wrong")).status_code for _ in range(2)] == [401] * 2
    blocked = await request(code_of(secret))
    assert (blocked.status_code, blocked.json()["type"]) == (429, "urn:howdah:problem:too-many-attempts")


async def test_secrets_are_encrypted_and_keys_rotate(anonymous: httpx.AsyncClient, stored: Database) -> None:
    secret, enrolled = await make_admin_with_app(anonymous, stored, new_address())
    async with stored.session() as session:
        assert secret not in str((await session.execute(text("TABLE totp_devices"))).all())
    old_key, new_one = new_key(), new_key()
    old = SecretBox(parse_keyring(old_key))
    rotated = SecretBox(parse_keyring(f"{new_one},{old_key}"))
    new = SecretBox(parse_keyring(new_one))
    async with stored.begin() as session:
        await session.execute(update(TotpDevice).values(secret=old.encrypt(secret), last_counter=0))
    with pytest.raises(TotpUnavailable):
        async with stored.begin() as session:
            await verify_code(session, new, enrolled["user_id"], code_of(secret))
    async with stored.begin() as session:
        assert await verify_code(session, rotated, enrolled["user_id"], code_of(secret))
    async with stored.session() as session:
        stored_secret = (await session.scalars(select(TotpDevice.secret))).one()
    assert stored_secret is not None
    assert new.decrypt(stored_secret) == secret, "its use has encrypted it with the new key"


async def test_a_user_without_an_app_has_no_valid_code(
    anonymous: httpx.AsyncClient, mailbox: Mailbox, stored: Database, identity: Identity
) -> None:
    tokens = await sign_up(anonymous, mailbox, new_address())
    async with stored.begin() as session:
        assert not await verify_code(session, identity.box, tokens["user_id"], "000000")
