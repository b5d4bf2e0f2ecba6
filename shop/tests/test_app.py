"""The whole service while its database is slow, busy or unreachable, and during a shutdown."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from howdah import Database
from shop.users.models import User
from shop_tests.support.factories import make_user
from shop_tests.support.http_service import client_of, create_service, http_client, run_shop_serve
from shop_tests.support.lossy_proxy import run_lossy_proxy
from shop_tests.support.problems import assert_problem
from shop_tests.support.waiting import until, until_waiting

_CONNECTIONS = text("""
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'shop'
    """)
_KILL = text("""
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'shop'
    """)

_JOBS_OF_EACH_PROCESS = {"poll-revocations", "write-last-used"}
_MAINTENANCE = {"void-expired-holds", "link-seals", "delete-old-keys", "delete-old-api-keys", "delete-old-sign-ins"}


async def until_in_progress(client: httpx.AsyncClient, count: int) -> None:
    """Return when the service has this many requests in progress, besides the one for the metrics."""

    async def is_in_progress() -> bool:
        lines = (await client.get("/metrics")).text.splitlines()
        return any(
            line.startswith("howdah_requests_in_progress ") and float(line.split()[1]) >= count for line in lines
        )

    await until(is_in_progress)


async def rename(client: httpx.AsyncClient, user: dict[str, str]) -> httpx.Response:
    return await client.patch(f"/users/{user['id']}", json={"name": "Grace"}, headers={"If-Match": '"1"'})


async def test_an_unknown_path_and_a_wrong_method_are_problems(client: httpx.AsyncClient) -> None:
    assert_problem(await client.get("/nothing/here"), 404, "not-found")
    answer = await client.put("/healthz")
    assert_problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "GET, HEAD, OPTIONS"


async def test_a_request_is_503_while_the_pool_is_exhausted_and_can_be_retried(
    committed_url: str, committed_database: Database
) -> None:
    # at most 12 connections, 9 of them for sessions
    app = create_service(committed_url, staff_pool_size=8, pool_timeout=0.3)
    async with http_client(app) as client:
        user = await make_user(client)
        async with committed_database.begin() as session:
            await session.get_one(User, UUID(user["id"]), with_for_update=True)
            waiting = [asyncio.create_task(rename(client, user)) for _ in range(9)]
            await until_waiting(committed_database, 9)
            started = time.monotonic()
            assert_problem(await client.get(f"/users/{user['id']}/order-summary"), 503, "pool-exhausted")
            # batched reads use kept connections
            assert (await client.get(f"/users/{user['id']}")).json()["name"] == "Ada"
            assert 0.25 < time.monotonic() - started < 4
        assert sorted(answer.status_code for answer in await asyncio.gather(*waiting)) == [200] + [412] * 8
        assert (await client.get(f"/users/{user['id']}")).json()["name"] == "Grace"


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"lock_timeout": 0.2}, "lock-timeout"),
        ({"statement_timeout": 1, "lock_timeout": 5}, "statement-timeout"),
    ],
)
async def test_a_request_for_a_locked_row_is_503_after_the_timeout_and_can_be_retried(
    committed_url: str, committed_database: Database, settings: dict[str, float], code: str
) -> None:
    async with http_client(create_service(committed_url, **settings)) as client:
        user = await make_user(client)
        async with committed_database.begin() as session:
            await session.get_one(User, UUID(user["id"]), with_for_update=True)
            assert_problem(await rename(client, user), 503, code)
        assert (await rename(client, user)).status_code == 200


async def test_connections_closed_by_the_server_fail_no_request(
    committed_url: str, committed_database: Database
) -> None:
    async with http_client(create_service(committed_url)) as client:
        user = await make_user(client)
        await asyncio.gather(*(client.get(f"/users/{user['id']}") for _ in range(5)))
        async with committed_database.begin() as session:
            assert await session.scalar(_KILL)
        answers = await asyncio.gather(*(client.get(f"/users/{user['id']}") for _ in range(5)))
        assert {answer.status_code for answer in answers} == {200}


async def test_a_killed_backend_fails_only_the_request_that_it_served(
    committed_url: str, committed_database: Database
) -> None:
    async with http_client(create_service(committed_url)) as client:
        user = await make_user(client)
        async with committed_database.begin() as session:
            await session.get_one(User, UUID(user["id"]), with_for_update=True)
            killed = asyncio.create_task(rename(client, user))
            await until_waiting(committed_database, 1)
            await session.scalar(_KILL)
            assert_problem(await killed, 503, "connection-lost")
        assert (await client.get(f"/users/{user['id']}")).json() == user | {"orders": []}
        assert (await rename(client, user)).status_code == 200

        async def is_pool_unused() -> bool:
            return 'howdah_pool_connections{database="staff",state="in_use"} 0.0' in (await client.get("/metrics")).text

        await until(is_pool_unused)  # a background job may use a connection just now


async def test_two_services_in_one_process_use_their_own_databases(
    client: httpx.AsyncClient, committed_url: str
) -> None:
    async with http_client(create_service(committed_url)) as other:
        user = await make_user(client)
        assert_problem(await other.get(f"/users/{user['id']}"), 404, "not-found")
        assert (await client.get(f"/users/{user['id']}")).status_code == 200


async def test_a_shutdown_finishes_the_running_request_and_closes_every_connection(
    committed_url: str, committed_database: Database, tmp_path: Path
) -> None:
    async with run_shop_serve(committed_url, tmp_path / "log") as (process, address), client_of(address) as client:
        user = await make_user(client)
        async with committed_database.begin() as session:
            await session.get_one(User, UUID(user["id"]), with_for_update=True)
            running = asyncio.create_task(rename(client, user))
            await until_waiting(committed_database, 1)
            process.send_signal(signal.SIGTERM)

            async def refuses_connections() -> bool:
                try:
                    opening = asyncio.open_connection("127.0.0.1", client.base_url.port)
                    _, writer = await asyncio.wait_for(opening, 0.05)
                except TimeoutError:  # the attempt was ignored; the kernel would repeat it after a second
                    return False
                except ConnectionRefusedError:
                    return True
                writer.close()
                return False

            await until(refuses_connections)
            assert not running.done()
        assert (await running).json()["name"] == "Grace"
        assert await asyncio.wait_for(process.wait(), 10) == 0

        async def are_connections_closed() -> bool:
            async with committed_database.engine.connect() as connection:
                return not await connection.scalar(_CONNECTIONS)

        await until(are_connections_closed)
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert "Pool " not in log  # SQLAlchemy would log each pool that it closes


async def test_a_shutdown_ends_in_time_although_the_database_is_frozen(committed_url: str, tmp_path: Path) -> None:
    settings = {"SHOP_SHUTDOWN_TIMEOUT": "3"}
    async with (
        run_lossy_proxy(committed_url, tmp_path) as proxy,
        run_shop_serve(proxy.url.render_as_string(hide_password=False), tmp_path / "log", **settings) as (
            process,
            address,
        ),
        client_of(address) as client,
    ):
        user = await make_user(client)
        proxy.freeze()
        reading = [asyncio.create_task(client.get(f"/users/{user['id']}")) for _ in range(3)]
        await until_in_progress(client, len(reading))
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) in (0, 1)
        assert time.monotonic() - started < 6
        for answer in await asyncio.gather(*reading):
            assert_problem(answer, 503, "stopping")


@pytest.mark.parametrize("maintenance", [False, True])
async def test_a_process_without_maintenance_runs_only_the_jobs_of_each_process(
    committed_url: str, maintenance: bool
) -> None:
    async with http_client(create_service(committed_url, maintenance=maintenance)) as client:
        metrics = (await client.get("/metrics")).text
    jobs = set(re.findall(r'^howdah_job_runs_total\{job="([a-z-]+)"', metrics, re.MULTILINE))
    assert jobs == _JOBS_OF_EACH_PROCESS | (_MAINTENANCE if maintenance else set())


async def test_the_shared_service_changes_no_data_of_tests(client: httpx.AsyncClient) -> None:
    """Otherwise its jobs could void the holds of a test at any time."""
    metrics = (await client.get("/metrics")).text
    assert set(re.findall(r'job="([a-z-]+)"', metrics)) == _JOBS_OF_EACH_PROCESS
