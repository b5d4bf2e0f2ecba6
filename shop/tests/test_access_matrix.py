"""The matrix test: every route × role × own, foreign or missing object × credentials, against the real service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final
from unittest import mock

import httpx
import pytest
from fastapi import FastAPI

from howdah import Database
from howdah.fastapi import require_principal
from howdah.testing.access import AccessMatrix, disabled, list_rules
from howdah_tests.support.path_pairs import list_direct_routes, note_routed
from shop.app import create_app
from shop.identity.api_keys import service as api_keys
from shop.identity.dependencies import get_session_principal
from shop.identity.principals import Role
from shop.orders.rules import OWN_PAYING_ACCOUNTS
from shop.postgres import as_service_login
from shop_tests.support.access_probes import POSTED_BY_PROBES, PROBES
from shop_tests.support.access_probes import find_gaps as find_probe_gaps
from shop_tests.support.access_requests import create_matrix
from shop_tests.support.access_rules import disabled_rule, find_rules
from shop_tests.support.access_table import EXPECTED
from shop_tests.support.access_world import World, create_world
from shop_tests.support.http_service import http_client
from shop_tests.support.identity import TEST_SETTINGS
from shop_tests.support.people import Mailbox
from shop_tests.support.row_security import disable_posted_by, disable_row_security

# The operations in which the matrix sees a rule about rows or scopes. A rule that is neither here nor in `PROBES` fails
# `test_every_rule_is_in_a_module_of_rules_and_in_use`.
OPERATIONS: Final[Mapping[str, Collection[str]]] = {
    "shop.users.rules.OWN_USERS": [
        "GET /users",
        "PATCH /users/{user_id}",
        "GET /users/{user_id}",
        "GET /users/{user_id}/order-summary",
    ],
    "shop.user_orders.rules.WITH_ORDERS": ["GET /users/{user_id}"],
    "shop.orders.rules.WITH_TRANSFER": ["POST /orders/{order_id}/pay"],
    "shop.user_orders.rules.WITH_USER": ["GET /users/{user_id}/order-summary"],
    "shop.orders.rules.OWN_ORDERS": [
        "POST /orders",
        "GET /orders",
        "GET /orders/export",
        "GET /orders/{order_id}",
        "POST /orders/{order_id}/pay",
    ],
    "shop.ledger.http.rules.OWN_ACCOUNTS": [
        "GET /accounts",
        "GET /accounts/{account_id}",
        "PATCH /accounts/{account_id}",
        "GET /accounts/{account_id}/balance",
        "GET /accounts/{account_id}/entries",
    ],
    "shop.ledger.http.rules.OWN_USER": ["POST /accounts", "POST /accounts/batch"],
    "shop.ledger.http.rules.OWN_TRANSFERS": [
        "POST /transfers/linked",
        "POST /transfers/batch",
        "GET /transfers",
        "GET /transfers/{transfer_id}",
        "POST /transfers/{transfer_id}/post",
        "POST /transfers/{transfer_id}/void",
        "POST /transfers/{transfer_id}/reverse",
    ],
    "shop.ledger.http.rules.OWN_BALANCES": [
        "POST /transfers",
        "POST /transfers/linked",
        "POST /transfers/batch",
        "GET /transfers",
        "GET /transfers/{transfer_id}",
        "POST /transfers/{transfer_id}/post",
        "POST /transfers/{transfer_id}/reverse",
    ],
    "shop.identity.rules.OWN_SESSIONS": ["DELETE /auth/sessions/{session_id}"],
    "shop.identity.api_keys.rules.OWN_KEYS": ["GET /auth/api-keys", "DELETE /auth/api-keys/{key_id}"],
    "shop.identity.api_keys.rules.REVOKE_KEYS_OF_OTHERS": ["DELETE /auth/api-keys/{key_id}"],
}

# The role and the credentials with which the matrix sees the rule, if they aren't a customer with a token.
AS_OPERATOR: Final = {"shop.identity.api_keys.rules.REVOKE_KEYS_OF_OTHERS"}
WITH_KEY: Final = {
    "shop.orders.rules.WITH_TRANSFER",
    "shop.user_orders.rules.WITH_ORDERS",
    "shop.user_orders.rules.WITH_USER",
}

POSTING: Final = ("POST /transfers", "POST /transfers/batch")
"""The operations in which the matrix sees the rules of `shop.ledger.ownership`."""


@dataclass(frozen=True)
class Service:
    app: FastAPI
    client: httpx.AsyncClient
    world: World
    matrix: AccessMatrix

    async def find_gaps(
        self,
        *operations: str,
        roles: Collection[str] = (Role.CUSTOMER,),
        credentials: Collection[str] = ("access token",),
    ) -> list[str]:
        """The first gap of each of the operations."""
        return await self.matrix.find_gaps(
            self.client, operations=operations, roles=roles, credentials=credentials, first_only=True
        )


@pytest.fixture
async def service(committed_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    """The service, which logs in as `shop_service`. Its client has no credentials, and keeps no cookies."""
    monkeypatch.setattr(api_keys, "MAX_KEYS", 1_000)  # the matrix has many keys of each role
    app = create_app(as_service_login(committed_url), TEST_SETTINGS, mailer=Mailbox())
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    async with Database(committed_url, pool_size=2) as database:
        world = await create_world(database)
        async with http_client(app, signs_in=False, cookies=no_cookies) as client:
            yield Service(app, client, world, create_matrix(app, world, EXPECTED))


async def test_the_matrix_has_no_gap(service: Service) -> None:
    routed = note_routed(service.app)
    await service.matrix.check(service.client)
    assert not list_direct_routes(service.app) & {*routed}  # so the rules of direct routes were tested
    probes = [*(probe for each in PROBES.values() for probe in each), *POSTED_BY_PROBES]
    assert await find_probe_gaps(service.client, service.world, probes) == []


def test_every_rule_is_in_a_module_of_rules_and_in_use() -> None:
    of_routes, others = find_rules()
    app = create_app("postgresql://localhost/unused", TEST_SETTINGS)
    assert {rule for rule in of_routes.values() if not rule.is_public} == set(list_rules(app))
    assert others.keys() == OPERATIONS.keys() | PROBES.keys()


async def test_the_matrix_fails_without_the_rule_of_any_route(service: Service) -> None:
    """Each route of the rule must have a gap."""
    # this dependency of some routes also rejects API keys, so it would hide the missing rule
    service.app.dependency_overrides[get_session_principal] = require_principal
    missed = []
    for rule, operations in list_rules(service.app).items():
        with disabled(rule):
            for each in operations:
                if others := set(Role) - rule.roles:
                    gaps = await service.find_gaps(each, roles=others)
                else:
                    gaps = await service.find_gaps(each, credentials=["API key"])
                missed += [] if gaps else [each]
    assert missed == []


async def test_the_matrix_fails_if_a_rule_allows_one_more_role_or_another_scope(service: Service) -> None:
    missed: list[tuple[str, str]] = []
    for rule, operations in list_rules(service.app).items():
        for role in set(Role) - rule.roles:
            with mock.patch.object(rule, "roles", rule.roles | {role}):
                missed += [(each, role) for each in operations if not await service.find_gaps(each, roles=[role])]
        if rule.scope is not None:
            with mock.patch.object(rule, "scope", "another"):
                gaps = await service.find_gaps(*operations, roles=[Role.ADMIN], credentials=["API key"])
                missed += [(each, "scope") for each in operations if not any(gap.startswith(each) for gap in gaps)]
    assert missed == []


async def test_the_matrix_fails_without_any_rule_about_rows_fields_or_scopes(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row-level security is off, so the rules are the only line. Without the rule, each of its operations must have a
    gap, and each of its probes, too. With the rules there is none.
    """
    disable_row_security(monkeypatch)
    own = [name for name, each in EXPECTED.items() if each.roles.get(Role.CUSTOMER) == "own"]
    assert await service.find_gaps(*own) == []
    missed = []
    for name, rule in find_rules()[1].items():
        role = Role.OPERATOR if name in AS_OPERATOR else Role.CUSTOMER
        credential = "API key" if name in WITH_KEY else "access token"
        operations, probes = OPERATIONS.get(name, ()), PROBES.get(name, ())
        if name in AS_OPERATOR or name in WITH_KEY:
            assert await service.find_gaps(*operations, roles=[role], credentials=[credential]) == []
        with disabled_rule(rule), monkeypatch.context() as context:
            if rule is OWN_PAYING_ACCOUNTS:
                disable_posted_by(context)  # the ledger and the trigger are a second and a third line
            for each in operations:
                if not await service.find_gaps(each, roles=[role], credentials=[credential]):
                    missed.append(f"{name}: {each}")
            for probe in probes:
                if await probe.find_gap(service.client, service.world) is None:
                    missed.append(f"{name}: {probe.name}")
    assert missed == []


async def test_the_matrix_fails_if_customers_may_post_for_others(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both lines are off: the ledger's rule and the trigger depend on `posted_by`."""
    disable_row_security(monkeypatch)
    disable_posted_by(monkeypatch)
    for each in POSTING:
        assert await service.find_gaps(each), each
    gaps = await find_probe_gaps(service.client, service.world, POSTED_BY_PROBES)
    assert len(gaps) == len(POSTED_BY_PROBES), gaps
