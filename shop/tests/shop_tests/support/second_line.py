"""Attacks of a customer on the things of another one, for every route of the OpenAPI description."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import httpx

from shop.identity.principals import Role
from shop_tests.support.factories import create, make_account, make_order, make_user
from shop_tests.support.identity import sign_in

SECRET: Final = "confidential"
"""It is in every text of the victim's rows."""

AMOUNT: Final = 867_531
"""The victim's first credit, and the total of the order. After a payment of 1 the balance is one less."""


def is_system_route(path: str) -> bool:
    """Whether the route works as the system, so that its rules in Python have no second line.

    These routes sign people in and manage their sessions. No other role may read their tables.
    """
    return path.startswith("/auth/") and not path.startswith("/auth/api-keys")


@dataclass(frozen=True, slots=True)
class Party:
    """A customer: the headers of a request, and the ids of their rows."""

    headers: Mapping[str, str]
    user_id: str
    email: str
    order_id: str
    account_id: str
    transfer_id: str
    hold_id: str
    api_key_id: str
    key: str
    region: str

    @property
    def ids(self) -> dict[str, str]:
        """By the names of parameters. A parameter with another name isn't an id of a customer's thing."""
        return {
            "user_id": self.user_id,
            "order_id": self.order_id,
            "account_id": self.account_id,
            "from_account_id": self.account_id,
            "to_account_id": self.account_id,
            "counterparty_account_id": self.account_id,
            "transfer_id": self.transfer_id,
            "reverses_id": self.transfer_id,
            "group_id": self.transfer_id,
            "idempotency_key": self.key,
            "key_id": self.api_key_id,
            "actor_user_id": self.user_id,
            "subject_id": self.user_id,
        }


@dataclass(frozen=True, slots=True)
class Call:
    """A request of the customer `by` that names things of `of`."""

    method: str
    path: str
    by: Party
    of: Party
    options: Mapping[str, Any] = field(default_factory=dict)

    async def send(self, client: httpx.AsyncClient) -> httpx.Response:
        names_hold = self.path.endswith(("/post", "/void"))
        url = self.path.format(**self.of.ids | ({"transfer_id": self.of.hold_id} if names_hold else {}))
        options = dict(self.options)
        headers = {"Idempotency-Key": str(uuid4()), "If-Match": "*", **self.by.headers, **options.pop("headers", {})}
        return await client.request(self.method, url, headers=headers, **options)

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.options or ''}"


async def make_party(client: httpx.AsyncClient, world: dict[str, Any], *, text: str, amount: int) -> Party:
    """A user with an order that is pending, an account, a transfer to it, and a hold on another account for it."""
    number = uuid4().hex[:8]
    user = await make_user(client, email=f"{text}-{number}@example.com", name=f"{text} name", country=f"{text} land")
    order = await make_order(client, user["id"], items=[item(text, amount)])
    account = await make_account(client, user_id=user["id"], name=f"{text} account", metadata={"of": number})
    key = f"key-{number}"
    credit = {"from_account_id": world["id"], "to_account_id": account["id"], "amount": amount}
    about = {"description": f"{text} credit", "metadata": {"region": number}}
    moved = await create(client, "/transfers", credit | about, headers={"Idempotency-Key": key})
    headers = sign_in(Role.CUSTOMER, user["id"])
    hold = {"from_account_id": world["id"], "to_account_id": account["id"], "amount": 3, "pending_seconds": 3600}
    held = await create(
        client, "/transfers", hold | {"description": f"{text} hold"}, headers={"Idempotency-Key": str(uuid4())}
    )
    own = {
        "from_account_id": account["id"],
        "to_account_id": world["id"],
        "amount": 1,
        "description": f"{text} payment",
    }
    await create(client, "/transfers", own, headers=headers | {"Idempotency-Key": key})
    api_key = await create(
        client, "/auth/api-keys", {"name": f"{text} key", "scopes": ["orders:read"]}, headers=headers
    )
    return Party(
        headers=headers,
        user_id=user["id"],
        email=user["email"],
        order_id=order["id"],
        account_id=account["id"],
        transfer_id=moved["id"],
        hold_id=held["id"],
        api_key_id=api_key["id"],
        key=key,
        region=number,
    )


def item(text: str, amount: int) -> dict[str, Any]:
    return {"sku": f"{text} sku", "description": f"{text} item", "quantity": 1, "unit_price_cents": amount}


