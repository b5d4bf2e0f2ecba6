"""Brute force: attempts are counted for accounts and addresses, in all processes, and over restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import timedelta

import httpx
import pytest
from sqlalchemy import func, select, text, update

from howdah import Database
from shop.identity import service, throttles
from shop.identity.clients import Client
from shop.identity.context import Identity, open_identity
from shop.identity.errors import SignInFailed, TooManyAttempts
from shop.identity.models import SignInThrottle
from shop_tests.support.identity import TEST_SETTINGS, TEST_SIGNER
from shop_tests.support.people import OTHER_PASSWORD, PASSWORD, Mailbox, new_address, post, sign_up

pytestmark = pytest.mark.usefixtures("long_first_wait")

_ATTACKER, _OWNER = Client("198.51.100.7"), Client("127.0.0.1")


async def guess(identity: Identity, email: str, client: Client = _ATTACKER) -> int:
    """Try a wrong password. Returns the seconds to wait, or 0 if the password was looked at."""
    try:
        await service.sign_in(identity, email=email, password=OTHER_PASSWORD, client=client)
    except TooManyAttempts as error:
        return error.retry_after
    except SignInFailed:
        return 0
    raise AssertionError("the password is right")


async def exhaust(identity: Identity, email: str, client: Client = _ATTACKER) -> None:
    for _ in range(throttles.PER_ACCOUNT.free):
        assert await guess(identity, email, client) == 0


async def let_time_pass(stored: Database, time: timedelta) -> None:
    async with stored.begin() as session:
        await session.execute(
            update(SignInThrottle).values(
                blocked_until=SignInThrottle.blocked_until - time, updated_at=SignInThrottle.updated_at - time
            )
        )


@pytest.mark.parametrize("is_known", [True, False])
async def test_after_five_attempts_an_account_waits_whether_it_exists_or_not(
    anonymous: httpx.AsyncClient, mailbox: Mailbox, *, is_known: bool
) -> None:
    email = new_address()
    if is_known:
        await sign_up(anonymous, mailbox, email)
    body = {"email": email, "password": OTHER_PASSWORD}
    statuses = [(await anonymous.post("/auth/sign-in", json=body)).status_code for _ in range(5)]
    assert statuses == 5 * [401]
    response = await anonymous.post("/auth/sign-in", json={"email": email, "password": PASSWORD})
    assert (response.status_code, response.json()["type"]) == (429, "urn:howdah:problem:too-many-attempts")
    assert 50 < int(response.headers["retry-after"]) <= 60
    assert email not in response.text


@pytest.mark.parametrize(("attempts", "wait"), [(5, 60), (6, 120), (8, 480), (9, 900), (1_000, 900)])
async def test_each_further_attempt_waits_twice_as_long_up_to_15_minutes(
    stored: Database, identity: Identity, attempts: int, wait: int
) -> None:
    email = new_address()
    assert await guess(identity, email) == 0
    async with stored.begin() as session:
        is_account = SignInThrottle.key.startswith("account:")
        await session.execute(update(SignInThrottle).where(is_account).values(attempts=attempts - 1))
    assert await guess(identity, email) == 0
    assert wait - 10 < await guess(identity, email) <= wait
    await let_time_pass(stored, timedelta(seconds=wait))
    assert await guess(identity, email) == 0


async def test_attempts_of_two_processes_at_the_same_moment_are_all_counted(
    database_url: str, stored: Database, identity: Identity, mailbox: Mailbox
) -> None:
    async with (
        Database(database_url) as other,
        open_identity(other, settings=TEST_SETTINGS, signer=TEST_SIGNER, mailer=mailbox) as second,
    ):
        email = new_address()
        processes = [identity, second]
        waits = await asyncio.gather(*(guess(processes[number % 2], email) for number in range(24)))
    assert waits.count(0) == throttles.PER_ACCOUNT.free


async def test_without_the_atomic_count_more_attempts_would_be_admitted(
    stored: Database, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control reads the count, and writes it when the password was wrong."""

    async def admit_by_reading(database: Database, key: str, limit: throttles.Limit) -> None:
        async with database.session() as session:
            attempts = await session.scalar(select(SignInThrottle.attempts).where(SignInThrottle.key == key)) or 0
        if attempts >= limit.free:
            raise TooManyAttempts(1, refused=0)
        await asyncio.sleep(0)
        async with database.begin() as session:
            await session.execute(throttles._COUNT, {"key": key, **asdict(replace(limit, free=10**6))})

    monkeypatch.setattr(throttles, "count", admit_by_reading)
    email = new_address()
    waits = await asyncio.gather(*(guess(identity, email) for _ in range(24)))
    assert waits.count(0) > throttles.PER_ACCOUNT.free


