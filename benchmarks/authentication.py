"""authentication: the CPU time to authenticate a request, and the throughput of a route with and without it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final
from uuid import UUID

from sqlalchemy import make_url

from benchmarks.comparison import Comparison, Contender, Goal, Measured
from benchmarks.http_load import QUICK_WINDOW_SECONDS, WINDOW_SECONDS, HttpServer, skip_reason
from benchmarks.identity import CACHED, FIRST, KEY, NOTHING, OPERATOR_AUTHORIZATION, create_authorization
from benchmarks.postgres import connect_driver
from benchmarks.processes import run_module
from shop.identity.principals import Role

if TYPE_CHECKING:
    from typing import Any

    from benchmarks.postgres import Connections

_CONNECTIONS: Final = 64
_USERS: Final = 1_000

_SERVE: Final = "from shop.cli import main; main()"
# The same service without authentication: no credentials, no layer that verifies them, and no rules. Its reads go
# through the pool of the staff, as those of a service without row-level security would.
_SERVE_WITHOUT: Final = """
from uuid import UUID
import howdah.fastapi.authentication, shop.app
from shop.identity.principals import Principal, Role
OPERATOR = Principal(UUID(int=0xAD), Role.OPERATOR)
shop.app.build_authenticate = lambda tokens: None
howdah.fastapi.authentication.find_principal = lambda connection: OPERATOR
howdah.fastapi.AccessRule.check = lambda self, principal: None
from shop.cli import main; main()
"""


class Authentication(Comparison):
    name = "authentication"
    description = (
        "authenticate {size} requests, measured in CPU time; and `GET /users/{{id}}` of `shop serve` with random ids "
        f"over {_CONNECTIONS} connections, as an operator with an access token and as {_USERS:,} customers who read "
        "themselves, compared with the same service without authentication"
    )
    unit = "requests"
    size = 20_000
    quick_size = 2_000
    has_warm_up = False
    _STAFF, _CUSTOMERS = "GET /users/{id}, token of an operator", "GET /users/{id}, tokens of customers"
    _WITHOUT = "GET /users/{id}, no authentication"

    def __init__(self, connections: Connections, size: int, *, rounds: int = 5, is_quick: bool = False) -> None:
        super().__init__(connections, size, rounds=rounds, is_quick=is_quick)
        url = make_url(connections.url)
        self.database = f"{url.database}_authentication"
        self.url = url.set(database=self.database).render_as_string(hide_password=False)

    async def skip_reason(self) -> str | None:
        return skip_reason()

    async def set_up(self) -> None:
        await self._drop_database()
        await self.connections.driver.execute(f'CREATE DATABASE "{self.database}"')
        await run_module("benchmarks.transfer_loads", self.url, "fill", "2")  # migrates
        ids = [f"00000000-0000-7000-9000-{number:012x}" for number in range(1, _USERS + 1)]
        async with connect_driver(self.url) as connection:
            await connection.execute(
                "INSERT INTO users (id, email, name, country, created_at, updated_at, version) "
                "SELECT id, id || '@example.com', 'User', 'GB', now(), now(), 1 FROM unnest(CAST($1 AS uuid[])) id",
                ids,
            )
            await connection.execute("VACUUM ANALYZE users")
        window_seconds = QUICK_WINDOW_SECONDS if self.is_quick else WINDOW_SECONDS
        self.servers = {
            name: HttpServer(
                *("-c", command, "serve", "--port", "{port}"),
                url=self.url,
                ids=ids,
                authorization=authorization,
                window_seconds=window_seconds,
            )
            for name, command, authorization in (
                (self._STAFF, _SERVE, OPERATOR_AUTHORIZATION),
                (self._CUSTOMERS, _SERVE, [create_authorization(Role.CUSTOMER, UUID(id)) for id in ids]),
                (self._WITHOUT, _SERVE_WITHOUT, None),
            )
        }

    async def tear_down(self) -> None:
        for server in getattr(self, "servers", {}).values():
            await server.stop()
        await self._drop_database()

    async def _drop_database(self) -> None:
        await self.connections.driver.execute(f'DROP DATABASE IF EXISTS "{self.database}" WITH (FORCE)')

    def contenders(self) -> list[Contender]:
        return [
            *(Contender(name, "howdah", self._authenticate(name), self.count) for name in (CACHED, FIRST, KEY)),
            Contender(NOTHING, "baseline", self._authenticate(NOTHING), self.count),
            *(Contender(name, "howdah", self._load(name), 1) for name in (self._STAFF, self._CUSTOMERS)),
            Contender(self._WITHOUT, "baseline", self._load(self._WITHOUT), 1),
        ]

    def goals(self) -> list[Goal]:
        return [
            *(Goal(name, "µs", 40) for name in (CACHED, FIRST, KEY)),
            Goal(self._STAFF, "times as fast", 0.85, self._WITHOUT),
            # missed: each read of a customer is a statement of its own, and the others are read in batches
            Goal(self._CUSTOMERS, "times as fast", 0.85, self._WITHOUT),
        ]

    async def reset(self, contender: Contender) -> None:
        """Nothing is written, so there is nothing to restore."""

    async def verify(self, contender: Contender, returned: Any) -> None:
        """The loads raise an error if a request isn't authenticated."""

    def _authenticate(self, name: str) -> Callable[[], Awaitable[Measured]]:
        return lambda: run_module("benchmarks.authentication_loads", self.url, name, str(self.count))

    def _load(self, name: str) -> Callable[[], Awaitable[Measured]]:
        return lambda: self.servers[name].measure_load("/users/", _CONNECTIONS)
