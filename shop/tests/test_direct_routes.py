"""Shop's hot routes are direct routes. They do the same as if FastAPI served them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI

from howdah import Database
from howdah.fastapi import AccessRule, direct_routes
from howdah_tests.support.called_dependencies import Call, identify, list_dependencies, recorded_calls
from howdah_tests.support.path_pairs import list_direct_routes, note_routed
from shop.app import create_app
from shop.postgres import as_service_login
from shop_tests.support.access_world import World, create_world
from shop_tests.support.http_service import http_client
from shop_tests.support.identity import TEST_SETTINGS
from shop_tests.support.people import Mailbox

HOT: Final = {
    *("GET /users", "GET /users/{user_id}", "GET /orders", "GET /orders/{order_id}"),
    *("GET /accounts", "GET /accounts/{account_id}", "GET /transfers", "GET /transfers/{transfer_id}"),
    *("POST /transfers", "POST /orders", "POST /orders/{order_id}/pay"),
}

VARYING: Final = {"date", "x-request-id", "retry-after"}
ID: Final = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
COUNT: Final = re.compile(rb'(?<=_number":)\d+|(?<=_balance":)-?\d+')
TIME: Final = re.compile(rb"\d{4}-\d\d-\d\dT[0-9:.]+(Z|\+00:00)")
TAG: Final = re.compile(r'"[^"]*[0-9a-f]{24}"')


@dataclass(frozen=True)
class Side:
    """The service with direct routes, or without. Both use the same database."""

    app: FastAPI
    client: httpx.AsyncClient
    routed: list[str]


@dataclass(frozen=True)
class Sides:
    world: World
    direct: Side
    fastapi: Side


@pytest.fixture
async def sides(committed_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sides]:
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database(committed_url, pool_size=2))
        world = await create_world(database)
        opened = []
        for has_direct_routes in (True, False):
            app = create_app(as_service_login(committed_url), TEST_SETTINGS, mailer=Mailbox())
            routed = note_routed(app)
            with monkeypatch.context() as context:
                if not has_direct_routes:
                    context.setattr(direct_routes, "_is_marked", lambda route: False)
                client = await stack.enter_async_context(http_client(app, signs_in=False))
            opened.append(Side(app, client, routed))
        yield Sides(world, *opened)


@dataclass(frozen=True)
class Sent:
    """A request: an operation of `HOT`, its path, and the options of httpx."""

    operation: str
    path: str
    options: dict[str, Any]

    async def send(self, client: httpx.AsyncClient) -> httpx.Response:
        return await client.request(self.operation.split()[0], self.path, **self.options)


def build_valid(world: World) -> list[Sent]:
    """A valid request of an admin for each hot route but the payment. Those that write have new keys."""
    headers = world.token("admin")
    own, order = world.own, world.own.order_id
    keyed = headers | {"Idempotency-Key": str(uuid4())}
    moved = {"from_account_id": str(world.till_id), "to_account_id": str(world.counterparty_id)}
    placed = {"user_id": str(own.person.user_id), "items": [{"sku": "TEA", "quantity": 1, "unit_price_cents": 5}]}
    return [
        Sent("GET /users", "/users?limit=2", {"headers": headers}),
        Sent("GET /users/{user_id}", f"/users/{own.person.user_id}", {"headers": headers}),
        Sent("GET /orders", "/orders?limit=2", {"headers": headers}),
        Sent("GET /orders/{order_id}", f"/orders/{order}", {"headers": headers}),
        Sent("GET /accounts", "/accounts?limit=2", {"headers": headers}),
        Sent("GET /accounts/{account_id}", f"/accounts/{own.account_id}", {"headers": headers}),
        Sent("GET /transfers", "/transfers?limit=2", {"headers": headers}),
        Sent("GET /transfers/{transfer_id}", f"/transfers/{own.transfer_id}", {"headers": headers}),
        Sent("POST /transfers", "/transfers", {"headers": keyed, "json": moved | {"amount": 1}}),
        Sent("POST /orders", "/orders", {"headers": keyed, "json": placed}),
    ]


async def build_payment(world: World) -> Sent:
    order = await world.create_order(world.own.person.user_id)
    body = {"from_account_id": str(world.own.account_id), "to_account_id": str(world.till_id)}
    headers = world.token("customer") | {"Idempotency-Key": str(uuid4())}
    return Sent("POST /orders/{order_id}/pay", f"/orders/{order}/pay", {"headers": headers, "json": body})


def describe(response: httpx.Response) -> Any:
    """The response without what differs between two requests that write the same, such as the digits of a time."""
    headers = [
        (name, TAG.sub("<tag>", ID.sub(b"<id>", value.encode()).decode()))
        for name, value in response.headers.multi_items()
        if name not in VARYING and not (name == "content-length" and TIME.search(response.content))
    ]
    return response.status_code, headers, COUNT.sub(b"<n>", TIME.sub(b"<time>", ID.sub(b"<id>", response.content)))


def test_the_hot_routes_are_direct() -> None:
    app = create_app("postgresql://localhost/unused", TEST_SETTINGS)
    assert list_direct_routes(app) == HOT


async def record(side: Side, sent: Sent) -> tuple[list[Call], Any]:
    with recorded_calls(list_dependencies(side.app, *sent.operation.split())) as calls:
        response = await sent.send(side.client)
    assert response.is_success, response.text
    return calls, describe(response)


async def test_every_hot_route_calls_its_dependencies_and_is_served_directly(sides: Sides) -> None:
    valid = [
        [*build_valid(sides.world), await build_payment(sides.world)],
        [*build_valid(sides.world), await build_payment(sides.world)],
    ]
    assert {each.operation for each in valid[0]} == HOT
    for one, other in zip(*valid, strict=True):
        declared = list_dependencies(sides.direct.app, *one.operation.split())
        calls, response = await record(sides.direct, one)
        assert {*map(identify, declared)} - {*calls} == set(), one.operation
        assert [calls[0]] == [identify(each) for each in declared if isinstance(each, AccessRule)]
        assert (calls, response) == await record(sides.fastapi, other), one.operation
    assert sides.direct.routed == []
    assert len(sides.fastapi.routed) == len(HOT)


def build_others(world: World) -> Iterator[Sent]:
    """Requests that are rejected, and reads with and without a condition."""
    customer, operator = world.token("customer"), world.token("operator")
    foreign: dict[str, Any] = {"user_id": world.foreign.person.user_id, "account_id": world.foreign.account_id}
    foreign |= {"order_id": world.foreign.order_id, "transfer_id": world.foreign.transfer_id}
    unknown, invalid = dict.fromkeys(foreign, uuid4()), dict.fromkeys(foreign, "x")
    for operation in sorted(HOT):
        method, path = operation.split()
        for headers in ({}, customer, operator, world.expired_token("customer")):
            yield Sent(operation, path.format(**foreign), {"headers": headers})
        for values in (unknown, invalid):
            yield Sent(operation, path.format(**values), {"headers": customer})
        if method == "GET":
            for query in ("?limit=0&after=x&unknown=1", "?limit=2&limit=3"):
                yield Sent(operation, path.format(**foreign) + query, {"headers": operator})
        else:
            keyed = customer | {"Content-Type": "application/json", "Idempotency-Key": "k"}
            for content in (b"not json", b"[]", b"{}", b'{"a": 1, "a": 2}', b"x" * 1_100_000):
                yield Sent(operation, path.format(**foreign), {"headers": keyed, "content": content})


async def test_every_hot_route_answers_other_requests_in_the_same_way(sides: Sides) -> None:
    differences = {}
    others = [*build_others(sides.world)]
    weak_key = await sides.world.api_key("customer", frozenset({"sign-in:none"}))
    others += [Sent(each.operation, each.path, {"headers": weak_key}) for each in others[:: len(others) // 10]]
    for each in others:
        first, second = [describe(await each.send(side.client)) for side in (sides.direct, sides.fastapi)]
        if first != second:
            differences[str(each)] = first, second
    assert differences == {}
    own, headers = sides.world.own, sides.world.token("customer")
    for path in (f"/users/{own.person.user_id}", f"/orders/{own.order_id}", f"/accounts/{own.account_id}"):
        current = (await sides.direct.client.get(path, headers=headers)).headers["etag"]
        for method, tag in (("GET", current), ("GET", '"x"'), ("HEAD", f"W/{current}")):
            conditional = headers | {"If-None-Match": tag}
            clients = (sides.direct.client, sides.fastapi.client)
            answers = [await each.request(method, path, headers=conditional) for each in clients]
            assert describe(answers[0]) == describe(answers[1])
    assert sides.direct.routed == []
