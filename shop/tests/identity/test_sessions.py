"""Refresh tokens rotate. A copied one is found, and a client that repeats a refresh isn't punished."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import func, select, text, update

from howdah import Database
from shop.identity import service, sessions
from shop.identity.clients import Client
from shop.identity.context import Identity, SignedIn, open_identity
from shop.identity.errors import InvalidRefreshToken, SignInFailed
from shop.identity.maintenance import delete_old_sign_ins
from shop.identity.models import Credential, OneTimeToken, RefreshToken, SignInSession, SignInThrottle
from shop_tests.support.identity import TEST_SETTINGS, TEST_SIGNER
from shop_tests.support.people import OTHER_PASSWORD, PASSWORD, Mailbox, bearer, new_address, post, sign_up
from shop_tests.support.waiting import until_waiting

_CLIENT = Client("192.0.2.1", "test")


async def refresh(client: httpx.AsyncClient, token: str) -> httpx.Response:
    return await client.post("/auth/refresh", json={"refresh_token": token})


async def let_time_pass(stored: Database, time: timedelta) -> None:
    """Change the times of all sessions and refresh tokens, as if the time had passed."""
    async with stored.begin() as session:
        await session.execute(update(RefreshToken).values(replaced_at=RefreshToken.replaced_at - time))
        await session.execute(
            update(SignInSession).values(
                expires_at=SignInSession.expires_at - time, ends_at=SignInSession.ends_at - time
            )
        )


async def count_usable_tokens(stored: Database) -> int:
    async with stored.session() as session:
        query = select(func.count()).select_from(RefreshToken).where(RefreshToken.replaced_at.is_(None))
        return (await session.scalars(query)).one()


async def test_a_refresh_token_is_replaced_by_its_use(anonymous: httpx.AsyncClient, mailbox: Mailbox) -> None:
    first = await sign_up(anonymous, mailbox, new_address())
    second = (await refresh(anonymous, first["refresh_token"])).json()
    third = (await refresh(anonymous, second["refresh_token"])).json()
    assert len({each["refresh_token"] for each in (first, second, third)}) == 3
    assert (await anonymous.get("/auth/me", headers=bearer(third))).status_code == 200


@pytest.mark.parametrize("age", [timedelta(0), timedelta(seconds=11)])
async def test_a_token_that_was_replaced_ends_the_session(
    anonymous: httpx.AsyncClient, mailbox: Mailbox, stored: Database, age: timedelta
) -> None:
    """The thief uses the copy after its owner has gone on (at once), or after the tolerance."""
    stolen = (await sign_up(anonymous, mailbox, new_address()))["refresh_token"]
    used = (await refresh(anonymous, stolen)).json()["refresh_token"]
    if not age:
        used = (await refresh(anonymous, used)).json()["refresh_token"]
    await let_time_pass(stored, age)
    assert (await refresh(anonymous, stolen)).json()["type"] == "urn:howdah:problem:invalid-refresh-token"
    assert (await refresh(anonymous, used)).status_code == 401


async def test_a_refresh_whose_response_was_lost_may_be_repeated(
    anonymous: httpx.AsyncClient, mailbox: Mailbox, stored: Database
) -> None:
    token = (await sign_up(anonymous, mailbox, new_address()))["refresh_token"]
    lost, repeated = (await refresh(anonymous, token)).json(), (await refresh(anonymous, token)).json()
    assert lost["refresh_token"] == repeated["refresh_token"]
    assert await count_usable_tokens(stored) == 1


@asynccontextmanager
async def open_two(url: str, mailbox: Mailbox) -> AsyncIterator[list[Identity]]:
    """Two processes with connections of their own."""
    options: dict[str, Any] = {"settings": TEST_SETTINGS, "signer": TEST_SIGNER, "mailer": mailbox}
    async with (
        Database(url, pool_size=2) as one,
        Database(url, pool_size=2) as two,
        open_identity(one, **options) as first,
        open_identity(two, **options) as second,
    ):
        yield [first, second]


async def race(
    stored: Database, processes: list[Identity], token: str, *, query: str
) -> list[SignedIn | BaseException]:
    """Refresh in both processes while the session's row is locked, so that both have read the token."""
    async with stored.begin() as session:
        await session.execute(text("SELECT FROM sign_in_sessions FOR UPDATE"))
        running = [asyncio.create_task(service.refresh(each, token, _CLIENT)) for each in processes]
        await until_waiting(stored, 2, query=query)
    return await asyncio.gather(*running, return_exceptions=True)


