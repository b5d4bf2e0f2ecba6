"""Row-level security protects the customers' rows, even if all rules in Python fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import AsyncMock
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, InvalidStatement, paginate
from howdah.fastapi import AccessRule
from howdah.tenancy import grants_of, policies_of, role_in
from howdah_tests.support.path_pairs import list_direct_routes, note_routed
from shop import migrations
from shop.ledger import posting, service
from shop.ledger.account_queries import select_entries
from shop.ledger.http.rules import CustomerFields, OwnTransfers
from shop.ledger.transfer_queries import select_transfers
from shop.roles import CUSTOMER_ROLE, SERVICE_LOGIN, STAFF_ROLE, SYSTEM_ROLE
from shop.tables import Base, create_tables
from shop.web.access import OwnRows, Permission
from shop_tests.support.factories import make_account
from shop_tests.support.http_service import create_service, http_client
from shop_tests.support.large_ledger import create_large_ledger
from shop_tests.support.query_plans import explain
from shop_tests.support.second_line import (
    AMOUNT,
    SECRET,
    Call,
    Party,
    build_calls,
    find_leaks,
    is_system_route,
    make_party,
)

TABLES = [table.name for table in Base.metadata.sorted_tables if table.name != "seals"]  # a job changes the seals
NOT_OF_CUSTOMERS = {"/healthz", "/readyz", "/metrics", "/audit-events"}


@dataclass(frozen=True, slots=True)
class World:
    """A service whose rules don't limit customers, and two customers."""

    client: httpx.AsyncClient
    owner: Database
    description: dict[str, Any]
    attacker: Party
    victim: Party
    till: str

    async def attack(self) -> list[tuple[Call, httpx.Response]]:
        """The answers to the attacker's calls. The victim sends the same reads at the same time, so batches mix."""
        attacks = list(build_calls(self.description, self.attacker, self.victim, self.till))
        reads = [Call(each.method, each.path, self.victim, self.victim, each.options) for each in attacks]
        answers: list[tuple[Call, httpx.Response]] = []
        for start in range(0, len(attacks), 20):
            calls = attacks[start : start + 20]
            own = [read for read in reads[start : start + 20] if read.method == "GET"]
            got = await asyncio.gather(*(each.send(self.client) for each in [*calls, *own]))
            answers += zip(calls, got, strict=False)
            for read, response in zip(own, got[len(calls) :], strict=True):
                assert response.status_code < 300 or read.path in NOT_OF_CUSTOMERS, f"{read}: {response.text}"
        return answers

    async def read_everything(self) -> dict[str, set[str]]:
        """All rows of each table that the attacker doesn't own, as text."""
        async with self.owner.session() as session:
            return {
                table: {
                    row
                    for row in await session.scalars(text(f"SELECT row_to_json(t)::text FROM {table} AS t"))
                    if self.attacker.user_id not in row and self.attacker.account_id not in row
                }
                for table in TABLES
            }

    async def count_privileged_accounts(self) -> int:
        """The number of the attacker's accounts that only an operator could have opened."""
        async with self.owner.session() as session:
            found = await session.scalar(
                text("""
                SELECT count(*) FROM accounts WHERE user_id = :id
                    AND (allows_negative OR overdraft_limit > 0 OR balance_limit IS NOT NULL OR purpose IS NOT NULL)
                """),
                {"id": UUID(self.attacker.user_id)},
            )
            return int(found or 0)


