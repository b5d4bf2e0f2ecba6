"""rate-limits: the time that rate limits add to a request, and the time of one count, compared with `limits`."""

from __future__ import annotations

import time
from typing import Any, Final

from fastapi import FastAPI
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from starlette.types import Message

from benchmarks.comparison import Comparison, Contender, Goal, check_equal
from howdah import Database
from howdah.fastapi import RateLimit, RateLimits, configure_app
from howdah.fastapi._rate_table import RateTable

_MANY: Final = 1_000_000_000
_CLIENTS: Final = 1_000
_WITH: Final = "requests with rate limits"
_WITHOUT: Final = "requests without rate limits"
_TABLE: Final = "counts of howdah"
_LIBRARY: Final = "counts of limits"


class RateLimitCosts(Comparison):
    name = "rate-limits"
    description = (
        "{size} requests of 1,000 addresses to a route that returns a constant, without a server; and as many counts, "
        "with the values of the header RateLimit"
    )
    unit = "requests"
    size = 5_000
    quick_size = 500

    async def set_up(self) -> None:
        self.limited = _create_app(RateLimits(classes={"read": RateLimit(_MANY)}, address=RateLimit(_MANY)))
        self.unlimited = _create_app(None)
        self.table = RateTable(RateLimit(_MANY), max_entries=10 * _CLIENTS)
        self.item = RateLimitItemPerMinute(_MANY)
        self.limiter = FixedWindowRateLimiter(MemoryStorage())
        self.addresses = [f"10.0.{number % _CLIENTS // 256}.{number % 256}" for number in range(self.count)]

    def contenders(self) -> list[Contender]:
        return [
            Contender(_WITH, "howdah", self.run_limited, self.count),
            Contender(_WITHOUT, "baseline", self.run_unlimited, self.count),
            Contender(_TABLE, "howdah", self.run_table, self.count),
            Contender(_LIBRARY, "peer", self.run_library, self.count, omission="no bound on the memory"),
        ]

    def goals(self) -> list[Goal]:
        return [Goal(_WITH, "of the time", 1.15, _WITHOUT), Goal(_TABLE, "times as fast", 5, _LIBRARY)]

    def rounds(self) -> int:
        return 3 * self.requested_rounds

    async def run_limited(self) -> int:
        return await self._request(self.limited)

    async def run_unlimited(self) -> int:
        return await self._request(self.unlimited)

    async def run_table(self) -> int:
        allowed = 0
        for address in self.addresses:
            excess = self.table.hit(address, time.monotonic())
            allowed += excess <= 0 and self.table.remaining(excess)[0] > 0
        return allowed

    async def run_library(self) -> int:
        allowed = 0
        for address in self.addresses:
            allowed += self.limiter.hit(self.item, address)
            self.limiter.get_window_stats(self.item, address)
        return allowed

    async def _request(self, app: FastAPI) -> int:
        allowed = 0

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            nonlocal allowed
            allowed += message.get("status") == 200

        for address in self.addresses:
            scope = {
                "type": "http",
                "method": "GET",
                "path": "/constant",
                "raw_path": b"/constant",
                "query_string": b"",
                "headers": [(b"host", b"shop.example.com")],
                "client": (address, 1),
                "scheme": "http",
                "http_version": "1.1",
            }
            await app(scope, receive, send)
        return allowed

    async def reset(self, contender: Contender) -> None:
        """The limits are never reached, so there is nothing to restore."""

    async def verify(self, contender: Contender, returned: Any) -> None:
        check_equal("requests that were allowed", returned, self.count)


def _create_app(rate_limits: RateLimits | None) -> FastAPI:
    app = FastAPI()
    configure_app(
        app, database=lambda: Database("postgresql://127.0.0.1/unused"), request_log=False, rate_limits=rate_limits
    )

    @app.get("/constant")
    async def get_constant() -> int:
        return 1

    return app
