"""The tokens of an ended session are rejected, in each process and within a bounded time."""

from __future__ import annotations

import time
from datetime import timedelta
from functools import partial
from itertools import product
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import func, select, text, update

from howdah import ConnectionFailed, Database
from howdah.fastapi import NotAuthenticated, ProblemException
from shop.identity.api_keys.service import create_key
from shop.identity.api_keys.verification import MAX_STALENESS_SECONDS
from shop.identity.clients import Client
from shop.identity.maintenance import delete_old_sign_ins
from shop.identity.models import Credential, SignInSession
from shop.identity.principals import Principal, Role
from shop.identity.revocation import MAX_STALENESS, POLL_INTERVAL, POLL_REVOCATIONS, Revocations, open_revocations
from shop.identity.scopes import Scope
from shop.identity.sessions import Lifetime, Lifetimes, open_session
from shop.identity.tokens import LEEWAY_SECONDS, LIFETIME
from shop.users.models import User
from shop_tests.support.http_service import create_service, http_client
from shop_tests.support.identity import TEST_SIGNER, sign_in
from shop_tests.support.waiting import until

_LIFETIME = Lifetime(idle=timedelta(hours=1), total=timedelta(hours=1))


class _Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


async def make_session(database: Database) -> UUID:
    """A session of a new user."""
    async with database.begin() as session:
        user = User(email=f"{uuid4()}@example.com", name="Ada")
        session.add(user)
        await session.flush()
        now = (await session.scalars(select(func.statement_timestamp()))).one()
        later = now + timedelta(days=1)
        opened = SignInSession(user_id=user.id, expires_at=later, ends_at=later)
        session.add(opened)
        await session.flush()
        return opened.id


async def end_session(database: Database, *ids: UUID, ago: timedelta = timedelta(0)) -> None:
    async with database.begin() as session:
        ended = update(SignInSession).where(SignInSession.id.in_(ids))
        await session.execute(ended.values(revoked_at=func.statement_timestamp() - ago))


def is_ended(revocations: Revocations, session_id: UUID) -> bool:
    try:
        revocations.check(session_id)
    except NotAuthenticated:
        return True
    return False


