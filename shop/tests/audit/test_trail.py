"""The audit trail: each change has its event, nobody can change an event, and `shop check` finds every manipulation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, DatabaseError, savepoint, utcnow
from shop.audit import AuditAction, AuditEvent, record
from shop.identity.principals import Principal, Role
from shop.ledger.check import check_ledger
from shop_tests.support.factories import make_account, make_order, make_user, walk
from shop_tests.support.identity import ADMIN, sign_in
from shop_tests.support.problems import assert_problem
from shop_tests.support.trigger_bypass import disable_triggers, enable_triggers

GRACE = {"email": "grace@example.com", "name": "Grace"}


async def list_events(client: httpx.AsyncClient, **filters: Any) -> list[dict[str, Any]]:
    answer = await client.get("/audit-events", params=filters | {"sort": "at"})
    assert answer.status_code == 200, answer.text
    events: list[dict[str, Any]] = answer.json()["items"]
    return events


def summarize(events: list[dict[str, Any]]) -> list[tuple[str, str | None, Mapping[str, Any]]]:
    return [(event["action"], event["subject_id"], event["details"]) for event in events]


async def test_each_change_of_a_user_has_an_event_with_its_actor(client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "k", "X-Request-ID": "the-request"}
    [user, again] = [(await client.post("/users", json=GRACE, headers=key)).json() for _ in range(2)]
    assert user == again
    path, own = f"/users/{user['id']}", sign_in(Role.CUSTOMER, user["id"])
    changed = await client.patch(path, json={"name": "Ada"}, headers=own | {"If-Match": "*"})
    assert changed.status_code == 200
    await client.patch(path, json={"email": "ada@example.com"}, headers={"If-Match": "*"})
    await client.post("/users/bulk", json=[{"email": f"{n}@example.com", "name": "Ada"} for n in range(3)])
    await client.delete(path)
    events = await list_events(client)
    assert summarize(events) == [
        ("user.created", user["id"], {}),
        ("user.changed", user["id"], {"fields": ["name"]}),
        ("user.changed", user["id"], {"fields": ["email"]}),
        ("user.created_many", None, {"count": 3}),
        ("user.deleted", user["id"], {}),
    ]
    assert [(event["actor_user_id"], event["actor_role"]) for event in events[:2]] == [
        (str(ADMIN.user_id), "admin"),
        (user["id"], "customer"),
    ]
    assert {event["address"] for event in events} == {"127.0.0.1"}
    assert events[0]["request_id"] == "the-request"
    assert all(UUID(event["actor_session_id"]) and event["actor_api_key_id"] is None for event in events)


async def test_payments_and_statuses_have_events_and_replays_and_refusals_have_none(client: httpx.AsyncClient) -> None:
    user = await make_user(client)
    buyer, till = await make_account(client, 100, user_id=user["id"]), await make_account(client)
    orders = [await make_order(client, user["id"], 60) for _ in range(3)]
    body = {"from_account_id": buyer["id"], "to_account_id": till["id"]}
    for order, key in ((orders[0], "a"), (orders[0], "a"), (orders[1], "b")):  # paid, a replay, insufficient funds
        await client.post(f"/orders/{order['id']}/pay", json=body, headers={"Idempotency-Key": key})
    ids = [order["id"] for order in orders]
    await client.patch("/orders/status", json={"order_ids": [*ids, ids[0], str(uuid4())], "status": "shipped"})
    await client.patch("/orders/status", json={"order_ids": [ids[2]], "status": "delivered"})
    await client.patch("/orders/status", json={"order_ids": [str(uuid4())], "status": "delivered"})
    paid, *statuses = await list_events(client, subject_type="order")
    assert (paid["action"], paid["subject_id"]) == ("order.paid", ids[0])
    order = (await client.get(f"/orders/{ids[0]}")).json()
    assert paid["details"] == {"transfer_id": order["transfer_id"]}
    assert summarize(statuses) == [
        ("order.statuses_set", None, {"status": "shipped", "order_ids": ids}),
        ("order.statuses_set", ids[2], {"status": "delivered", "order_ids": [ids[2]]}),
    ]


async def test_accounts_that_are_opened_or_changed_have_events(client: httpx.AsyncClient) -> None:
    user = await make_user(client)
    own, key = sign_in(Role.CUSTOMER, user["id"]), {"Idempotency-Key": "k"}
    body = {"name": "Savings", "currency": "GBP"}
    [account, _] = [(await client.post("/accounts", json=body, headers=own | key)).json() for _ in range(2)]
    lines = [json.dumps(body | {"idempotency_key": name}) for name in ("k", "a", "b", "b")]
    headers = own | {"Content-Type": "application/x-ndjson"}
    batch = await client.post("/accounts/batch", content="\n".join(lines), headers=headers)
    opened = [json.loads(line)["account"]["id"] for line in batch.iter_lines()]
    path, current = f"/accounts/{account['id']}", {"If-Match": "*"}
    assert (await client.patch(path, json={"name": "x"}, headers=own | current)).status_code == 200
    frozen = {"state": "frozen", "overdraft_limit": 5, "name": "y"}
    assert (await client.patch(path, json=frozen, headers=current)).status_code == 200
    assert (await client.patch(path, json={"state": "open"}, headers=own | current)).status_code == 403
    events = await list_events(client, subject_type="account")
    assert summarize(events) == [
        ("account.opened", account["id"], {}),
        ("account.opened", None, {"account_ids": opened[1:3]}),
        ("account.changed", account["id"], {"fields": ["name"]}),
        (
            "account.changed",
            account["id"],
            {"fields": ["name", "overdraft_limit", "state"], "state": "frozen", "overdraft_limit": 5},
        ),
    ]
    assert [each["actor_role"] for each in events] == ["customer", "customer", "customer", "admin"]


async def test_a_change_that_fails_has_no_event(client: httpx.AsyncClient) -> None:
    user = await make_user(client, email="ada@example.com")
    other = await make_user(client)
    before = len(await list_events(client))
    path = f"/users/{other['id']}"
    taken = await client.patch(path, json={"email": user["email"]}, headers={"If-Match": "*"})
    assert_problem(taken, 409, "unique-violation")
    stale = await client.patch(path, json={"name": "x"}, headers={"If-Match": '"9"'})
    assert_problem(stale, 412, "precondition-failed")
    await client.post("/users/bulk", json=[GRACE, GRACE])
    await client.delete(f"/users/{uuid4()}")
    assert len(await list_events(client)) == before


async def test_an_event_exists_only_if_its_transaction_is_committed(stored: Database) -> None:
    actor = Principal(uuid4(), Role.OPERATOR, api_key_id=uuid4())
    async with stored.session() as session:
        await record(session, AuditAction.USER_CHANGED, actor=actor, subject_type="user", subject_id=uuid4())
        await session.rollback()
    refused: dict[str, Any] = {"actor": None, "subject_type": "session", "details": {"reason": "x"}, "address": "::1"}
    async with stored.begin() as session:
        await record(session, AuditAction.SIGN_IN_REFUSED, **refused)
    async with stored.session() as session:
        [event] = await session.scalars(select(AuditEvent))
    assert (event.action, event.actor_user_id, event.details) == ("session.sign_in_refused", None, {"reason": "x"})


@pytest.mark.parametrize("name", ["password", "new_password", "refresh_token", "TOTP_secret", "key_hash", "code"])
@pytest.mark.parametrize("is_nested", [False, True])
async def test_a_detail_with_the_name_of_a_secret_is_rejected(
    session: AsyncSession, name: str, is_nested: bool
) -> None:
    details: dict[str, Any] = {"values": {name: "x"}} if is_nested else {name: "x"}
    with pytest.raises(ValueError, match="the name of a secret"):
        await record(session, AuditAction.USER_CHANGED, actor=None, subject_type="user", details=details)


async def test_a_long_address_is_cut(session: AsyncSession) -> None:
    address = "fe80::" + "1" * 50
    await record(session, AuditAction.USER_CHANGED, actor=None, subject_type="user", address=address)
    assert await session.scalar(select(AuditEvent.address)) == address[:45]


async def test_the_trail_is_for_staff_and_has_filters_and_pages(client: httpx.AsyncClient) -> None:
    users = [await make_user(client) for _ in range(5)]
    operator = sign_in(Role.OPERATOR)
    await client.post("/users", json=GRACE, headers=operator)
    for customer in (sign_in(Role.CUSTOMER), sign_in(Role.CUSTOMER, users[0]["id"])):
        assert_problem(await client.get("/audit-events", headers=customer), 403, "not-allowed")
    newest_first = (await client.get("/audit-events", headers=operator)).json()["items"]
    in_order = await list_events(client)
    assert newest_first == in_order[::-1]
    assert [each["subject_id"] for each in in_order[:5]] == [user["id"] for user in users]
    pages = await walk(client, "/audit-events", limit=2, sort="at")
    assert [each for page in pages for each in page] == in_order
    assert await list_events(client, actor_user_id=in_order[5]["actor_user_id"]) == in_order[5:]
    assert await list_events(client, subject_id=users[1]["id"]) == [in_order[1]]
    assert await list_events(client, action="user.deleted") == []
    assert await list_events(client, at_from=in_order[3]["at"], at_before=in_order[5]["at"]) == in_order[3:5]
    for parameters in ({"action": "unknown"}, {"actor_user_id": "1"}, {"subject_id": ""}, {"order": "at"}):
        assert_problem(await client.get("/audit-events", params=parameters), 422, "validation")


async def add_events(session: AsyncSession, count: int) -> list[UUID]:
    """Add events, and return their ids."""
    for number in range(count):
        details = {"number": number}
        await record(session, AuditAction.USER_CHANGED, actor=ADMIN, subject_type="user", details=details)
    await session.execute(text("SELECT link_seals(1000)"))
    return list(await session.scalars(select(AuditEvent.id).order_by(AuditEvent.at)))


async def test_nobody_changes_an_event_or_chooses_its_time(session: AsyncSession) -> None:
    await add_events(session, 1)
    for statement in ("UPDATE audit_events SET address = 'x'", "DELETE FROM audit_events", "TRUNCATE audit_events"):
        with pytest.raises(DatabaseError, match="never changed or deleted"):
            async with savepoint(session):
                await session.execute(text(statement))
    values = {"action": "x", "subject_type": "x", "details": {}}
    await session.execute(insert(AuditEvent).values(at=utcnow() - timedelta(days=9), **values))
    assert await session.scalar(text("SELECT min(at) > now() - interval '1 day' FROM audit_events"))
    assert (await check_ledger(session)).faults == {}


async def test_a_check_finds_every_event_that_was_changed_without_triggers(session: AsyncSession) -> None:
    changes = (
        "at = at + interval '1 us'",
        "action = 'user.deleted'",
        "actor_user_id = gen_random_uuid()",
        "actor_user_id = NULL, actor_session_id = actor_user_id",
        "actor_role = 'operator'",
        "actor_session_id = gen_random_uuid()",
        "actor_api_key_id = gen_random_uuid()",
        "subject_type = 'x'",
        "subject_id = 'x'",
        "details = '{}'",
        "address = '::1'",
        "request_id = 'x'",
    )
    deleted, *changed = await add_events(session, len(changes) + 1)
    await disable_triggers(session)
    await session.execute(text("DELETE FROM audit_events WHERE id = :id"), {"id": deleted})
    for id_, change in zip(changed, changes, strict=True):
        statement = text(f"UPDATE audit_events SET {change} WHERE id = :id")
        await session.execute(statement, {"id": id_})
    added = {"id": uuid4(), "action": "x", "subject_type": "x", "details": {}}
    await session.execute(insert(AuditEvent).values(**added))
    await enable_triggers(session)
    assert (await check_ledger(session)).faults == {
        "sealed audit events are missing": [f"audit event {deleted}"],
        "audit events are not sealed": [f"audit event {added['id']}"],
        "audit events differ from their seal": sorted(f"audit event {id_}" for id_ in changed),
    }
