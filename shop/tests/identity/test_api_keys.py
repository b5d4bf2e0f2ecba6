"""API keys: their life over HTTP, their scopes, and what the cache keeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import func, select, text, update

from howdah import Database
from howdah.fastapi import NotAuthenticated
from shop.identity.api_keys import verification
from shop.identity.api_keys.formats import generate_key, parse_key
from shop.identity.api_keys.models import ApiKey
from shop.identity.api_keys.repository import delete_old_keys
from shop.identity.api_keys.service import MAX_KEYS, create_key
from shop.identity.api_keys.verification import MAX_STALENESS_SECONDS, ApiKeyVerifier, open_verifier
from shop.identity.models import Credential
from shop.identity.principals import Principal, Role
from shop.identity.scopes import Scope, scopes_of_role
from shop.users.models import User
from shop_tests.support.http_service import client_of, create_service, http_client
from shop_tests.support.identity import sign_in
from shop_tests.support.problems import assert_problem
from shop_tests.support.statement_log import log_statements
from shop_tests.support.waiting import until

PATH = "/auth/api-keys"


class _Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest_asyncio.fixture
async def anyone(service: str, stored: Database) -> AsyncIterator[httpx.AsyncClient]:
    """A client that isn't signed in."""
    async with client_of(service, signs_in=False) as client:
        yield client


async def make_user(database: Database, role: Role = Role.CUSTOMER) -> UUID:
    async with database.begin() as session:
        user = User(email=f"{uuid4()}@example.com", name="Ada")
        session.add(user)
        await session.flush()
        session.add(Credential(user_id=user.id, role=role))
        return user.id


async def make_key(
    database: Database, user_id: UUID, *scopes: Scope, role: Role = Role.CUSTOMER, days: float = 1
) -> str:
    async with database.begin() as session:
        principal = Principal(user_id, role)
        key, _ = await create_key(
            session, principal, name=uuid4().hex, scopes=scopes or {Scope.READ_USERS}, expires_in=timedelta(days=days)
        )
    return key


def body(**changes: Any) -> dict[str, Any]:
    return {"name": "warehouse", "scopes": ["users:read"]} | changes


async def test_a_key_is_created_used_listed_and_revoked(anyone: httpx.AsyncClient, stored: Database) -> None:
    user_id = await make_user(stored)
    signed_in = sign_in(Role.CUSTOMER, user_id)
    created = await anyone.post(PATH, json=body(expires_in_days=30), headers=signed_in)
    assert created.status_code == 201, created.text
    key, shown = created.json().pop("key"), created.json()
    assert key.startswith(shown["prefix"] + "_")
    assert created.headers["location"] == f"{PATH}/{shown['id']}"
    assert created.headers["cache-control"] == "no-store"

    used = await anyone.get("/users", headers={"X-API-Key": key})
    assert used.status_code == 200, used.text

    [listed] = (await anyone.get(PATH, headers=signed_in)).json()["items"]
    assert listed == {name: value for name, value in shown.items() if name != "key"}
    assert key.removeprefix(shown["prefix"]) not in str(listed)

    for _ in range(2):
        assert (await anyone.delete(created.headers["location"], headers=signed_in)).status_code == 204
        rejected = await anyone.get("/users", headers={"X-API-Key": key})
        assert_problem(rejected, 401, "not-authenticated")
        assert rejected.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    [listed] = (await anyone.get(PATH, headers=signed_in)).json()["items"]
    assert listed["revoked_at"] is not None


async def test_only_the_hash_of_a_key_is_stored(stored: Database) -> None:
    key = await make_key(stored, await make_user(stored))
    async with stored.session() as session:
        stored_row = (await session.execute(text("SELECT api_keys::text FROM api_keys"))).scalar_one()
    secret = key.split("_", 2)[2]
    assert secret not in stored_row
    assert sha256(secret.encode()).hexdigest() in stored_row


async def test_an_api_key_cannot_manage_api_keys(anyone: httpx.AsyncClient, stored: Database) -> None:
    user_id = await make_user(stored, Role.ADMIN)
    headers = {"X-API-Key": await make_key(stored, user_id, *Scope, role=Role.ADMIN)}
    for answer in (
        await anyone.get(PATH, headers=headers),
        await anyone.post(PATH, json=body(), headers=headers),
        await anyone.delete(f"{PATH}/{uuid4()}", headers=headers),
    ):
        assert_problem(answer, 403, "not-allowed")


