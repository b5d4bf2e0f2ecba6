"""shop-http: Shop's own routes over HTTP, compared with an application without a framework and with other libraries."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from benchmarks.comparison import Contender, ContenderFailed, Goal, Measured, check_equal, failure_text
from benchmarks.distributions import ACCOUNTS, UNIFORM
from benchmarks.http_load import QUICK_WINDOW_SECONDS, WINDOW_SECONDS, HttpServer, skip_reason
from benchmarks.identity import AUTHORIZATION, OPERATOR_AUTHORIZATION, create_authorization
from benchmarks.postgres import connect_driver, find_server_pid
from benchmarks.shop_contenders import (
    ASYNCPG,
    BARE,
    CONSTANT,
    FASTAPI,
    LIMITED_BARE,
    MANY,
    ONE,
    PAGE,
    PAGE_SIZE,
    PEERS,
    REFERENCE,
    ROUTES,
    SHOP,
    TRANSFER,
    USER,
    WORKERS,
    Operation,
    Route,
)
from benchmarks.transfers import LedgerComparison
from shop.identity.principals import Role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.postgres import Connections

_ORDERS_PER_USER: Final = 10
_CUSTOMERS: Final = 1_000
_OPERATORS: Final = 1_000
_VERIFIED_USERS: Final = 1_000
_VERIFIED_PEER_USERS: Final = 100
_VERIFIED_TRANSFERS: Final = 20
_CONCURRENT_CHECKS: Final = 16

_TRANSFERS_BEFORE: Final = 0.054
"""The speed of Shop's `POST /transfers`, divided by that of the constant response, over 64 connections. It was measured
on 2026-11-27, before the library had direct routes. It isn't compared with the bare application, because a faster
ledger makes that one faster, too."""

# Shop's limits for one client, because wrk is one client. Everything else is as `shop serve` has it by default.
_UNLIMITED: Final = {
    "SHOP_RATE_LIMITS": "on",
    **{f"SHOP_RATE_LIMIT_{name}": "999999999/60" for name in ("ADDRESS", "READ", "LIST", "WRITE", "MONEY")},
}
# The pools of all workers together must fit into `max_connections`.
_SMALL_POOLS: Final = {"SHOP_POOL_SIZE": "4", "SHOP_STAFF_POOL_SIZE": "6", "SHOP_SYSTEM_POOL_SIZE": "6"}
_SERVE: Final = ("-c", "from shop.cli import main; main()", "serve", "--port", "{port}")


class ShopHttp(LedgerComparison):
    name = "shop-http"
    description = (
        "requests to the routes of `shop serve`, with sign-in, log and metrics: read a random user out of {size} with "
        "ten orders, as an operator (or as 1,000 customers who read themselves); read a page of 50 users, as 1,000 "
        "operators; post a transfer between two random accounts out of 1,000, as an admin. The bare ASGI application "
        "awaits the same view, page and ledger, without anything else, on uvicorn or on `howdah.serving`. The CPU time "
        "is that of one request, and in brackets the part of one core that was busy. A batch has this mean number of "
        "requests. Without a number of workers, Shop has one"
    )
    unit = "requests"
    size = 10_000
    quick_size = 2_000

    def __init__(self, connections: Connections, size: int, *, rounds: int = 5, is_quick: bool = False) -> None:
        super().__init__(connections, size, rounds=rounds, is_quick=is_quick)
        self.distributions = (UNIFORM,)

    async def skip_reason(self) -> str | None:
        return skip_reason()

    async def set_up(self) -> None:
        await super().set_up()
        await self._insert_users()
        async with connect_driver(self.url) as connection:
            self._users = [row["id"] for row in await connection.fetch("SELECT id FROM users ORDER BY id")]
            self._accounts = [row["id"] for row in await connection.fetch("SELECT id FROM accounts ORDER BY id")]
            database_pid = await find_server_pid(connection)
        self._verification_failures: dict[Route, str | None] = {}
        commands = {
            SHOP: _SERVE,
            **{name: (*_SERVE, "--workers", str(count)) for name, count in WORKERS.items()},
            BARE: ("-m", "benchmarks.shop_routes", "bare", "{port}"),
            LIMITED_BARE: ("-m", "benchmarks.shop_routes", "bare-limited", "{port}"),
            PEERS: ("-m", "benchmarks.shop_routes", "peers", "{port}"),
        }
        self._servers = {
            name: HttpServer(
                *command,
                url=self.url,
                ids=self._users,
                authorization=OPERATOR_AUTHORIZATION,
                window_seconds=QUICK_WINDOW_SECONDS if self.is_quick else WINDOW_SECONDS,
                environment=_UNLIMITED | (_SMALL_POOLS if name in WORKERS else {}),
                database_pid=database_pid,
            )
            for name, command in commands.items()
        }
        self._for_transfers = {
            name: server.sending(self._accounts, AUTHORIZATION) for name, server in self._servers.items()
        }
        customers = self._users[:_CUSTOMERS]
        self._authorizations = {id_: create_authorization(Role.CUSTOMER, UUID(str(id_))) for id_ in customers}
        self._for_customers = self._servers[SHOP].sending(customers, [*self._authorizations.values()])
        # The service limits the lists that one principal has in progress, so each page is read by another operator.
        operators = [create_authorization(Role.OPERATOR, uuid4()) for _ in range(_OPERATORS)]
        self._for_pages = {name: server.sending(range(_OPERATORS), operators) for name, server in self._servers.items()}

    async def _insert_users(self) -> None:
        """Users without accounts, until there are `size`, and the orders of all users."""
        async with connect_driver(self.url) as connection:
            await connection.execute(
                """
                INSERT INTO users (id, email, name, country, created_at, updated_at, version)
                SELECT uuidv7(), 'customer-' || n || '@example.com', 'Customer ' || n, 'Denmark', now(), now(), 1
                FROM generate_series(1, $1::int) AS n
                """,
                self.count - ACCOUNTS[UNIFORM],
            )
            await connection.execute(
                """
                INSERT INTO orders (id, user_id, status, currency, total_cents, placed_at, created_at, updated_at,
                    version)
                SELECT uuidv7(), users.id, 'paid', 'GBP', 100 + n * 7, now() - n * interval '1 minute', now(), now(), 1
                FROM users, generate_series(1, $1::int) AS n
                """,
                _ORDERS_PER_USER,
            )
            await connection.execute("VACUUM ANALYZE")

    async def tear_down(self) -> None:
        for server in getattr(self, "_servers", {}).values():
            await server.stop()
        await super().tear_down()

    def contenders(self) -> list[Contender]:
        compared = {name for goal in self.goals() for name in (goal.contender, goal.against)}

        def rounds(route: Route, connections: int) -> int | None:
            """A round takes minutes, so only Shop and the bare application run in all of them."""
            if route.named(connections) not in compared:
                return 1
            return None if connections == MANY and route.server in {SHOP, BARE} else 2

        return [
            Contender(
                route.named(connections),
                route.role,
                self._load(route, connections),
                1,
                rounds=rounds(route, connections),
            )
            for route, connections in self._cases()
        ]

    def _cases(self) -> Iterator[tuple[Route, int]]:
        for route in ROUTES:
            for connections in route.connections:
                if not self.is_quick or connections == MANY:
                    yield route, connections

    def goals(self) -> list[Goal]:
        def name(operation: Operation, route: str, connections: int = MANY) -> str:
            return next(each for each in ROUTES if (each.operation, each.name) == (operation, route)).named(connections)

        def at_least(operation: Operation, bound: float, against: str) -> Goal:
            return Goal(name(operation, SHOP), "times as fast", bound, name(operation, against))

        goals = [
            at_least(USER, 0.75, BARE),
            at_least(USER, 2.2, FASTAPI),
            at_least(USER, 2.5, ASYNCPG),
            at_least(USER, 20, REFERENCE),
            at_least(TRANSFER, 0.7, BARE),
            # 4 times as fast as before
            Goal(
                name(TRANSFER, SHOP),
                "times as fast",
                round(4 * _TRANSFERS_BEFORE, 2),
                name(CONSTANT, BARE),
            ),
            at_least(PAGE, 0.8, BARE),
        ]
        if self.is_quick:
            return goals
        return goals + [
            Goal(name(each, SHOP, ONE), "of the p50", 1.15, name(each, BARE, ONE)) for each in (USER, PAGE, TRANSFER)
        ]

    def rounds(self) -> int:
        return self.requested_rounds

    async def reset(self, contender: Contender) -> None:
        """Only transfers change the tables."""
        if self._route_of(contender).operation.is_post:
            await super().reset(contender)

    async def verify(self, contender: Contender, returned: Any) -> None:
        """Compare responses with the rows, once for each route, and the totals of the ledger after each run."""
        route = self._route_of(contender)
        if route not in self._verification_failures:
            try:
                await self._check_responses(route)
            except Exception as error:
                self._verification_failures[route] = failure_text(error)
                raise
            finally:
                await self._stop_workers(route)
            self._verification_failures[route] = None
        failure = self._verification_failures[route]
        if failure is not None:
            raise ContenderFailed(failure)
        if route.operation.is_post:
            await super().verify(contender, returned)

    def _route_of(self, contender: Contender) -> Route:
        return next(route for route, connections in self._cases() if route.named(connections) == contender.name)

    def _load(self, route: Route, connections: int) -> Callable[[], Awaitable[Measured]]:
        async def measure() -> Measured:
            server = self._server_of(route)
            await server.start()
            before = await self._read_batches(route)
            measured = await server.measure_load(
                route.prefix, connections, is_post=route.operation.is_post, has_ids=route.operation.has_ids
            )
            after = await self._read_batches(route)
            batches = after[0] - before[0]
            return replace(measured, batch_size=(after[1] - before[1]) / batches if batches else None)

        return measure

    def _server_of(self, route: Route) -> HttpServer:
        if route.is_for_customers:
            return self._for_customers
        return {TRANSFER: self._for_transfers, PAGE: self._for_pages}.get(route.operation, self._servers)[route.server]

    async def _read_batches(self, route: Route) -> tuple[float, float]:
        """The number of batches and of their requests so far. Only Shop reports them."""
        if not route.is_shop:
            return 0, 0
        text = (await self._servers[route.server].get_body("/metrics")).decode()
        queue = re.escape(route.operation.queue)
        return (
            sum(map(float, re.findall(rf'^howdah_batch_size_count{{queue="{queue}"}} (\S+)$', text, re.MULTILINE))),
            sum(map(float, re.findall(rf'^howdah_batch_size_sum{{queue="{queue}"}} (\S+)$', text, re.MULTILINE))),
        )

    async def _stop_workers(self, route: Route) -> None:
        """Stop a server with several workers. Its periodic jobs would take time from the other contenders."""
        if route.server in WORKERS:
            await self._servers[route.server].stop_process()

    async def _check_responses(self, route: Route) -> None:
        """Raise `WrongResult` if a response differs from the rows."""
        if route.operation == USER:
            await self._check_users(route)
        elif route.operation == PAGE:
            found = json.loads(await self._servers[route.server].get_body(route.prefix))
            check_equal("items", _with_times(found["items"]), await self._read_users(self._users[:PAGE_SIZE]))
            check_equal("cursors", (found["next"] is None, found["previous"]), (False, None))
        elif route.operation == TRANSFER:
            await self._check_transfers(route)

    async def _check_users(self, route: Route) -> None:
        users = self._users[:_CUSTOMERS] if route.is_for_customers else self._users
        count = _VERIFIED_USERS if route.is_shop or route.server == BARE else _VERIFIED_PEER_USERS
        chosen = random.Random(7).sample(users, min(count, len(users)))
        expected = {UUID(str(each["id"])): each for each in await self._read_users(chosen, with_orders=True)}
        ids = iter(chosen)

        async def check() -> None:
            for id_ in ids:  # the tasks share the iterator
                authorization = self._authorizations[id_] if route.is_for_customers else None
                body = await self._servers[route.server].get_body(f"{route.prefix}{id_}", authorization=authorization)
                check_equal("response", _with_times(json.loads(body)), expected[UUID(str(id_))])

        async with asyncio.TaskGroup() as tasks:
            for _ in range(_CONCURRENT_CHECKS):
                tasks.create_task(check())

    async def _read_users(self, ids: list[Any], *, with_orders: bool = False) -> list[dict[str, Any]]:
        """The users in the order of their ids, as the responses have them. They are read without any of the routes."""
        async with connect_driver(self.url) as connection:
            users = [
                dict(row)
                for row in await connection.fetch(
                    "SELECT id, email, name, country, created_at, updated_at, version FROM users "
                    "WHERE id = ANY($1) ORDER BY id",
                    ids,
                )
            ]
            if with_orders:
                by_id: dict[Any, dict[str, Any]] = {user["id"]: user for user in users}
                for user in users:
                    user["orders"] = []
                for row in await connection.fetch(
                    "SELECT user_id, id, reference, status, currency, total_cents, placed_at FROM orders "
                    "WHERE user_id = ANY($1) ORDER BY placed_at, id",
                    ids,
                ):
                    order = dict(row)
                    by_id[order.pop("user_id")]["orders"].append(order | {"id": str(order["id"])})
        return [user | {"id": str(user["id"])} for user in users]

    async def _check_transfers(self, route: Route) -> None:
        """Post some transfers, and compare the responses with the transfers and entries that were written."""
        server, chosen = self._server_of(route), random.Random(7)
        for amount in range(1, _VERIFIED_TRANSFERS + 1):
            source, target = map(str, chosen.sample(self._accounts, 2))
            body = {"from_account_id": source, "to_account_id": target, "amount": amount}
            found = json.loads(await server.post_json(route.prefix, body, idempotency_key=uuid4().hex))
            async with connect_driver(self.url) as connection:
                row = await connection.fetchrow(
                    """
                    SELECT t.from_account_id, t.to_account_id, t.amount, debit.balance_after, credit.balance_after
                    FROM transfers t
                    JOIN entries debit ON (debit.account_id, debit.entry_number)
                        = (t.from_account_id, t.from_entry_number)
                    JOIN entries credit ON (credit.account_id, credit.entry_number)
                        = (t.to_account_id, t.to_entry_number)
                    WHERE t.id = $1
                    """,
                    UUID(found["id"]),
                )
            check_equal(
                "transfer",
                (source, target, amount, found["from_balance"], found["to_balance"]),
                None if row is None else (str(row[0]), str(row[1]), *row[2:]),
            )


def _with_times(value: Any) -> Any:
    """The JSON value with its times parsed, because not all peers write UTC as `Z`, and fractions without zeros."""
    if isinstance(value, dict):
        return {
            name: datetime.fromisoformat(inner) if name.endswith("_at") else _with_times(inner)
            for name, inner in value.items()
        }
    return [_with_times(inner) for inner in value] if isinstance(value, list) else value