async def test_an_ended_session_is_rejected_by_two_services(
    committed_url: str, committed_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(POLL_REVOCATIONS, "every", POLL_INTERVAL / 10)
    ended, other = await make_session(committed_database), await make_session(committed_database)

    def header(session_id: UUID) -> dict[str, str]:
        token = TEST_SIGNER.sign(Principal(uuid4(), Role.ADMIN, session_id=session_id))
        return {"Authorization": f"Bearer {token}"}

    async with (
        http_client(create_service(committed_url), signs_in=False) as first,
        http_client(create_service(committed_url), signs_in=False) as second,
    ):
        for client in (first, second):
            assert (await client.get("/users", headers=header(ended))).status_code == 200
        await end_session(committed_database, ended)
        for client in (first, second):
            is_rejected = partial(_is_rejected, client, header(ended))
            await until(is_rejected, seconds=5)
            assert (await client.get("/users", headers=header(other))).status_code == 200


async def test_the_sessions_and_keys_of_a_deleted_user_end_in_two_services(
    committed_url: str, committed_database: Database
) -> None:
    """An admin, because the rows of a deleted customer are gone anyway."""
    async with committed_database.begin() as session:
        user = User(email="grace@example.com", name="Grace")
        session.add(user)
        await session.flush()
        session.add(Credential(user_id=user.id, role=Role.ADMIN))
        opened = await open_session(session, user.id, Role.ADMIN, Client(), Lifetimes(_LIFETIME))
        principal = Principal(user.id, Role.ADMIN, session_id=opened.id)
        key, _ = await create_key(
            session, principal, name="key", scopes={Scope.READ_USERS}, expires_in=timedelta(days=1)
        )
    credentials = ({"Authorization": f"Bearer {TEST_SIGNER.sign(principal)}"}, {"X-API-Key": key})
    async with (
        http_client(create_service(committed_url), signs_in=False) as first,
        http_client(create_service(committed_url), signs_in=False) as second,
    ):
        for client, headers in product((first, second), credentials):
            assert (await client.get("/users", headers=headers)).status_code == 200
        assert (await first.delete(f"/users/{user.id}", headers=sign_in(Role.ADMIN))).status_code == 204
        deleted_at = time.monotonic()
        assert [await _is_rejected(first, each) for each in credentials] == [True, True]
        for headers in credentials:
            await until(partial(_is_rejected, second, headers), seconds=5)
        assert time.monotonic() - deleted_at < POLL_INTERVAL.total_seconds() + MAX_STALENESS_SECONDS
        refreshed = await second.post("/auth/refresh", json={"refresh_token": opened.refresh_token})
        assert refreshed.status_code == 401


async def test_the_sessions_of_deleted_users_are_deleted_when_their_tokens_have_expired(stored: Database) -> None:
    recent, old, live = [await make_session(stored) for _ in range(3)]
    async with stored.begin() as session:
        for deleted in (recent, old):
            await session.execute(
                text("DELETE FROM users WHERE id = (SELECT user_id FROM sign_in_sessions WHERE id = :id)"),
                {"id": deleted},
            )
        hour_ago = func.statement_timestamp() - timedelta(hours=1, seconds=1)
        used = update(SignInSession).where(SignInSession.id.in_([old, live])).values(last_used_at=hour_ago)
        await session.execute(used)
    assert await delete_old_sign_ins(stored) == 1
    async with stored.session() as session:
        assert set(await session.scalars(select(SignInSession.id))) == {recent, live}


async def _is_rejected(client: httpx.AsyncClient, headers: dict[str, str]) -> bool:
    return (await client.get("/users", headers=headers)).status_code == 401


async def test_the_process_that_ends_a_session_rejects_it_at_once(stored: Database) -> None:
    revocations = Revocations(stored)
    await revocations.poll()
    session_id = uuid4()
    assert not is_ended(revocations, session_id)
    revocations.revoke(session_id)
    assert is_ended(revocations, session_id)


async def test_a_new_process_knows_the_sessions_that_ended_before_its_start(stored: Database) -> None:
    recently, long_ago = await make_session(stored), await make_session(stored)
    await end_session(stored, recently, ago=LIFETIME + timedelta(seconds=LEEWAY_SECONDS))
    await end_session(stored, long_ago, ago=LIFETIME + timedelta(minutes=5))  # its tokens have expired
    async with open_revocations(stored) as revocations:
        assert is_ended(revocations, recently)
        assert not is_ended(revocations, long_ago)


async def test_a_session_whose_end_is_committed_late_is_found(stored: Database) -> None:
    late, early = await make_session(stored), await make_session(stored)
    revocations = Revocations(stored)
    async with stored.begin() as session:
        await session.execute(
            update(SignInSession).where(SignInSession.id == late).values(revoked_at=func.statement_timestamp())
        )
        await end_session(stored, early)  # later, but committed first
        await revocations.poll()
        assert [is_ended(revocations, each) for each in (late, early)] == [False, True]
    await revocations.poll()
    assert is_ended(revocations, late)


async def test_an_ended_session_is_forgotten_after_its_tokens_have_expired(stored: Database) -> None:
    clock, session_id = _Clock(), await make_session(stored)
    revocations = Revocations(stored, clock=clock)
    await end_session(stored, session_id)
    await revocations.poll()
    clock.now += LIFETIME.total_seconds() + LEEWAY_SECONDS
    await revocations.poll()
    assert is_ended(revocations, session_id)
    await end_session(stored, session_id, ago=timedelta(hours=1))  # as if that time had passed in the database, too
    clock.now += timedelta(minutes=5).total_seconds()
    await revocations.poll()
    assert not is_ended(revocations, session_id)
    assert not revocations._forget_at


async def test_without_the_database_no_token_is_accepted_after_a_while(stored: Database) -> None:
    clock = _Clock()
    revocations = Revocations(stored, clock=clock)
    await revocations.poll()
    clock.now += MAX_STALENESS.total_seconds()
    revocations.check(uuid4())
    clock.now += 1
    with pytest.raises(ProblemException) as rejected:
        revocations.check(uuid4())
    assert rejected.value.status_code == 503
    await revocations.poll()
    revocations.check(uuid4())


async def test_a_process_that_starts_without_its_database_accepts_no_token() -> None:
    async with (
        Database("postgresql://shop@127.0.0.1:1/shop", pool_timeout=1) as nowhere,
        open_revocations(nowhere) as revocations,
    ):
        with pytest.raises(ConnectionFailed):
            await revocations.poll()
        with pytest.raises(ProblemException) as rejected:
            revocations.check(uuid4())
        assert rejected.value.status_code == 503