async def test_a_customer_manages_only_their_own_keys(anyone: httpx.AsyncClient, stored: Database) -> None:
    owner, other = await make_user(stored), await make_user(stored)
    await make_key(stored, owner)
    operator_id, admin_id = await make_user(stored, Role.OPERATOR), await make_user(stored, Role.ADMIN)
    customer, stranger = sign_in(Role.CUSTOMER, owner), sign_in(Role.CUSTOMER, other)
    operator, admin = sign_in(Role.OPERATOR, operator_id), sign_in(Role.ADMIN, admin_id)

    [found] = (await anyone.get(PATH, headers=customer)).json()["items"]
    assert (await anyone.get(PATH, headers=stranger)).json()["items"] == []
    assert (await anyone.get(PATH, headers=stranger, params={"user_id": str(owner)})).json()["items"] == []
    for reader in (operator, admin):
        assert (await anyone.get(PATH, headers=reader, params={"user_id": str(owner)})).json()["items"] == [found]

    foreign = await anyone.delete(f"{PATH}/{found['id']}", headers=stranger)
    missing = await anyone.delete(f"{PATH}/{(missing_id := uuid4())}", headers=stranger)
    assert_problem(foreign, 404, "not-found")
    assert foreign.text.replace(found["id"], "") == missing.text.replace(str(missing_id), "")
    assert_problem(await anyone.delete(f"{PATH}/{found['id']}", headers=operator), 403, "not-allowed")
    assert (await anyone.delete(f"{PATH}/{found['id']}", headers=admin)).status_code == 204


async def test_invalid_keys_are_not_created(anyone: httpx.AsyncClient, stored: Database) -> None:
    signed_in = sign_in(Role.CUSTOMER, await make_user(stored))
    for wrong in (
        body(scopes=[]),
        body(scopes=["users:all"]),
        body(name=""),
        body(expires_in_days=0),
        body(expires_in_days=1000),
        body(user_id=str(uuid4())),
    ):
        assert_problem(await anyone.post(PATH, json=wrong, headers=signed_in), 422, "validation")
    answer = await anyone.post(PATH, json=body(scopes=["audit:read"]), headers=signed_in)
    assert_problem(answer, 403, "not-allowed")


async def test_the_number_of_keys_is_limited_also_for_concurrent_requests(
    anyone: httpx.AsyncClient, stored: Database
) -> None:
    signed_in = sign_in(Role.CUSTOMER, await make_user(stored))
    answers = await asyncio.gather(
        *(anyone.post(PATH, json=body(name=str(n)), headers=signed_in) for n in range(MAX_KEYS + 5))
    )
    assert sorted(each.status_code for each in answers) == [201] * MAX_KEYS + [409] * 5
    assert_problem(next(each for each in answers if each.status_code == 409), 409, "too-many-api-keys")
    # an expired key doesn't count, and its name is free again
    async with stored.begin() as session:
        await session.execute(update(ApiKey).where(ApiKey.name == "3").values(expires_at=func.statement_timestamp()))
    assert (await anyone.post(PATH, json=body(name="3"), headers=signed_in)).status_code == 201


async def test_a_repeated_creation_makes_no_second_key(anyone: httpx.AsyncClient, stored: Database) -> None:
    headers = sign_in(Role.CUSTOMER, await make_user(stored)) | {"Idempotency-Key": "1"}
    first, second = [await anyone.post(PATH, json=body(), headers=headers) for _ in range(2)]
    assert first.status_code == 201
    assert_problem(second, 409, "unique-violation", constraint="uq_api_keys_user_id_name")
    async with stored.session() as session:
        assert (await session.scalar(text("SELECT count(*) FROM idempotent_requests"))) == 0


