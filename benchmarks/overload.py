"""overload: send more requests than `shop serve` can answer, with an open loop."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from benchmarks.comparison import Contender, ContenderFailed, Goal, Measured
from benchmarks.distributions import ACCOUNTS, UNIFORM
from benchmarks.http_load import HttpServer, skip_reason
from benchmarks.identity import AUTHORIZATION
from benchmarks.open_loop import CONNECTIONS, TIMEOUT_SECONDS
from benchmarks.postgres import connect_driver
from benchmarks.processes import run_process
from benchmarks.transfers import LedgerComparison

if TYPE_CHECKING:
    from collections.abc import Sequence

_SECONDS: Final = 8
_QUICK_SECONDS: Final = 3
_PILOT_CONNECTIONS: Final = 64
_LOADS: Final = (1, 2, 4)
_QUICK_LOADS: Final = (1, 4)

_LIMITED, _UNLIMITED = "limited", "not limited"

# `shop serve`, with an argument that replaces an option of `configure_app`.
_UNLIMITED_COMMAND: Final = """
import howdah.fastapi as library
configure_app = library.configure_app
def configure(*arguments, **options):
    configure_app(*arguments, **dict(options, load_limit=None, cancel_abandoned=False))
library.configure_app = configure
from shop.cli import main; main()
"""


@dataclass(frozen=True, slots=True)
class _Route:
    name: str
    method: str
    prefix: str
    ids: str


_ROUTES: Final = (
    _Route("GET /users/{id}", "GET", "/users/", "users"),
    _Route("POST /transfers", "POST", "/transfers", "accounts"),
    _Route("GET /accounts/{id}", "GET", "/accounts/", "accounts"),
)


class Overload(LedgerComparison):
    name = "overload"
    unit = "good answers"
    description = (
        "requests to `shop serve` at 1, 2 and 4 times the sustainable rate, with an open loop. The sustainable rate is "
        f"the throughput of {_PILOT_CONNECTIONS} connections that wait for their answers. Only answers of 2xx within "
        f"{TIMEOUT_SECONDS:g} s count: then the client closes the connection. There are {CONNECTIONS:,} connections"
    )
    has_warm_up = False

    async def skip_reason(self) -> str | None:
        return skip_reason()

    async def set_up(self) -> None:
        await super().set_up()
        self._folder = TemporaryDirectory()
        self._files = {name: Path(self._folder.name, name) for name in ("users", "accounts")}
        accounts = [f"00000000-0000-7000-8000-{number:012x}" for number in range(1, ACCOUNTS[UNIFORM] + 1)]
        self._files["accounts"].write_text("\n".join(accounts))
        ids = {"accounts": accounts, "users": await self._insert_users()}
        self._files["users"].write_text("\n".join(ids["users"]))
        serve = ("serve", "--port", "{port}")
        commands = {_LIMITED: "from shop.cli import main; main()", _UNLIMITED: _UNLIMITED_COMMAND}
        # one server for each route, because a server learns the throughput of its requests
        self._servers = {
            (kind, route): HttpServer(
                *("-c", command, *serve),
                url=self.url,
                ids=ids[route.ids],
                window_seconds=3,
                authorization=AUTHORIZATION,
            )
            for kind, command in commands.items()
            for route in _ROUTES
        }
        self._rates: dict[_Route, float] = {}
        self.details: dict[str, list[dict[str, Any]]] = {}

    async def tear_down(self) -> None:
        for server in getattr(self, "_servers", {}).values():
            await server.stop()
        for name, runs in getattr(self, "details", {}).items():
            for run in runs:  # further figures, for which the tables have no columns
                print(f"{name}: {json.dumps(run)}", file=sys.stderr)
        if hasattr(self, "_folder"):
            self._folder.cleanup()
        await super().tear_down()

    def contenders(self) -> list[Contender]:
        return [
            Contender(_name(route, load, kind), "howdah" if kind == _LIMITED else "baseline", run, 1)
            for route in _ROUTES
            for load in self._loads
            for kind in (_LIMITED, _UNLIMITED)
            for run in [self._load(kind, route, load)]
        ]

    def goals(self) -> list[Goal]:
        return [
            Goal(_name(route, 4, _LIMITED), "times as fast", 0.9, _name(route, load, _LIMITED))
            for route in _ROUTES
            for load in self._loads
            if load != 4
        ]

    @property
    def _loads(self) -> Sequence[int]:
        return _QUICK_LOADS if self.is_quick else _LOADS

    def _load(self, kind: str, route: _Route, load: int) -> Callable[[], Awaitable[Measured]]:
        """A function that sends `load` times the sustainable rate. The first call for a route measures that rate."""

        async def run() -> Measured:
            server = self._servers[kind, route]
            await self._stop_others(route)
            if route not in self._rates:
                is_post = route.method == "POST"
                closed = await self._servers[_UNLIMITED, route].measure_load(
                    route.prefix, _PILOT_CONNECTIONS, is_post=is_post
                )
                self._rates[route] = 1 / closed.seconds
            seconds = _QUICK_SECONDS if self.is_quick else _SECONDS
            await server.start()
            await server.wait_until_idle()
            output = await run_process(
                "the generator",
                *(sys.executable, "-m", "benchmarks.open_loop", str(server.port), str(self._rates[route] * load)),
                *(str(seconds), route.method, route.prefix, str(self._files[route.ids]), AUTHORIZATION),
            )
            figures = json.loads(output.splitlines()[-1])
            self.details.setdefault(_name(route, load, kind), []).append(figures)
            if not figures["goodput"]:
                raise ContenderFailed(f"no answer within {TIMEOUT_SECONDS:g} s")
            return Measured(1 / figures["goodput"], latency=(figures["p50"], figures["p99"]))

        return run

    async def _stop_others(self, route: _Route) -> None:
        """Stop the servers of other routes. Together they would need more connections than PostgreSQL accepts."""
        for (_, other), server in self._servers.items():
            if other is not route:
                await server.stop_process()

    async def _insert_users(self) -> list[str]:
        """Insert users without orders, and return their ids."""
        async with connect_driver(self.url) as connection:
            rows = await connection.fetch(
                "INSERT INTO users (id, email, name, country, created_at, updated_at, version) "
                "SELECT CAST('00000000-0000-7000-9000-' || lpad(to_hex(n), 12, '0') AS uuid), n || '@example.com', "
                "'User', 'GB', now(), now(), 1 FROM generate_series(1, 2000) n RETURNING id"
            )
        return [str(row["id"]) for row in rows]


def _name(route: _Route, load: int, kind: str) -> str:
    return f"{route.name}, {load}x, {kind}"