async def test_two_refreshes_at_the_same_moment_get_the_same_token(
    anonymous: httpx.AsyncClient, mailbox: Mailbox, stored: Database, database_url: str
) -> None:
    token = (await sign_up(anonymous, mailbox, new_address()))["refresh_token"]
    async with open_two(database_url, mailbox) as processes:
        answers = await race(stored, processes, token, query="%FOR UPDATE%")
    assert len({each.refresh_token for each in answers if isinstance(each, SignedIn)}) == 1
    assert [type(each) for each in answers] == [SignedIn, SignedIn]
    assert await count_usable_tokens(stored) == 1


async def test_without_the_lock_two_refreshes_would_split_the_session(
    anonymous: httpx.AsyncClient,
    mailbox: Mailbox,
    stored: Database,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control: both tokens can be used, so a thief and the owner could go on side by side."""
    locked = sessions._lock_session
    monkeypatch.setattr(
        sessions,
        "_lock_session",
        lambda id_: (
            select(*locked(id_).selected_columns)
            .select_from(SignInSession)
            .outerjoin(Credential, Credential.user_id == SignInSession.user_id)
            .where(SignInSession.id == id_)
        ),
    )
    token = (await sign_up(anonymous, mailbox, new_address()))["refresh_token"]
    async with open_two(database_url, mailbox) as processes:
        answers = await race(stored, processes, token, query="%refresh_tokens%")
    assert len({each.refresh_token for each in answers if isinstance(each, SignedIn)}) == 2
    assert await count_usable_tokens(stored) == 2


@pytest.mark.parametrize(("days", "refreshes"), [(15, 0), (13, 6)])
async def test_a_session_ends_when_it_is_idle_and_at_its_greatest_age(
    anonymous: httpx.AsyncClient, mailbox: Mailbox, stored: Database, days: int, refreshes: int
) -> None:
    """It is idle after 14 days, and ends after 90 days in any case."""
    token = (await sign_up(anonymous, mailbox, new_address()))["refresh_token"]
    for _ in range(refreshes):
        await let_time_pass(stored, timedelta(days=days))
        response = await refresh(anonymous, token)
        assert response.status_code == 200
        token = response.json()["refresh_token"]
    await let_time_pass(stored, timedelta(days=days))
    assert (await refresh(anonymous, token)).status_code == 401


async def test_a_user_lists_and_ends_their_own_sessions(anonymous: httpx.AsyncClient, mailbox: Mailbox) -> None:
    email = new_address()
    first = await sign_up(anonymous, mailbox, email)
    second = await post(anonymous, "/auth/sign-in", email=email, password=PASSWORD)
    items = (await anonymous.get("/auth/sessions", headers=bearer(second))).json()["items"]
    assert [each["is_current"] for each in items] == [True, False]
    assert {each["address"] for each in items} == {"127.0.0.1"}
    ended = await anonymous.delete(f"/auth/sessions/{items[1]['id']}", headers=bearer(second))
    assert ended.status_code == 204
    assert (await anonymous.get("/auth/me", headers=bearer(first))).status_code == 401
    third = await post(anonymous, "/auth/sign-in", email=email, password=PASSWORD)
    await anonymous.delete("/auth/sessions", headers=bearer(second))
    assert (await anonymous.get("/auth/me", headers=bearer(third))).status_code == 401
    assert (await anonymous.get("/auth/me", headers=bearer(second))).status_code == 200


async def test_the_session_of_another_user_is_missing(anonymous: httpx.AsyncClient, mailbox: Mailbox) -> None:
    mine, other = [await sign_up(anonymous, mailbox, new_address()) for _ in range(2)]
    [theirs] = (await anonymous.get("/auth/sessions", headers=bearer(other))).json()["items"]
    missing = str(uuid4())
    answers = [
        await anonymous.delete(f"/auth/sessions/{each}", headers=bearer(mine)) for each in (theirs["id"], missing)
    ]
    assert [each.status_code for each in answers] == [404, 404]
    assert answers[0].text.replace(theirs["id"], missing) == answers[1].text
    assert (await anonymous.get("/auth/me", headers=bearer(other))).status_code == 200


async def test_a_password_change_ends_the_other_sessions(
    anonymous: httpx.AsyncClient, mailbox: Mailbox, identity: Identity
) -> None:
    email = new_address()
    first = await sign_up(anonymous, mailbox, email)
    second = await post(anonymous, "/auth/sign-in", email=email, password=PASSWORD)
    wrong = await anonymous.put(
        "/auth/password",
        json={"current_password": OTHER_PASSWORD, "new_password": OTHER_PASSWORD},
        headers=bearer(second),
    )
    assert wrong.status_code == 401
    missing = await anonymous.put("/auth/password", json={"new_password": OTHER_PASSWORD}, headers=bearer(second))
    assert missing.status_code == 401
    changed = await anonymous.put(
        "/auth/password", json={"current_password": PASSWORD, "new_password": OTHER_PASSWORD}, headers=bearer(second)
    )
    assert changed.status_code == 204
    assert (await anonymous.get("/auth/me", headers=bearer(first))).status_code == 401
    with pytest.raises(InvalidRefreshToken):
        await service.refresh(identity, first["refresh_token"], _CLIENT)
    assert (await refresh(anonymous, second["refresh_token"])).status_code == 200
    await mailbox.wait_for(email, number=2)
    assert (await anonymous.post("/auth/sign-in", json={"email": email, "password": PASSWORD})).status_code == 401
    await post(anonymous, "/auth/sign-in", email=email, password=OTHER_PASSWORD)


async def test_a_sign_in_that_has_begun_before_a_password_change_fails(
    anonymous: httpx.AsyncClient, mailbox: Mailbox, stored: Database, identity: Identity
) -> None:
    """It has verified the old password, and waits for the row while the password changes."""
    email = new_address()
    await sign_up(anonymous, mailbox, email)
    async with stored.begin() as session:
        await session.execute(text("UPDATE credentials SET password_hash = 'changed'"))
        running = asyncio.create_task(service.sign_in(identity, email=email, password=PASSWORD, client=_CLIENT))
        await until_waiting(stored, 1, query="%FOR UPDATE%")
    with pytest.raises(SignInFailed):
        await running


async def test_old_sessions_tokens_and_throttles_are_deleted(
    anonymous: httpx.AsyncClient, mailbox: Mailbox, stored: Database
) -> None:
    old, present = [await sign_up(anonymous, mailbox, new_address()) for _ in range(2)]
    for tokens in (old, present):
        await refresh(anonymous, tokens["refresh_token"])
    await post(anonymous, "/auth/sign-up", email=new_address(), name="Ada")
    async with stored.begin() as session:
        is_old = SignInSession.user_id == old["user_id"]
        past = func.now() - timedelta(days=31)
        await session.execute(update(SignInSession).where(is_old).values(expires_at=past))
        await session.execute(update(OneTimeToken).values(expires_at=past))
        await session.execute(update(SignInThrottle).values(updated_at=past))
    assert await delete_old_sign_ins(stored) >= 3
    async with stored.session() as session:
        users = set(await session.scalars(select(SignInSession.user_id)))
        counts = [
            (await session.scalars(select(func.count()).select_from(each))).one()
            for each in (OneTimeToken, SignInThrottle, RefreshToken)
        ]
    assert {str(each) for each in users} == {present["user_id"]}
    assert counts == [0, 0, 2]