async def test_a_key_has_its_scopes_within_the_current_role_of_its_user(stored: Database) -> None:
    user_id = await make_user(stored, Role.OPERATOR)
    key = await make_key(stored, user_id, Scope.READ_ORDERS, Scope.READ_AUDIT, role=Role.OPERATOR)
    async with open_verifier(stored) as verifier:
        principal = await verifier.verify(key)
        assert (principal.user_id, principal.role) == (user_id, Role.OPERATOR)
        assert principal.scopes == frozenset({"orders:read", "audit:read"})
        async with stored.begin() as session:
            await session.execute(update(Credential).values(role=Role.CUSTOMER))
        verifier.forget(user_id)
        principal = await verifier.verify(key)
        assert (principal.role, principal.scopes) == (Role.CUSTOMER, frozenset({"orders:read"}))
        # a user who can't sign in yet is a customer, too
        async with stored.begin() as session:
            await session.execute(text("DELETE FROM credentials"))
        verifier.forget(user_id)
        assert (await verifier.verify(key)).role is Role.CUSTOMER
    assert scopes_of_role(Role.ADMIN) == frozenset(Scope)


async def test_wrong_keys_are_rejected(anyone: httpx.AsyncClient, stored: Database) -> None:
    key = await make_key(stored, await make_user(stored))
    prefix = key[:17]
    expired = await make_key(stored, await make_user(stored), days=-1)
    for wrong in (
        generate_key()[0],
        f"{prefix}_{'A' * 43}",  # the right prefix
        key[:-1],
        key + "A",
        key.upper(),
        f"{key} x",
        "x" * 5000,
        "shop_",
        expired,
    ):
        answer = await anyone.get("/users", headers={"X-API-Key": wrong})
        assert_problem(answer, 401, "not-authenticated", detail="the API key is wrong, expired or revoked")
    assert_problem(await anyone.get("/users", headers={"Authorization": f"Bearer {key}"}), 401, "not-authenticated")


async def test_another_process_rejects_a_revoked_key_within_the_bound(
    committed_url: str, committed_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "MAX_STALENESS_SECONDS", 0.3)
    user_id = await make_user(committed_database)
    signed_in = sign_in(Role.CUSTOMER, user_id)
    async with (
        http_client(create_service(committed_url), signs_in=False) as first,
        http_client(create_service(committed_url), signs_in=False) as second,
    ):
        created = await first.post(PATH, json=body(), headers=signed_in)
        headers = {"X-API-Key": created.json()["key"]}
        for client in (first, second):
            assert (await client.get("/users", headers=headers)).status_code == 200
        await first.delete(created.headers["location"], headers=signed_in)
        assert (await first.get("/users", headers=headers)).status_code == 401

        async def is_rejected() -> bool:
            return (await second.get("/users", headers=headers)).status_code == 401

        await until(is_rejected, seconds=2)


async def test_unknown_keys_share_a_statement_and_known_ones_need_none(stored: Database) -> None:
    user_id = await make_user(stored)
    keys = [await make_key(stored, user_id) for _ in range(10)]
    wrong = [generate_key()[0] for _ in range(100)]
    async with open_verifier(stored) as verifier, log_statements(stored) as log:
        answers = await asyncio.gather(*map(verifier.verify, [*keys, *wrong, *keys]), return_exceptions=True)
        assert [isinstance(each, NotAuthenticated) for each in answers] == [False] * 10 + [True] * 100 + [False] * 10
        assert len(log.statements) == 1
        again = await asyncio.gather(*map(verifier.verify, [*keys, *wrong]), return_exceptions=True)
        assert [isinstance(each, NotAuthenticated) for each in again] == [False] * 10 + [True] * 100
        assert len(log.statements) == 1
        log.statements.clear()
    assert stored.pool_status().in_use == 0


async def test_a_cached_key_is_read_again_after_the_bound_and_not_used_after_its_expiry(stored: Database) -> None:
    clock, user_id = _Clock(), await make_user(stored)
    lasting = await make_key(stored, user_id)
    short = await make_key(stored, user_id, days=1 / 86_400)
    verifier = ApiKeyVerifier(stored, clock=clock)
    async with verifier.coalescer:
        await verifier.verify(lasting)
        await verifier.verify(short)
        async with stored.begin() as session:
            await session.execute(update(ApiKey).values(revoked_at=func.statement_timestamp()))
        clock.now += 1.0
        await verifier.verify(lasting)
        with pytest.raises(NotAuthenticated):  # it has expired, though the bound hasn't passed
            await verifier.verify(short)
        clock.now += MAX_STALENESS_SECONDS - 1.0
        with pytest.raises(NotAuthenticated):
            await verifier.verify(lasting)


