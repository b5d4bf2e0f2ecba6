"""Rate limits: for each address before the authentication, and for each principal before the body is read."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from fractions import Fraction
from types import SimpleNamespace

import pytest
from fastapi import FastAPI, Request
from starlette.requests import HTTPConnection

from howdah import Database
from howdah.fastapi import PUBLIC, NotAuthenticated, RateLimit, RateLimits, configure_app
from howdah.fastapi._rate_table import RateTable
from howdah.fastapi.rate_limits import find_network
from howdah_tests.support.fastapi_apps import http_client


@dataclass(frozen=True)
class Caller:
    key: str
    role: str = "user"
    scopes: frozenset[str] | None = None


def build_app(rate_limits: RateLimits | None) -> FastAPI:
    app = FastAPI()
    app.state.authentications = 0
    app.state.before_authentication = lambda: None

    async def authenticate(connection: HTTPConnection) -> Caller | None:
        app.state.authentications += 1
        app.state.before_authentication()
        token = connection.headers.get("authorization")
        if token == "wrong":
            raise NotAuthenticated
        return None if token is None else Caller(token)

    configure_app(
        app,
        database=lambda: Database("postgresql://nobody@127.0.0.1:1/nothing"),
        authenticate=authenticate,
        rate_limits=rate_limits,
    )

    @app.get("/items", dependencies=[PUBLIC])
    async def list_items() -> list[int]:
        return []

    @app.post("/items", dependencies=[PUBLIC])
    async def create_item(request: Request) -> int:
        return len(await request.body())

    return app


def test_a_client_has_its_burst_and_then_the_rate() -> None:
    table = RateTable(RateLimit(3, 30), max_entries=10)
    assert [table.hit("a", 100.0) > 0 for _ in range(5)] == [False, False, False, True, True]
    assert table.hit("a", 100.0) == pytest.approx(10)
    assert table.hit("b", 100.0) <= 0
    assert table.hit("a", 109.9) > 0
    assert table.hit("a", 110.0) <= 0
    assert table.hit("a", 110.0) > 0
    assert table.remaining(table.hit("a", 200.0)) == (2, 10)


def test_the_table_agrees_with_a_bucket_of_exact_numbers() -> None:
    randomness = random.Random(1)
    limit = RateLimit(7, 20)
    table = RateTable(limit, max_entries=1000)
    level: dict[str, Fraction] = {}
    seen: dict[str, Fraction] = {}
    now = Fraction(5)
    rejected = 0
    for _ in range(5_000):
        now += Fraction(randomness.randrange(0, 8), 4)
        key = randomness.choice("abc")
        filled = max(Fraction(0), level.get(key, Fraction(0)) - (now - seen.get(key, now)) * limit.requests / 20)
        is_allowed = filled + 1 <= limit.requests
        level[key], seen[key] = filled + is_allowed, now
        assert (table.hit(key, float(now)) <= 0) is is_allowed
        rejected += not is_allowed
    assert 100 < rejected < 4_900


def test_many_keys_use_bounded_memory() -> None:
    table = RateTable(RateLimit(2, 60), max_entries=1_000)
    for number in range(50_000):
        table.hit(str(number), 1.0)
        assert len(table) <= 1_000
    table.hit("a", 500.0)
    table.hit("a", 700.0)
    assert len(table) == 1  # keys whose time has passed are forgotten


def test_a_flood_of_keys_keeps_the_use_of_a_key_that_is_used() -> None:
    table = RateTable(RateLimit(2, 60), max_entries=1_000)
    table.hit("victim", 1.0)
    table.hit("victim", 1.0)
    for number in range(5_000):  # a generation of keys has 500
        table.hit(str(number), 1.0)
        if number % 400 == 0:
            assert table.hit("victim", 1.0) > 0
    assert len(table) <= 1_000


@pytest.mark.parametrize(
    ("client", "network"),
    [
        (("192.0.2.1", 1), "192.0.2.1"),
        (("::ffff:192.0.2.1", 1), "192.0.2.1"),
        (("2001:db8:1:2:3:4:5:6", 1), "2001:db8:1:2::/64"),
        (("2001:db8:1:2::", 1), "2001:db8:1:2::/64"),
        (("2001:db8:1:3::", 1), "2001:db8:1:3::/64"),
        (None, ""),
    ],
)
def test_an_ipv6_network_counts_as_one_address(client: tuple[str, int] | None, network: str) -> None:
    assert find_network({"client": client}) == network


@pytest.mark.parametrize("text", ["", "5", "5/", "/5", "0/60", "5/0", "5/-1", "5/nan", "5/inf", "-1/5", "a/b", "5/6/7"])
def test_a_text_that_is_no_limit_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="600/60"):
        RateLimit.parse(text)
    assert RateLimit.parse("600/60") == RateLimit(600, 60)


async def test_a_principal_that_exceeds_its_limit_gets_429() -> None:
    limits = RateLimits(classes={"read": RateLimit(2, 60), "write": RateLimit(1, 60)})
    async with http_client(build_app(limits)) as client:
        first = await client.get("/items", headers={"Authorization": "a"})
        assert first.status_code == 200
        assert first.headers["ratelimit-policy"] == '"read";q=2;w=60'
        assert first.headers["ratelimit"] == '"read";r=1;t=30'
        await client.get("/items", headers={"Authorization": "a"})
        rejected = await client.get("/items", headers={"Authorization": "a"})
        assert rejected.status_code == 429
        assert rejected.json()["type"] == "urn:howdah:problem:rate-limited"
        assert rejected.json()["limit"] == "read"
        assert rejected.headers["retry-after"] == "30"
        assert rejected.headers["ratelimit"] == '"read";r=0;t=60'
        # another class, another principal of the same address, and a request without a principal
        assert (await client.post("/items", headers={"Authorization": "a"})).status_code == 200
        assert (await client.get("/items", headers={"Authorization": "b"})).status_code == 200
        assert [(await client.get("/items")).status_code for _ in range(3)] == [200, 200, 429]
        assert (await client.head("/items")).status_code == 429
        metrics = (await client.get("/metrics")).text
        assert 'howdah_requests_rate_limited_total{limit="read"} 3.0' in metrics
        assert "howdah_rate_limit_entries 4.0" in metrics
        for path in ("/healthz", "/healthz", "/healthz", "/healthz"):
            probe = await client.get(path)
            assert probe.status_code == 200
            assert "ratelimit" not in probe.headers


async def test_a_principal_is_counted_at_the_time_after_the_authentication(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    clock = SimpleNamespace(monotonic=lambda: now, perf_counter=time.perf_counter)
    monkeypatch.setattr("howdah.fastapi._layers.time", clock)
    app = build_app(RateLimits(classes={"read": RateLimit(1, 60)}))

    def take_61_seconds() -> None:
        nonlocal now
        now += 61

    async with http_client(app) as client:
        assert (await client.get("/items", headers={"Authorization": "a"})).status_code == 200
        assert (await client.get("/items", headers={"Authorization": "a"})).status_code == 429  # the control
        app.state.before_authentication = take_61_seconds
        assert (await client.get("/items", headers={"Authorization": "a"})).status_code == 200


async def test_wrong_tokens_count_for_the_address_before_they_are_checked() -> None:
    app = build_app(RateLimits(classes={}, address=RateLimit(5, 60)))
    async with http_client(app) as client:
        statuses = [(await client.get("/items", headers={"Authorization": "wrong"})).status_code for _ in range(8)]
        assert statuses == [401] * 5 + [429] * 3
        assert app.state.authentications == 5
        assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize("limited", ["address", "write"])
async def test_a_rejected_body_is_not_read(limited: str) -> None:
    limit = RateLimit(1, 60)
    limits = RateLimits(
        classes={} if limited == "address" else {"write": limit}, address=limit if limited == "address" else None
    )
    async with http_client(build_app(limits)) as client:
        assert (await client.post("/items", content=b"123")).json() == 3
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(b"POST /items HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\n")  # and nothing more
        async with asyncio.timeout(5):
            assert b"429 Too Many Requests" in await reader.readline()
        writer.close()


async def test_the_description_has_the_429() -> None:
    limited = build_app(RateLimits(classes={})).openapi()["paths"]
    assert "Retry-After" in limited["/items"]["get"]["responses"]["429"]["headers"]
    assert "429" not in limited["/healthz"]["get"]["responses"]
    assert "429" not in build_app(None).openapi()["paths"]["/items"]["get"]["responses"]


def test_the_name_of_the_address_limit_is_reserved() -> None:
    with pytest.raises(ValueError, match="another name"):
        RateLimits(classes={"address": RateLimit(1)})


async def test_a_principal_has_few_requests_of_a_class_in_progress() -> None:
    limits = RateLimits(classes={"read": RateLimit(100), "write": RateLimit(100)}, max_in_progress={"read": 2})
    app = build_app(limits)
    entered, leave = asyncio.Semaphore(0), asyncio.Event()

    @app.get("/slow", dependencies=[PUBLIC])
    async def wait_for_the_test() -> None:
        entered.release()
        await leave.wait()

    async with http_client(app) as client:
        slow = [asyncio.ensure_future(client.get("/slow", headers={"Authorization": "a"})) for _ in range(2)]
        async with asyncio.timeout(5):
            await entered.acquire()
            await entered.acquire()
        rejected = await client.get("/items", headers={"Authorization": "a"})
        assert (rejected.status_code, rejected.headers["retry-after"]) == (429, "1")
        assert rejected.json()["type"] == "urn:howdah:problem:too-many-in-progress"
        assert (await client.post("/items", headers={"Authorization": "a"})).status_code == 200
        assert (await client.get("/items", headers={"Authorization": "b"})).status_code == 200
        leave.set()
        assert [(await each).status_code for each in slow] == [200, 200]
        assert (await client.get("/items", headers={"Authorization": "a"})).status_code == 200


@pytest.mark.parametrize("max_in_progress", [{"other": 1}, {"read": 0}])
def test_an_invalid_limit_of_requests_in_progress_is_rejected(max_in_progress: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="max_in_progress"):
        RateLimits(classes={"read": RateLimit(1)}, max_in_progress=max_in_progress)
