"""Each security event is in the audit trail, with its actor, its address and its subject."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pyotp
import pytest
from sqlalchemy import select, text

from howdah import Database
from shop.audit.models import AuditAction, AuditEvent
from shop.identity import events
from shop.identity.bootstrap import create_admin
from shop.identity.clients import Client
from shop.identity.context import Identity
from shop.identity.events import BoundedEvents
from shop_tests.support.people import (
    OTHER_PASSWORD,
    PASSWORD,
    Mailbox,
    bearer,
    new_address,
    post,
    sign_in_as_admin,
    sign_up,
)

_EVERY_SIGN_IN = {action for action in AuditAction if action.startswith(("session.", "credential.", "api_key."))}
_BLOCK = "UPDATE sign_in_throttles SET blocked_until = now() + interval '1 hour'"


@dataclass
class Trail:
    """The events that were recorded since the last call of `new`."""

    database: Database
    seen: int = 0

    async def new(self) -> list[AuditEvent]:
        async with self.database.session() as session:
            rows = list(await session.scalars(select(AuditEvent).order_by(AuditEvent.at)))
        new, self.seen = rows[self.seen :], len(rows)
        return new

    async def one(self) -> dict[str, Any]:
        [event] = await self.new()
        return describe(event)


def describe(event: AuditEvent) -> dict[str, Any]:
    """What a test compares. The address is that of the client, if there is one."""
    actor = None if event.actor_user_id is None else str(event.actor_user_id)
    assert event.address in ("127.0.0.1", None)
    return {"action": event.action, "actor": actor, "subject": event.subject_id} | dict(event.details)


def expect(action: AuditAction, subject: object, actor: object = None, **details: Any) -> Mapping[str, Any]:
    return {"action": action, "actor": actor, "subject": subject} | details


@pytest.fixture
def trail(stored: Database) -> Trail:
    return Trail(stored)


async def test_a_sign_up_has_events(anonymous: httpx.AsyncClient, trail: Trail, mailbox: Mailbox) -> None:
    email = new_address()
    tokens = await sign_up(anonymous, mailbox, email)
    user_id = tokens["user_id"]
    requested, signed_up, signed_in = await trail.new()
    assert describe(requested) == expect(AuditAction.SIGN_UP_REQUESTED, None)
    assert describe(signed_up) == expect(AuditAction.SIGNED_UP, user_id)
    assert describe(signed_in) == expect(AuditAction.SIGNED_IN, user_id, user_id, method="sign-up")
    assert signed_in.actor_session_id is not None
    assert {each.address for each in (requested, signed_up, signed_in)} == {"127.0.0.1"}
    assert email not in str([vars(each) for each in (requested, signed_up, signed_in)])
    await post(anonymous, "/auth/sign-up", email=email, name="Ada")
    assert await trail.one() == expect(AuditAction.SIGN_UP_REQUESTED, user_id)


async def test_sign_ins_and_refusals_have_events(anonymous: httpx.AsyncClient, trail: Trail, mailbox: Mailbox) -> None:
    email = new_address()
    user_id = (await sign_up(anonymous, mailbox, email))["user_id"]
    await trail.new()
    tokens = await post(anonymous, "/auth/sign-in", email=email, password=PASSWORD)
    assert await trail.one() == expect(AuditAction.SIGNED_IN, user_id, user_id, method="password")
    for address, subject in ((email, user_id), (new_address(), None)):
        body = {"email": address, "password": OTHER_PASSWORD}
        assert (await anonymous.post("/auth/sign-in", json=body)).status_code == 401
        assert await trail.one() == expect(AuditAction.SIGN_IN_REFUSED, subject, reason="password")
    form = {"grant_type": "password", "username": email, "password": OTHER_PASSWORD}
    assert (await anonymous.post("/auth/token", data=form)).status_code == 400
    assert await trail.one() == expect(AuditAction.SIGN_IN_REFUSED, user_id, reason="password")
    for _ in range(2):
        await anonymous.post("/auth/sign-out", headers=bearer(tokens))
    assert await trail.one() == expect(AuditAction.SIGNED_OUT, user_id, user_id)


async def test_throttled_attempts_are_counted_and_recorded_at_powers_of_ten(
    anonymous: httpx.AsyncClient, trail: Trail, mailbox: Mailbox
) -> None:
    email = new_address()
    user_id = (await sign_up(anonymous, mailbox, email))["user_id"]
    async with trail.database.begin() as session:
        # the address that has signed up has a count of its own
        await session.execute(text("UPDATE sign_in_sessions SET network = 'elsewhere'"))
    body = {"email": email, "password": OTHER_PASSWORD}
    for _ in range(6):
        await anonymous.post("/auth/sign-in", json=body)
        async with trail.database.begin() as session:
            await session.execute(text(f"{_BLOCK} WHERE blocked_until > now()"))
    await trail.new()
    async with trail.database.begin() as session:
        await session.execute(text("UPDATE sign_in_throttles SET refused = 0"))
    for _ in range(12):
        assert (await anonymous.post("/auth/sign-in", json=body)).status_code == 429
    assert [describe(each) for each in await trail.new()] == [
        expect(AuditAction.SIGN_IN_THROTTLED, user_id, attempts=1),
        expect(AuditAction.SIGN_IN_THROTTLED, user_id, attempts=10),
    ]


async def test_a_reused_refresh_token_has_an_event(
    anonymous: httpx.AsyncClient, trail: Trail, mailbox: Mailbox
) -> None:
    tokens = await sign_up(anonymous, mailbox, new_address())
    [*_, signed_in] = await trail.new()
    first = {"refresh_token": tokens["refresh_token"]}
    second = {"refresh_token": (await post(anonymous, "/auth/refresh", **first))["refresh_token"]}
    await post(anonymous, "/auth/refresh", **second)
    assert await trail.new() == []
    for _ in range(2):
        assert (await anonymous.post("/auth/refresh", json=first)).status_code == 401
    session_id = str(signed_in.actor_session_id)
    assert await trail.one() == expect(AuditAction.REFRESH_TOKEN_REUSED, tokens["user_id"], session_id=session_id)


async def test_ended_sessions_have_events(anonymous: httpx.AsyncClient, trail: Trail, mailbox: Mailbox) -> None:
    email = new_address()
    tokens = await sign_up(anonymous, mailbox, email)
    user_id, headers = tokens["user_id"], bearer(tokens)
    for _ in range(2):
        await post(anonymous, "/auth/sign-in", email=email, password=PASSWORD)
    [*_, last] = await trail.new()
    ended = str(last.actor_session_id)
    for _ in range(2):
        await anonymous.delete(f"/auth/sessions/{ended}", headers=headers)
    assert await trail.one() == expect(AuditAction.SESSIONS_REVOKED, user_id, user_id, session_id=ended)
    await anonymous.delete("/auth/sessions", headers=headers)
    assert await trail.one() == expect(AuditAction.SESSIONS_REVOKED, user_id, user_id, count=1)


async def test_changes_of_passwords_and_addresses_have_events(
    anonymous: httpx.AsyncClient, trail: Trail, mailbox: Mailbox
) -> None:
    email, other = new_address(), new_address()
    tokens = await sign_up(anonymous, mailbox, email)
    user_id, headers = tokens["user_id"], bearer(tokens)
    await trail.new()
    body = {"current_password": OTHER_PASSWORD, "new_password": OTHER_PASSWORD}
    assert (await anonymous.put("/auth/password", json=body, headers=headers)).status_code == 401
    assert await trail.one() == expect(AuditAction.PASSWORD_REFUSED, user_id, user_id)
    body["current_password"] = PASSWORD
    assert (await anonymous.put("/auth/password", json=body, headers=headers)).status_code == 204
    assert await trail.one() == expect(AuditAction.PASSWORD_CHANGED, user_id, user_id)

    await post(anonymous, "/auth/email-change", headers=headers, new_email=other, password=OTHER_PASSWORD)
    assert await trail.one() == expect(AuditAction.EMAIL_CHANGE_REQUESTED, user_id, user_id)
    await post(anonymous, "/auth/email-change/confirmation", token=await mailbox.token_for(other))
    assert await trail.one() == expect(AuditAction.EMAIL_CHANGED, user_id)

    for address, subject in ((new_address(), None), (other, user_id)):
        await post(anonymous, "/auth/password-reset", email=address)
        assert await trail.one() == expect(AuditAction.PASSWORD_RESET_REQUESTED, subject)
    token = await mailbox.token_for(other, number=2)
    await post(anonymous, "/auth/password-reset/confirmation", token=token, password=PASSWORD)
    assert await trail.one() == expect(AuditAction.PASSWORD_RESET, user_id)


async def test_authenticator_apps_and_recovery_codes_have_events(
    anonymous: httpx.AsyncClient, trail: Trail, mailbox: Mailbox
) -> None:
    email = new_address()
    tokens = await sign_up(anonymous, mailbox, email)
    user_id = tokens["user_id"]
    await trail.new()
    body = await post(anonymous, "/auth/totp/enrolment-token", headers=bearer(tokens), password=PASSWORD)
    begun = await post(anonymous, "/auth/totp", **body)
    enrolled = await post(anonymous, "/auth/totp/confirmation", **body, code=pyotp.TOTP(begun["secret"]).now())
    assert [describe(each) for each in await trail.new()] == [
        expect(AuditAction.TOTP_ENABLED, user_id),
        expect(AuditAction.SIGNED_IN, user_id, user_id, method="enrolment"),
    ]
    answer = {"email": email, "password": PASSWORD}
    assert (await anonymous.post("/auth/sign-in", json=answer | {"code": "000000"})).status_code == 401
    assert await trail.one() == expect(AuditAction.SIGN_IN_REFUSED, user_id, reason="code")
    recovery, other, *_ = enrolled["recovery_codes"]
    assert (await anonymous.post("/auth/sign-in", json=answer | {"code": recovery})).status_code == 200
    assert [describe(each) for each in await trail.new()] == [
        expect(AuditAction.RECOVERY_CODE_USED, user_id),
        expect(AuditAction.SIGNED_IN, user_id, user_id, method="password"),
    ]
    asked = {"password": PASSWORD, "code": other}
    await post(anonymous, "/auth/totp/enrolment-token", headers=bearer(enrolled), **asked)
    assert await trail.one() == expect(AuditAction.RECOVERY_CODE_USED, user_id, user_id)
    admin = await sign_in_as_admin(anonymous, trail.database)
    await trail.new()
    assert (await anonymous.delete(f"/auth/users/{user_id}/totp", headers=bearer(admin))).status_code == 204
    assert await trail.one() == expect(AuditAction.TOTP_DISABLED, user_id, admin["user_id"])


async def test_what_admins_do_has_events(anonymous: httpx.AsyncClient, trail: Trail, mailbox: Mailbox) -> None:
    tokens = await sign_in_as_admin(anonymous, trail.database)
    admin, headers = tokens["user_id"], bearer(tokens)
    owner = "the owner of the database"
    role_changed, link_created, signed_in = await trail.new()
    assert describe(role_changed) == expect(AuditAction.ROLE_CHANGED, admin, by=owner, new="admin")
    assert describe(link_created) == expect(AuditAction.SIGN_IN_LINK_CREATED, admin, by=owner)
    assert describe(signed_in) == expect(AuditAction.SIGNED_IN, admin, admin, method="link")
    assert [each.address for each in (role_changed, link_created, signed_in)] == [None, None, "127.0.0.1"]

    email = new_address()
    await post(anonymous, "/auth/invitations", headers=headers, email=email, name="Grace", role="operator")
    assert await trail.one() == expect(AuditAction.INVITED, None, admin, role="operator")
    token = await mailbox.token_for(email)
    await post(anonymous, "/auth/invitations/acceptance", token=token, password=PASSWORD)
    [accepted] = await trail.new()
    operator = accepted.subject_id
    assert describe(accepted) == expect(AuditAction.INVITATION_ACCEPTED, operator, role="operator")

    await anonymous.put(f"/auth/users/{operator}/role", json={"role": "customer"}, headers=headers)
    assert await trail.one() == expect(AuditAction.ROLE_CHANGED, operator, admin, old="operator", new="customer")
    await anonymous.delete(f"/auth/users/{operator}/sessions", headers=headers)
    assert await trail.one() == expect(AuditAction.SESSIONS_REVOKED, operator, admin, count=0)


@pytest.mark.parametrize("is_admin", [False, True])
async def test_api_keys_have_events(
    anonymous: httpx.AsyncClient, trail: Trail, mailbox: Mailbox, is_admin: bool
) -> None:
    if is_admin:
        tokens = await sign_in_as_admin(anonymous, trail.database)
    else:
        tokens = await sign_up(anonymous, mailbox, new_address())
    user_id, headers = tokens["user_id"], bearer(tokens)
    await trail.new()
    body = {"name": "warehouse", "scopes": ["orders:read", "users:read"]}
    created = await post(anonymous, "/auth/api-keys", headers=headers, **body)
    scopes = body["scopes"]
    expected = expect(AuditAction.API_KEY_CREATED, created["id"], user_id, user_id=user_id, scopes=scopes)
    assert await trail.one() == expected
    for _ in range(2):
        await anonymous.delete(f"/auth/api-keys/{created['id']}", headers=headers)
    assert await trail.one() == expect(AuditAction.API_KEY_REVOKED, created["id"], user_id, user_id=user_id)


async def test_a_flood_of_refusals_is_bounded_and_the_next_event_has_the_number_of_those_left_out(
    identity: Identity, trail: Trail
) -> None:
    now = 0.0
    bounded = BoundedEvents(trail.database, clock=lambda: now)

    async def refuse() -> None:
        await bounded.record(AuditAction.SIGN_IN_REFUSED, user_id=None, client=Client("192.0.2.1"), reason="password")

    bounded._available = 3
    for _ in range(10):
        await refuse()
    assert [each.details for each in await trail.new()] == 3 * [{"reason": "password"}]
    now += 2 / events._PER_SECOND
    for _ in range(4):
        await refuse()
    assert [each.details for each in await trail.new()] == [
        {"reason": "password", "left_out": 7},
        {"reason": "password"},
    ]
    now += 10**9
    assert bounded._take()
    assert bounded._available < events._BURST


async def test_an_event_of_a_change_that_fails_is_rolled_back(
    anonymous: httpx.AsyncClient, trail: Trail, mailbox: Mailbox
) -> None:
    """Another user gets the address between the request and the confirmation."""
    tokens, wanted = await sign_up(anonymous, mailbox, new_address()), new_address()
    await post(anonymous, "/auth/email-change", headers=bearer(tokens), new_email=wanted, password=PASSWORD)
    token = await mailbox.token_for(wanted)
    await create_admin(trail.database, wanted)
    await trail.new()
    refused = await anonymous.post("/auth/email-change/confirmation", json={"token": token})
    assert refused.status_code == 409
    assert await trail.new() == []


async def test_an_unknown_session_has_no_event(anonymous: httpx.AsyncClient, trail: Trail, mailbox: Mailbox) -> None:
    tokens = await sign_up(anonymous, mailbox, new_address())
    await trail.new()
    assert (await anonymous.delete(f"/auth/sessions/{uuid4()}", headers=bearer(tokens))).status_code == 404
    assert await trail.new() == []


def test_every_action_is_tested() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert {action for action in _EVERY_SIGN_IN if f"AuditAction.{action.name}" not in source} == set()