async def test_a_key_that_was_being_read_while_it_was_revoked_is_not_cached(stored: Database) -> None:
    user_id = await make_user(stored)
    key = await make_key(stored, user_id)
    verifier = ApiKeyVerifier(stored)
    read, has_read, may_return = verifier._read, asyncio.Event(), asyncio.Event()

    async def read_slowly(prefixes: Any) -> Any:
        found = await read(prefixes)
        has_read.set()
        await may_return.wait()
        return found

    verifier.coalescer._apply = read_slowly
    async with verifier.coalescer:
        reading = asyncio.create_task(verifier.verify(key))
        await has_read.wait()
        async with stored.begin() as session:
            await session.execute(update(ApiKey).values(revoked_at=func.statement_timestamp()))
        verifier.forget(user_id)
        may_return.set()
        await reading  # it began before the revocation
        with pytest.raises(NotAuthenticated):
            await verifier.verify(key)


async def test_many_wrong_keys_displace_no_right_one_and_fill_no_memory(
    stored: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "_MAX_KNOWN", 3)
    monkeypatch.setattr(verification, "_MAX_WRONG", 20)
    user_id = await make_user(stored)
    keys = [await make_key(stored, user_id) for _ in range(5)]
    async with open_verifier(stored) as verifier:
        for key in keys:
            await verifier.verify(key)
        assert len(verifier._known) == 3
        wrong = [generate_key()[0] for _ in range(200)]
        await asyncio.gather(*map(verifier.verify, wrong), return_exceptions=True)
        assert len(verifier._wrong) == 20
        async with log_statements(stored) as log:
            for key in keys[-3:]:
                await verifier.verify(key)
            assert not log.statements


async def test_the_last_use_is_written_once_for_many_requests(stored: Database) -> None:
    user_id = await make_user(stored)
    used, unused = await make_key(stored, user_id), await make_key(stored, user_id)

    async def last_uses() -> list[Any]:
        async with stored.session() as session:
            rows = await session.execute(select(ApiKey.prefix, ApiKey.last_used_at))
        found = {row.prefix: row.last_used_at for row in rows}
        return [found[parse_key(key).prefix] for key in (used, unused)]  # type: ignore[union-attr]

    async with open_verifier(stored) as verifier:
        for _ in range(3):
            await verifier.verify(used)
        assert await last_uses() == [None, None]  # requests write nothing
        async with log_statements(stored) as log:
            for _ in range(2):
                await verifier.write_last_used()
            assert len(log.statements) == 1
        [written, nothing] = await last_uses()
        assert written is not None
        assert nothing is None
        await verifier.verify(used)
        await verifier.verify(unused)
    [again, at_the_end] = await last_uses()  # the end of the process writes, but a recent time isn't written again
    assert again == written
    assert at_the_end is not None


async def test_the_last_use_does_not_wait_for_a_locked_key(stored: Database) -> None:
    key = await make_key(stored, await make_user(stored))
    async with open_verifier(stored) as verifier:
        await verifier.verify(key)
        async with stored.begin() as session:
            await session.execute(select(ApiKey).with_for_update())
            async with asyncio.timeout(2):
                await verifier.write_last_used()


async def test_a_failed_write_of_last_uses_is_repeated(stored: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    key = await make_key(stored, await make_user(stored))

    async def fail(*_: Any) -> None:
        raise TimeoutError

    async with open_verifier(stored) as verifier:
        await verifier.verify(key)
        with monkeypatch.context() as patch:
            patch.setattr(verification, "write_last_used", fail)
            with pytest.raises(TimeoutError):
                await verifier.write_last_used()
        await verifier.write_last_used()
    async with stored.session() as session:
        assert await session.scalar(select(ApiKey.last_used_at)) is not None


async def test_old_keys_are_deleted(stored: Database) -> None:
    user_id = await make_user(stored)
    for days in (1, -1, -100):
        await make_key(stored, user_id, days=days)
    revoked = parse_key(await make_key(stored, user_id))
    assert revoked is not None
    async with stored.begin() as session:
        long_ago = func.statement_timestamp() - timedelta(days=91)
        await session.execute(update(ApiKey).where(ApiKey.prefix == revoked.prefix).values(revoked_at=long_ago))
    assert await delete_old_keys(stored, older_than=timedelta(days=90)) == 2


def test_the_hash_of_a_key_is_not_selected_with_its_row() -> None:
    # the roles of customers and of the staff have no right to read it
    assert "prefix" in str(select(ApiKey))
    assert "secret_hash" not in str(select(ApiKey))
