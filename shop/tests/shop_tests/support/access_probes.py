"""Requests for rules that the matrix can't see: their object is the principal's own, and a rule must reject them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID, uuid4

import httpx

from shop.identity.principals import Role
from shop_tests.support.access_world import World, new_email, new_name

_ANY_VERSION: Final = {"If-Match": "*"}


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A request of a customer, or another role, and the status and type of its rejection."""

    name: str
    method: str
    path: Callable[[World], str]
    json: Callable[[World], Mapping[str, Any]]
    expected: tuple[int, str]
    headers: Mapping[str, str] = field(default_factory=dict)
    role: Role = Role.CUSTOMER

    async def find_gap(self, client: httpx.AsyncClient, world: World) -> str | None:
        """None if the service rejects the request as expected. Otherwise a text with the response."""
        headers = {**world.token(self.role), "Idempotency-Key": str(uuid4()), **self.headers}
        response = await client.request(self.method, self.path(world), json=self.json(world), headers=headers)
        found = response.status_code, response.json().get("type", "").rpartition(":")[2]
        return None if found == self.expected else f"{self.name}: expected {self.expected}, got {found} {response.text}"


def _pay(name: str, source: Callable[[World], Any], target: Callable[[World], Any]) -> Probe:
    return Probe(
        name=name,
        method="POST",
        path=lambda world: f"/orders/{world.own.order_id}/pay",
        json=lambda world: {"from_account_id": str(source(world)), "to_account_id": str(target(world))},
        expected=(422, "unknown-account"),
    )


def _open_account(fields: Mapping[str, Any]) -> Probe:
    return Probe(
        name=f"a customer opens no account with {', '.join(fields)}",
        method="POST",
        path=lambda world: "/accounts",
        json=lambda world: {"name": new_name(), "currency": "GBP", **fields},
        expected=(403, "not-allowed"),
    )


def _change_account(fields: Mapping[str, Any]) -> Probe:
    return Probe(
        name=f"a customer doesn't change {', '.join(fields)} of an account",
        method="PATCH",
        path=lambda world: f"/accounts/{world.own.account_id}",
        json=lambda world: fields,
        headers=_ANY_VERSION,
        expected=(403, "not-allowed"),
    )


def _transfer(name: str, body: Callable[[World], Mapping[str, Any]], *, path: str = "/transfers") -> Probe:
    return Probe(name=name, method="POST", path=lambda world: path, json=body, expected=(422, "unknown-account"))


def _from(account_id: UUID, world: World) -> dict[str, Any]:
    return {"from_account_id": str(account_id), "to_account_id": str(world.own.account_id), "amount": 1}


def _settle(how: str, *, of_hold: bool) -> Probe:
    """The payer can't take a payment back."""
    return Probe(
        name=f"a payer may not {how} their own payment",
        method="POST",
        path=lambda world: f"/transfers/{world.outgoing_hold_id if of_hold else world.outgoing_id}/{how}",
        json=lambda world: {},
        expected=(409, "not-payee"),
    )


POSTED_BY_PROBES: Final[Sequence[Probe]] = [
    _transfer(
        "a customer holds nothing on accounts of others",
        lambda world: {**_from(world.foreign.account_id, world), "pending_seconds": 60},
    ),
    _transfer("a customer transfers nothing from accounts without an owner", lambda world: _from(world.till_id, world)),
    _transfer(
        "a customer transfers nothing from accounts of others in a chain",
        lambda world: {"transfers": [_from(world.foreign.account_id, world), _from(world.counterparty_id, world)]},
        path="/transfers/linked",
    ),
    _settle("post", of_hold=True),
    _settle("reverse", of_hold=False),
]
"""For the rules of `shop.ledger.ownership`, which depend on `posted_by`."""

PROBES: Final[Mapping[str, Sequence[Probe]]] = {
    "shop.users.rules.CHANGE_EMAIL": [
        Probe(
            name="a customer changes their address only with a confirmation by mail",
            method="PATCH",
            path=lambda world: f"/users/{world.own.user_id}",
            json=lambda world: {"email": new_email()},
            headers=_ANY_VERSION,
            expected=(403, "not-allowed"),
        )
    ],
    "shop.orders.rules.OWN_PAYING_ACCOUNTS": [
        _pay(
            "a customer pays to no account of a customer",
            lambda world: world.own.account_id,
            lambda world: world.counterparty_id,
        ),
        _pay(
            "a customer pays from no account without an owner",
            lambda world: world.till_id,
            lambda world: world.till_id,
        ),
    ],
    "shop.ledger.http.rules.OPENING_FIELDS": [
        _open_account({"allows_negative": True}),
        _open_account({"overdraft_limit": 1}),
        _open_account({"balance_limit": 1}),
        _open_account({"currency": "USD", "purpose": "fees"}),
    ],
    "shop.ledger.http.rules.CHANGE_FIELDS": [
        _change_account({"state": "frozen"}),
        _change_account({"state": "open"}),
        _change_account({"overdraft_limit": 1}),
        _change_account({"balance_limit": 10**15}),
    ],
}
"""By the name of the rule. Without the rule, each of these requests is accepted, or rejected in another way."""


async def find_gaps(client: httpx.AsyncClient, world: World, probes: Sequence[Probe]) -> list[str]:
    return [gap for probe in probes if (gap := await probe.find_gap(client, world)) is not None]
