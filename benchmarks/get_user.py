"""get-user: get a user with ten orders over HTTP, from routes that are written with different libraries.

servers: send the same requests to different servers.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import selectinload

from benchmarks import table_data
from benchmarks.comparison import (
    Comparison,
    Contender,
    ContenderFailed,
    Goal,
    Measured,
    Role,
    check_equal,
    failure_text,
)
from benchmarks.http_load import QUICK_WINDOW_SECONDS, WINDOW_SECONDS, HttpServer, skip_reason
from benchmarks.schemas import UserOut
from benchmarks.tables import User

CONNECTIONS: Final = (1, 16, 64, 256)
QUICK_CONNECTIONS: Final = (64,)
"""The latency over one connection is not measured: a window of one second is too short for it."""

VERIFIED_VIEW_RESPONSES: Final = 10_000
VERIFIED_PEER_RESPONSES: Final = 100

_ORDERS_PER_USER: Final = 10
_CONCURRENT_CHECKS: Final = 16


@dataclass(frozen=True, slots=True)
class _Route:
    path: str
    name: str
    role: Role


_VIEW: Final = _Route("view", "howdah view", "howdah")
_VIEW_WITH_VIEWER: Final = _Route("view-viewer", "howdah view with a viewer", "howdah")
_REFERENCE: Final = _Route("reference", "reference", "reference")
_ASYNCPG: Final = _Route("asyncpg", "asyncpg with json_agg", "baseline")
_EMPTY: Final = _Route("empty", "empty route", "baseline")
_ROUTES: Final = (
    _REFERENCE,
    _Route("sqlmodel", "SQLModel", "peer"),
    _Route("fastcrud", "fastcrud get_joined", "peer"),
    _Route("advanced-alchemy", "advanced-alchemy service", "peer"),
    _ASYNCPG,
    _Route("view-unbatched", "howdah view, no batching", "howdah"),
    _VIEW,
    _VIEW_WITH_VIEWER,
    _EMPTY,
)


def _name(route: _Route, connections: int) -> str:
    return f"{route.name}, {connections} connection{'' if connections == 1 else 's'}"


class _HttpComparison(Comparison):
    unit = "requests"
    quick_size = 2_000
    # `HttpServer` warms up each route for one second. A complete window for each contender would take minutes.
    has_warm_up = False

    async def skip_reason(self) -> str | None:
        return skip_reason()

    async def fill_tables(self) -> list[UUID]:
        """Insert the users and their orders. Returns the ids of the users."""
        await table_data.fill_orders(self.connections.driver, self.count * _ORDERS_PER_USER, users=self.count)
        return [record["id"] for record in await self.connections.driver.fetch("SELECT id FROM users")]

    @property
    def window_seconds(self) -> int:
        return QUICK_WINDOW_SECONDS if self.is_quick else WINDOW_SECONDS

    def rounds(self) -> int:
        return (self.requested_rounds + 1) // 2  # a round takes minutes

    async def reset(self, contender: Contender) -> None:
        """Nothing is written, so there is nothing to restore."""


class GetUser(_HttpComparison):
    name = "get-user"
    description = (
        "read a random user out of {size}, with ten orders, over HTTP from a FastAPI application in one process. The "
        "name of a contender has the number of connections"
    )

    async def set_up(self) -> None:
        ids = await self.fill_tables()
        self.expected = await self._expected_responses(
            random.Random(7).sample(ids, min(VERIFIED_VIEW_RESPONSES, self.count))
        )
        self._verification_failures: dict[str, str | None] = {}
        self.server = HttpServer(
            *("-m", "benchmarks.routes", "{url}", "{port}"),
            url=self.connections.url,
            ids=ids,
            window_seconds=self.window_seconds,
        )

    async def tear_down(self) -> None:
        if hasattr(self, "server"):
            await self.server.stop()

    def contenders(self) -> list[Contender]:
        return [
            Contender(_name(route, connections), route.role, self._load(route, connections), 1)
            for connections in self._connections
            for route in _ROUTES
        ]

    def goals(self) -> list[Goal]:
        goals = [
            Goal(_name(_VIEW, 64), "times as fast", 10, _name(_REFERENCE, 64)),
            Goal(_name(_VIEW, 64), "times as fast", 2.5, _name(_ASYNCPG, 64)),
            Goal(_name(_VIEW, 64), "times as fast", 0.6, _name(_EMPTY, 64)),
            Goal(_name(_VIEW_WITH_VIEWER, 64), "times as fast", 0.9, _name(_VIEW, 64)),
            Goal(_name(_VIEW, 1), "of the p50", 1.1, _name(_ASYNCPG, 1)),
        ]
        return [goal for goal in goals if goal.kind != "of the p50" or 1 in self._connections]

    @property
    def _connections(self) -> tuple[int, ...]:
        return QUICK_CONNECTIONS if self.is_quick else CONNECTIONS

    async def verify(self, contender: Contender, returned: Any) -> None:
        """Compare responses of the route with the database: once per route, not for each number of connections."""
        route = next(each for each in _ROUTES if contender.name in {_name(each, count) for count in self._connections})
        if route is _EMPTY:
            return
        if route.path not in self._verification_failures:
            try:
                await self._check_responses(route)
            except Exception as error:
                self._verification_failures[route.path] = failure_text(error)
                raise
            self._verification_failures[route.path] = None
        failure = self._verification_failures[route.path]
        if failure is not None:
            raise ContenderFailed(failure)

    def _load(self, route: _Route, connections: int) -> Callable[[], Awaitable[Measured]]:
        return lambda: self.server.measure_load(f"/{route.path}/", connections)

    async def _expected_responses(self, ids: list[UUID]) -> dict[UUID, Any]:
        """The users as FastAPI serializes them with `response_model=UserOut`.

        They are read without any of the routes, so that a faulty route fails alone.
        """
        users = select(User).options(selectinload(User.orders)).where(User.id.in_(ids))
        async with self.connections.sessions() as session:
            return {
                user.id: UserOut.model_validate(user).model_dump(mode="json") for user in await session.scalars(users)
            }

    async def _check_responses(self, route: _Route) -> None:
        """Raise `WrongResult` if a response isn't the expected one."""
        verifies_all = route is _VIEW and not self.is_quick
        ids = iter(list(self.expected)[: None if verifies_all else VERIFIED_PEER_RESPONSES])

        async def check() -> None:
            for id in ids:  # the tasks share the iterator
                found, expected = json.loads(await self.server.get_body(f"/{route.path}/{id}")), self.expected[id]
                if route is _ASYNCPG:  # json_agg writes +00:00 instead of Z, and no trailing zeros
                    found, expected = _without_timestamps(found), _without_timestamps(expected)
                check_equal("response", found, expected)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(_CONCURRENT_CHECKS):
                tasks.create_task(check())


