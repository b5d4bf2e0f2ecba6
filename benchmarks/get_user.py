"""get-user: a user with ten orders over HTTP, from each kind of route; and behind each kind of server."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

from benchmarks import contents
from benchmarks.comparison import Comparison, Contender, Goal, Measured, Role, same
from benchmarks.http import Server, missing

CONNECTIONS: Final = (1, 16, 64, 256)
COMPARED: Final = 10_000
"""Answers of the view that are held against the reference's."""

_ORDERS_EACH: Final = 10
_AT_ONCE: Final = 16

# path, name, role
_ROUTES: Final[tuple[tuple[str, str, Role], ...]] = (
    ("reference", "reference", "reference"),
    ("sqlmodel", "SQLModel", "peer"),
    ("fastcrud", "fastcrud get_joined", "peer"),
    ("advanced-alchemy", "advanced-alchemy service", "peer"),
    ("asyncpg", "asyncpg and json_agg by hand", "limit"),
    ("view-alone", "howdah view, each alone", "howdah"),
    ("view", "howdah view", "howdah"),
    ("nothing", "a route that does nothing", "limit"),
)


def _at(name: str, connections: int) -> str:
    return f"{name}, {connections}"


class GetUser(Comparison):
    name = "get-user"
    work = (
        "get a user with ten orders, at random out of {size} users, over HTTP from a FastAPI application in one "
        "process, over as many connections as the name says"
    )
    unit = "requests"

    async def left_out(self) -> str | None:
        return missing()

    async def set_up(self) -> None:
        await contents.fill_orders(self.connections.driver, self.count * _ORDERS_EACH, users=self.count)
        ids = [record["id"] for record in await self.connections.driver.fetch("SELECT id FROM users")]
        self.server = Server("-m", "benchmarks.routes", "{url}", "{port}", url=self.connections.url, ids=ids)
        await self.server.start()
        some = random.Random(7).sample(ids, min(COMPARED, len(ids)))
        await self._compare("view", some)
        for path, _, role in _ROUTES:
            if path != "nothing" and role != "reference":
                await self._compare(path, some[:100])

    async def tear_down(self) -> None:
        await self.server.stop()

    def contenders(self) -> list[Contender]:
        return [
            Contender(_at(name, connections), role, self._load(path, connections), 1)
            for connections in CONNECTIONS
            for path, name, role in _ROUTES
        ]

    def goals(self) -> list[Goal]:
        view, by_hand = "howdah view", "asyncpg and json_agg by hand"
        return [
            Goal(_at(view, 64), "times as fast", 10, _at("reference", 64)),
            Goal(_at(view, 64), "times as fast", 2.5, _at(by_hand, 64)),
            Goal(_at(view, 64), "times as fast", 0.6, _at("a route that does nothing", 64)),
            Goal(_at(view, 1), "of the p50", 1.1, _at(by_hand, 1)),
        ]

    def rounds(self, asked: int) -> int:
        return 3 * asked  # short ones, for a machine's speed changes from second to second

    async def reset(self, contender: Contender) -> None:
        """Nothing is written."""

    async def verify(self, contender: Contender, returned: Any) -> None:
        """`load` has raised if an answer wasn't good; what the answers are was compared before."""

    def _load(self, path: str, connections: int) -> Callable[[], Awaitable[Measured]]:
        return lambda: self.server.load(f"/{path}/", connections)

    async def _compare(self, path: str, ids: list[Any]) -> None:
        """Raise `NotTheSameWork` if an answer isn't the reference's."""
        waiting = iter(ids)

        async def compare() -> None:
            for id in waiting:
                found, wanted = [json.loads(await self.server.get(f"/{each}/{id}")) for each in (path, "reference")]
                if path == "asyncpg":  # by hand, a time ends in +00:00 and has as many digits as it needs
                    found, wanted = _without_times(found), _without_times(wanted)
                same(f"{path}'s answer", found, wanted)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(_AT_ONCE):
                tasks.create_task(compare())


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_times(inner) for name, inner in value.items() if not name.endswith("_at")}
    return [_without_times(inner) for inner in value] if isinstance(value, list) else value


class Servers(Comparison):
    name = "servers"
    work = "the same by the view and by the route that does nothing, over 64 connections, behind each kind of server"
    unit = "requests"

    _KINDS: Final = {
        "uvicorn, asyncio and h11": ("--loop", "asyncio", "--http", "h11"),
        "uvicorn": ("--loop", "uvloop", "--http", "httptools"),
        "uvicorn, two processes": ("--loop", "uvloop", "--http", "httptools", "--workers", "2"),
        "granian": (),
        "granian, two processes": ("--workers", "2"),
    }
    _CONNECTIONS: Final = 64

    async def left_out(self) -> str | None:
        return missing()

    async def set_up(self) -> None:
        await contents.fill_orders(self.connections.driver, self.count * _ORDERS_EACH, users=self.count)
        ids = [record["id"] for record in await self.connections.driver.fetch("SELECT id FROM users")]
        self.servers: dict[str, Server] = {}
        for name, options in self._KINDS.items():
            kind = name.partition(",")[0]
            common = {
                "uvicorn": ("--factory", "--port", "{port}", "--log-level", "error", "--no-access-log"),
                "granian": ("--factory", "--port", "{port}", "--log-level", "error", "--interface", "asgi", "--no-ws"),
            }
            command = ("-m", kind, "benchmarks.routes:from_environment", *common[kind], *options)
            self.servers[name] = server = Server(*command, url=self.connections.url, ids=ids)
            await server.start()

    async def tear_down(self) -> None:
        for server in self.servers.values():
            await server.stop()

    def contenders(self) -> list[Contender]:
        return [
            Contender(f"{name}: {route}", "peer", self._load(server, path), 1)
            for path, route in (("view", "howdah view"), ("nothing", "nothing"))
            for name, server in self.servers.items()
        ]

    def goals(self) -> list[Goal]:
        return []

    def rounds(self, asked: int) -> int:
        return 3 * asked

    async def reset(self, contender: Contender) -> None:
        """Nothing is written."""

    async def verify(self, contender: Contender, returned: Any) -> None:
        """`load` has raised if an answer wasn't good."""

    def _load(self, server: Server, path: str) -> Callable[[], Awaitable[Measured]]:
        return lambda: server.load(f"/{path}/", self._CONNECTIONS)