async def test_a_throttle_survives_a_restart(
    database_url: str, stored: Database, identity: Identity, mailbox: Mailbox
) -> None:
    email = new_address()
    await exhaust(identity, email)
    async with (
        Database(database_url) as restarted,
        open_identity(restarted, settings=TEST_SETTINGS, signer=TEST_SIGNER, mailer=mailbox) as after_restart,
    ):
        assert await guess(after_restart, email) > 0


async def test_an_attacker_does_not_lock_the_owner_out(
    anonymous: httpx.AsyncClient, mailbox: Mailbox, identity: Identity
) -> None:
    """The owner has signed in from this address before."""
    email = new_address()
    await sign_up(anonymous, mailbox, email)
    await exhaust(identity, email)
    assert await guess(identity, email) > 0
    await service.sign_in(identity, email=email, password=PASSWORD, client=_OWNER)
    assert await guess(identity, email) > 0


async def test_a_password_reset_ends_the_wait(
    anonymous: httpx.AsyncClient, mailbox: Mailbox, identity: Identity
) -> None:
    email = new_address()
    await sign_up(anonymous, mailbox, email)
    await exhaust(identity, email)
    await post(anonymous, "/auth/password-reset", email=email)
    token = await mailbox.token_for(email, number=2)
    await post(anonymous, "/auth/password-reset/confirmation", token=token, password=OTHER_PASSWORD)
    await service.sign_in(identity, email=email, password=OTHER_PASSWORD, client=_ATTACKER)


async def test_a_success_resets_the_account_but_not_the_address(
    anonymous: httpx.AsyncClient, mailbox: Mailbox, stored: Database, identity: Identity
) -> None:
    async def attempts(key: str) -> int | None:
        async with stored.session() as session:
            return await session.scalar(select(SignInThrottle.attempts).where(SignInThrottle.key.startswith(key)))

    email = new_address()
    await sign_up(anonymous, mailbox, email)
    for _ in range(3):
        await guess(identity, email)
    assert (await attempts("account:"), await attempts("address:")) == (3, 3)
    await service.sign_in(identity, email=email, password=PASSWORD, client=_ATTACKER)
    assert (await attempts("account:"), await attempts("address:")) == (None, 3)


async def test_an_address_that_tries_many_accounts_waits(
    stored: Database, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttles, "PER_ADDRESS", throttles.Limit(free=3, window=timedelta(hours=6), first_wait=60))
    clients: list[Callable[[], Client]] = [
        lambda: Client("203.0.113.9"),
        lambda: Client("2001:db8::1"),
    ]
    for client in clients:
        waits = [await guess(identity, new_address(), client()) > 0 for _ in range(4)]
        assert waits == [False, False, False, True]
    assert await guess(identity, new_address(), Client("2001:db8::ffff:2")) > 0, "the same /64 network"
    assert await guess(identity, new_address(), Client("2001:db8:0:1::1")) == 0


async def test_the_count_begins_again_after_a_day(stored: Database, identity: Identity) -> None:
    email = new_address()
    await exhaust(identity, email)
    await let_time_pass(stored, timedelta(days=1, seconds=1))
    await exhaust(identity, email)


async def test_mails_to_an_address_are_throttled_whether_a_user_has_it_or_not(
    anonymous: httpx.AsyncClient, mailbox: Mailbox, stored: Database
) -> None:
    known = new_address()
    await sign_up(anonymous, mailbox, known)
    async with stored.begin() as session:
        await session.execute(text("DELETE FROM sign_in_throttles"))
    for email in (known, new_address()):
        statuses = [(await anonymous.post("/auth/password-reset", json={"email": email})).status_code for _ in range(4)]
        assert statuses == [202, 202, 202, 429]


async def test_guesses_of_the_own_password_are_throttled_apart(
    anonymous: httpx.AsyncClient, mailbox: Mailbox, identity: Identity, stored: Database
) -> None:
    email = new_address()
    tokens = await sign_up(anonymous, mailbox, email)
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    body = {"current_password": OTHER_PASSWORD, "new_password": OTHER_PASSWORD}
    statuses = [(await anonymous.put("/auth/password", json=body, headers=headers)).status_code for _ in range(6)]
    assert statuses == [401, 401, 401, 401, 401, 429]
    await service.sign_in(identity, email=email, password=PASSWORD, client=_ATTACKER)


async def test_a_throttle_has_no_mail_address_in_its_key(stored: Database, identity: Identity) -> None:
    email = new_address()
    await guess(identity, email)
    async with stored.session() as session:
        keys = list(await session.scalars(select(SignInThrottle.key)))
        assert await session.scalar(select(func.count()).select_from(SignInThrottle)) == 2
    assert not [key for key in keys if "@" in key or "person" in key]