def _without_timestamps(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_timestamps(inner) for name, inner in value.items() if not name.endswith("_at")}
    return [_without_timestamps(inner) for inner in value] if isinstance(value, list) else value


class Servers(_HttpComparison):
    name = "servers"
    description = (
        "the requests of get-user over 64 connections, to the view and to the empty route, with different servers"
    )

    _KINDS: Final = {
        "uvicorn, asyncio and h11": ("--loop", "asyncio", "--http", "h11"),
        "uvicorn": ("--loop", "uvloop", "--http", "httptools"),
        "howdah.serving": (),
        "uvicorn, two processes": ("--loop", "uvloop", "--http", "httptools", "--workers", "2"),
        "granian": (),
        "granian, two processes": ("--workers", "2"),
        "hypercorn": (),
    }
    _QUICK_KINDS: Final = ("uvicorn", "howdah.serving", "granian")
    _CONNECTIONS: Final = 64

    async def set_up(self) -> None:
        self.servers: dict[str, HttpServer] = {}
        ids = await self.fill_tables()
        for name in self._QUICK_KINDS if self.is_quick else self._KINDS:
            program = name.partition(",")[0]
            application = "benchmarks.routes:from_environment"
            common = {
                "howdah.serving": ("benchmarks.routes", "{url}", "{port}", "--limited"),
                "hypercorn": (
                    *("hypercorn", f"{application}()", "--bind", "127.0.0.1:{port}", "--log-level", "ERROR"),
                    *("--worker-class", "uvloop"),
                ),
                "uvicorn": (
                    "uvicorn",
                    application,
                    "--factory",
                    "--port",
                    "{port}",
                    "--log-level",
                    "error",
                    "--no-access-log",
                ),
                "granian": (
                    *("granian", application, "--factory", "--port", "{port}", "--log-level", "error"),
                    *("--interface", "asgi", "--no-ws"),
                ),
            }
            self.servers[name] = HttpServer(
                *("-m", *common[program], *self._KINDS[name]),
                url=self.connections.url,
                ids=ids,
                window_seconds=self.window_seconds,
            )

    async def tear_down(self) -> None:
        for server in getattr(self, "servers", {}).values():
            await server.stop()

    def contenders(self) -> list[Contender]:
        return [
            Contender(f"{name}: {route.name}", "peer", self._load(server, route), 1)
            for route in (_VIEW, _EMPTY)
            for name, server in self.servers.items()
        ]

    def goals(self) -> list[Goal]:
        return [
            Goal(f"howdah.serving: {route.name}", "times as fast", 0.98, f"uvicorn: {route.name}")
            for route in (_VIEW, _EMPTY)
        ]

    async def verify(self, contender: Contender, returned: Any) -> None:
        """`measure_load` raises an error if a request fails. `get-user` compares the responses."""

    def _load(self, server: HttpServer, route: _Route) -> Callable[[], Awaitable[Measured]]:
        return lambda: server.measure_load(f"/{route.path}/", self._CONNECTIONS)