def build_calls(description: Mapping[str, Any], by: Party, of: Party, world_id: str) -> Iterator[Call]:
    """Calls of each route that name things of `of`: in the path, in each parameter, and in the body.

    Raises `LookupError` for a route that isn't a GET and isn't listed in `_bodies`.
    """
    bodies = _bodies(by, of, world_id)
    for path, operations in description["paths"].items():
        if is_system_route(path):
            continue
        for method, operation in operations.items():
            route = (method.upper(), path)
            if method == "get":
                query = [each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"]
                yield Call("GET", path, by, of)
                for options in _queries(query, of):
                    yield Call("GET", path, by, of, {"params": options})
            elif route in bodies:
                for body in bodies[route]:
                    yield Call(*route, by, of, body)
            else:
                raise LookupError(f"add the attacks on {method.upper()} {path} to {__name__}")


def _queries(names: Sequence[str], of: Party) -> Iterator[dict[str, Any]]:
    samples: dict[str, Any] = {
        **of.ids,
        "email_prefix": of.email[:4],
        "effective_at": "2999-01-01T00:00:00Z",
        "at": "2999-01-01T00:00:00Z",
        "entry_number": 1,
        "format": "csv",
        "state": "pending",
        "order": "newest",
    }
    for name in names:
        if name == "metadata":
            yield {"metadata[region]": of.region}
        elif name in samples:
            yield {name: samples[name]}


def _bodies(by: Party, of: Party, world_id: str) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The options of the calls of each route that isn't a GET."""
    order = {"items": [item("attack", 5)]}
    account = {"name": "attack", "currency": "GBP"}
    steal = {"from_account_id": of.account_id, "to_account_id": by.account_id, "amount": 7}
    named: list[dict[str, Any]] = [{"posts": of.hold_id}, {"voids": of.hold_id}, {"reverses": of.transfer_id}]
    keyed = {"idempotency_key": of.key}
    return {
        ("POST", "/users"): [{"json": {"email": of.email, "name": "attack"}}],
        ("POST", "/users/bulk"): [{"json": [{"email": of.email, "name": "attack"}]}],
        ("PATCH", "/users/{user_id}"): [{"json": {"name": "attack"}}, {"json": {"email": "attack@example.com"}}],
        ("DELETE", "/users/{user_id}"): [{}],
        ("POST", "/orders"): [
            {"json": order | {"user_id": of.user_id}},
            _with_key(of, order | {"user_id": of.user_id}),
        ],
        ("PATCH", "/orders/status"): [{"json": {"order_ids": [of.order_id], "status": "cancelled"}}],
        ("POST", "/orders/{order_id}/pay"): [
            {"json": {"from_account_id": of.account_id, "to_account_id": world_id}},
            {"json": {"from_account_id": by.account_id, "to_account_id": world_id}},
            _with_key(of, {"from_account_id": of.account_id, "to_account_id": world_id}),
        ],
        ("POST", "/accounts"): [
            {"json": account | {"user_id": of.user_id}},
            {"json": account | {"user_id": by.user_id, "allows_negative": True}},
            {"json": account | {"user_id": by.user_id, "overdraft_limit": 10}},
            {"json": account | {"currency": "XXX", "purpose": "fees"}},
            _with_key(of, account | {"user_id": of.user_id}),
        ],
        ("POST", "/accounts/batch"): [
            _lines(
                account | keyed | {"user_id": of.user_id},
                account | {"user_id": of.user_id, "idempotency_key": "attack-1"},
            ),
            _lines(account | {"user_id": by.user_id, "allows_negative": True, "idempotency_key": "attack-2"}),
        ],
        ("PATCH", "/accounts/{account_id}"): [
            {"json": {"name": "attack"}},
            {"json": {"state": "frozen"}},
            {"json": {"overdraft_limit": 99}},
        ],
        ("POST", "/transfers"): [{"json": steal}, {"json": steal | {"pending_seconds": 60}}, _with_key(of, steal)],
        ("POST", "/transfers/linked"): [
            {"json": {"transfers": [steal, steal]}},
            *({"json": {"transfers": [each, each]}} for each in named),
        ],
        ("POST", "/transfers/batch"): [
            _lines(
                steal | {"idempotency_key": "attack-3"},
                *(each | {"idempotency_key": f"attack-4-{n}"} for n, each in enumerate(named)),
                steal | keyed,
            )
        ],
        ("POST", "/auth/api-keys"): [],  # the body names nothing
        ("DELETE", "/auth/api-keys/{key_id}"): [{}],
        ("POST", "/transfers/{transfer_id}/post"): [{"json": {}}],
        ("POST", "/transfers/{transfer_id}/void"): [{"json": {}}],
        ("POST", "/transfers/{transfer_id}/reverse"): [{"json": {}}],
    }


def _with_key(of: Party, body: Mapping[str, Any]) -> dict[str, Any]:
    """The body, under a key that the other customer has used."""
    return {"json": body, "headers": {"Idempotency-Key": of.key}}


def _lines(*lines: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "content": "\n".join(map(json.dumps, lines)),
        "headers": {"Content-Type": "application/x-ndjson"},
    }


def find_leaks(call: Call, response: httpx.Response) -> list[str]:
    """The texts and ids of the other customer that are in the response, but not in the request."""
    sent = response.request.content.decode() + str(response.request.url) + str(response.request.headers)
    known = [SECRET, str(AMOUNT), str(AMOUNT - 1), *call.of.ids.values(), call.of.hold_id]
    # a key or an id that the attacker has sent may be repeated in an error
    return [each for each in dict.fromkeys(known) if each in response.text and each not in sent]