def disable_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every role may do everything with the rows of every customer, as far as Python decides it."""
    monkeypatch.setattr(AccessRule, "check", lambda *_: None)
    monkeypatch.setattr(OwnRows, "find_customer", lambda *_: None)
    monkeypatch.setattr(OwnTransfers, "find_customer", lambda *_: None)
    monkeypatch.setattr(CustomerFields, "find_excluded", lambda *_: [])
    monkeypatch.setattr(Permission, "check", lambda *_: None)
    monkeypatch.setattr(posting, "owns", lambda *_: True)
    monkeypatch.setattr(service, "_find_foreign_only", AsyncMock(return_value=set()))


@pytest.fixture
async def world(committed_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    app = create_service(committed_url)
    routed = note_routed(app)
    async with http_client(app) as client, Database(committed_url, pool_size=1) as owner:
        till = await make_account(client, name="Till", allows_negative=True)
        victim = await make_party(client, till, text=SECRET, amount=AMOUNT)
        attacker = await make_party(client, till, text="attacker", amount=500)
        disable_rules(monkeypatch)
        yield World(client, owner, app.openapi(), attacker, victim, till["id"])
    assert not list_direct_routes(app) & {*routed}  # so the direct routes were attacked


async def test_without_the_rules_a_customer_sees_and_changes_nothing_of_another_one(world: World) -> None:
    before = await world.read_everything()
    answers = await world.attack()
    leaks = {str(call): leaked for call, response in answers if (leaked := find_leaks(call, response))}
    assert leaks == {}
    assert await world.read_everything() == before
    assert await world.count_privileged_accounts() == 0
    paths = {path for path in world.description["paths"] if not is_system_route(path)}
    assert {call.path for call, _ in answers} == paths


async def test_control_without_policies_the_same_attacks_succeed(world: World) -> None:
    async with world.owner.begin() as session:
        for table in TABLES:
            await session.execute(text(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY"))
            await session.execute(text(f"GRANT ALL ON {table} TO shop_customer"))
    before = await world.read_everything()
    answers = await world.attack()
    after = await world.read_everything()
    leaking = {call.path for call, response in answers if find_leaks(call, response)}
    described = world.description["paths"].items()
    reads = {path for path, operations in described if "get" in operations and not is_system_route(path)}
    assert leaking >= reads - NOT_OF_CUSTOMERS
    changed = {name for name, rows in before.items() if rows != after[name]}
    assert changed >= {"users", "orders", "order_items", "accounts"}
    assert await world.count_privileged_accounts() > 0


async def test_each_table_has_policies_and_a_decision_about_rights(session: AsyncSession) -> None:
    """A new table needs `staff_and_system()` or `system_only()`, and a `TableGrant` of each role that uses it."""
    missing = [
        table.name
        for table in Base.metadata.sorted_tables
        if "system" not in {policy.name for policy in policies_of(table)} or not grants_of(table)
    ]
    assert missing == []
    open_tables = await session.scalars(
        text("""
        SELECT relname FROM pg_class WHERE relnamespace = CAST('public' AS regnamespace) AND relkind IN ('r', 'p')
            AND relname <> 'alembic_version' AND NOT (relrowsecurity AND relforcerowsecurity)
        """)
    )
    assert open_tables.all() == []


async def test_the_roles_can_create_and_truncate_nothing(session: AsyncSession) -> None:
    for role in (SERVICE_LOGIN, CUSTOMER_ROLE, STAFF_ROLE, SYSTEM_ROLE):
        for statement in (
            "CREATE TABLE public.more (id int)",
            "CREATE FUNCTION public.more() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "TRUNCATE seals",
            "ALTER TABLE transfers DISABLE TRIGGER ALL",
            "ALTER TABLE orders DISABLE ROW LEVEL SECURITY",
            "DROP POLICY customers_read ON orders",
            "SET session_replication_role = replica",
            "UPDATE accounts SET balance = 1",
            "UPDATE accounts SET allows_negative = true",
            "UPDATE orders SET total_cents = 0",
            "INSERT INTO entries SELECT * FROM entries",
            "INSERT INTO seals (subject, digests) VALUES ('transfers', '{}')",
            "SELECT * FROM pg_authid",
        ):
            with pytest.raises(InvalidStatement, match=r"permission denied|must be owner"):
                async with session.begin_nested(), role_in(session, role):
                    await session.execute(text(statement))


async def test_only_the_system_reads_passwords_sessions_and_secrets(session: AsyncSession) -> None:
    for role in (SERVICE_LOGIN, CUSTOMER_ROLE, STAFF_ROLE):
        for secret in (
            *("password_hash FROM credentials", "id FROM sign_in_sessions", "token_hash FROM refresh_tokens"),
            *("token_hash FROM one_time_tokens", "secret FROM totp_devices", "secret_hash FROM api_keys"),
        ):
            with pytest.raises(InvalidStatement, match="permission denied"):
                async with session.begin_nested(), role_in(session, role):
                    await session.execute(text(f"SELECT {secret}"))


async def test_a_customer_cannot_use_the_functions_of_the_owner(session: AsyncSession) -> None:
    """PostgreSQL checks the right to execute a trigger's function when the trigger is created."""
    for function in ("post_transfers", "seal_transfers", "link_seals"):
        may_execute = await session.scalar(
            text("SELECT has_function_privilege(:role, oid, 'EXECUTE') FROM pg_proc WHERE proname = :name"),
            {"role": CUSTOMER_ROLE, "name": function},
        )
        assert may_execute is False


@pytest.mark.parametrize("create", [migrations.upgrade, create_tables], ids=["migrated", "created by the models"])
async def test_an_own_temporary_table_is_refused(empty_url: str, create: Callable[[str], object]) -> None:
    """CREATE DATABASE doesn't copy this right of a template, so the other fixtures don't have it."""
    await asyncio.to_thread(create, empty_url)
    database = Database(empty_url, pool_size=1)
    async with database, database.with_settings(role=CUSTOMER_ROLE).session() as session:
        with pytest.raises(InvalidStatement, match="permission denied to create temporary tables"):
            await session.execute(text("CREATE TEMPORARY TABLE accounts (id uuid)"))


async def test_the_policies_leave_a_customers_lists_their_indexes(session: AsyncSession) -> None:
    account_id, user_id = await create_large_ledger(session), uuid4()
    await session.execute(
        text("UPDATE accounts SET user_id = :user WHERE id = :id"), {"user": user_id, "id": account_id}
    )
    await session.execute(text("SELECT set_config('app.user_id', :id, true)"), {"id": str(user_id)})
    async with role_in(session, CUSTOMER_ROLE):
        for query in (
            select_entries(account_id),
            select_transfers(scope="", account_id=account_id, customer=user_id),
            select_transfers(scope="", customer=user_id),
        ):
            nodes = await explain(session, partial(paginate, session, query, limit=20))
            scanned = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"}
            assert scanned <= {"accounts", "pending_transfers"}  # these are small here
