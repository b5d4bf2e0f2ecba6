"""Direct routes while routes are added and removed, and while many requests are handled at a time."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI

from howdah import Database
from howdah.fastapi import PUBLIC, allow, configure_app, direct
from howdah.fastapi._fastapi_internals import IS_SUPPORTED
from howdah.testing import open_client
from howdah.testing.clients import find_application
from howdah_tests.support.idempotent_app import create_tables
from howdah_tests.support.path_app import create_path_app
from howdah_tests.support.path_errors import UnhandledError
from howdah_tests.support.path_pairs import note_routed
from howdah_tests.support.principals import CUSTOMER, OPERATOR, authenticate, sign_in, unreachable_database
from howdah_tests.support.untraced import create_fastapi

pytestmark = pytest.mark.skipif(not IS_SUPPORTED, reason="this version of FastAPI serves all routes itself")


def build_app(*, has_rules: bool) -> FastAPI:
    app = create_fastapi()
    options: dict[str, Any] = {"authenticate": authenticate} if has_rules else {}
    configure_app(app, database=unreachable_database, request_log=False, metrics=False, **options)
    return app


def add(router: Any, path: str, name: str, *, rule: Any = PUBLIC) -> None:
    async def endpoint() -> str:
        return name

    router.get(path, dependencies=[rule])(direct(endpoint))


@pytest.mark.parametrize("has_rules", [True, False])
async def test_routes_that_are_added_and_removed_while_the_application_runs(has_rules: bool) -> None:
    app = build_app(has_rules=has_rules)
    router = APIRouter()
    app.include_router(router)
    routed = note_routed(app)
    async with unreachable_database() as database, open_client(app, {"main": database}) as client:

        async def get(path: str) -> Any:
            return (await client.get(path, headers=sign_in(OPERATOR))).json()

        assert (await get("/a"))["status"] == 404
        add(router, "/{name}", "first")
        assert await get("/a") == "first"
        add(app, "/a", "second")
        assert await get("/a") == "first"
        app.router.routes.insert(0, app.router.routes.pop())
        add(app, "/b", "third")  # the change above is noticed with this one
        assert await get("/a") == "second"
        assert routed == ["GET None"]
        app.router.routes[:] = [each for each in app.router.routes if getattr(each, "path", None) != "/a"]
        assert await get("/a") == "first"
        app.router.routes.clear()
        assert [(await get(path))["status"] for path in ("/a", "/b")] == [404, 404]


async def test_the_rule_of_a_route_that_is_added_later_is_checked() -> None:
    app = build_app(has_rules=True)
    async with unreachable_database() as database, open_client(app, {"main": database}) as client:
        add(app, "/public", "public")
        assert (await client.get("/public")).json() == "public"
        add(app, "/operators", "operators", rule=allow(OPERATOR))
        statuses = [
            (await client.get("/operators", headers=headers)).status_code
            for headers in ({}, sign_in(CUSTOMER), sign_in(OPERATOR))
        ]
        assert statuses == [401, 403, 200]


async def test_requests_at_the_same_time_do_not_share_anything() -> None:
    app = create_path_app(direct, request_log=False, metrics=False)
    async with unreachable_database() as database, open_client(app, {"main": database}) as client:

        async def send(number: int) -> None:
            name, headers = f"n{number}", sign_in(CUSTOMER, f"n{number}") | {"Host": "test"}
            found = (await client.get(f"/scope/{name}", headers=headers)).json()
            assert (found["principal"], found["parameters"]) == (f"user:{name}", {"name": name})
            assert (await client.get(f"/yields/{name}", headers=headers)).json() == [name, "function", "request"]
            changed = await client.get(f"/changed/{200 + number}", headers=headers)
            assert (changed.status_code, changed.headers["x-status"]) == (200 + number, f"{200 + number}")
            default = await client.get(f"/values/{number}", headers=headers)
            assert (default.json()["number"], default.json()["flags"]) == (number, [1, 2, 0])

        await asyncio.gather(*map(send, [each for each in range(60) if each not in (4, 5)]))


async def test_requests_with_the_same_idempotency_key_at_the_same_time_run_the_route_once(
    committed_database: Database,
) -> None:
    await create_tables(committed_database)
    app = create_path_app(direct, request_log=False, metrics=False)
    routed = note_routed(app)
    async with open_client(app, {"main": committed_database}) as client:
        headers = {"Host": "test", "Idempotency-Key": "k"}
        sent = [client.post("/notes", json={"name": "a"}, headers=headers) for _ in range(8)]
        responses = await asyncio.gather(*sent)
    assert {(each.status_code, each.content) for each in responses} == {(201, b'{"count":1}')}
    assert sum("idempotency-replayed" in each.headers for each in responses) == 7
    assert routed == []


async def test_a_request_leaves_nothing_for_the_garbage_collector() -> None:
    """A cycle would keep the request and its session until the next collection, which takes 20 µs for each request."""
    app = create_path_app(direct, request_log=False, metrics=False)
    paths = ("/json", "/yields/a", "/values/a", "/errors/not-found", "/errors/unexpected")
    async with unreachable_database() as database, open_client(app, {"main": database}) as client:
        application, headers = find_application(client), [(b"host", b"test")]

        async def collect_after_requests(path: str) -> int:
            scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": headers}
            for _ in range(20):
                with suppress(UnhandledError):
                    await application({**scope}, _receive, _discard)
            return gc.collect()

        gc.collect()
        gc.freeze()  # the collections below look only at the objects of their requests, which is faster
        for path in paths:
            await collect_after_requests(path)
        gc.disable()
        found = {path: await collect_after_requests(path) for path in paths}
        gc.enable()
    assert {path: count for path, count in found.items() if count >= 20} == {}


async def _receive() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _discard(message: Any) -> None: ...
