"""Liveness, readiness and metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from sqlalchemy import text

from howdah import Database
from shop import migrations
from shop.identity.principals import Role
from shop_tests.support.factories import make_user
from shop_tests.support.http_service import create_service, http_client
from shop_tests.support.identity import sign_in
from shop_tests.support.lossy_proxy import run_lossy_proxy
from shop_tests.support.problems import assert_problem

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    with TemporaryDirectory(
        prefix="pg"
    ) as folder:  # the path of a socket is at most 107 bytes long; tmp_path is longer
        yield Path(folder)


async def test_liveness_and_metrics_need_no_database() -> None:
    async with http_client(create_service(NOWHERE)) as client:
        response = await client.get("/healthz")
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/openapi.json")).status_code == 200


async def test_the_service_is_not_ready_without_a_database_and_answers_within_seconds() -> None:
    async with http_client(create_service(NOWHERE)) as client:
        started = time.monotonic()
        assert_problem(await client.get("/readyz"), 503, "not-ready", detail="ConnectionFailed")
        assert_problem(await client.get("/users"), 503, "sessions-unavailable")
        assert time.monotonic() - started < 5


async def test_the_service_is_ready_once_the_database_is_reachable(committed_url: str, socket_folder: Path) -> None:
    async with run_lossy_proxy(committed_url, socket_folder) as proxy:
        url = proxy.url.render_as_string(hide_password=False)
    async with http_client(create_service(url)) as client:
        assert_problem(await client.get("/readyz"), 503, "not-ready")
        async with run_lossy_proxy(committed_url, socket_folder):
            response = await client.get("/readyz")
            assert (response.status_code, response.json()) == (200, {"status": "ready"})
            assert (await client.get("/users")).status_code == 200


async def test_the_service_is_not_ready_until_the_schema_is_current(
    committed_url: str, committed_database: Database
) -> None:
    async with http_client(create_service(committed_url)) as client:
        assert (await client.get("/readyz")).status_code == 200
        async with committed_database.begin() as session:
            await session.execute(text("UPDATE alembic_version SET version_num = '0000'"))
        answer = await client.get("/readyz")
        assert_problem(answer, 503, "not-ready")
        assert "0000" in answer.json()["detail"]
        async with committed_database.begin() as session:
            await session.execute(text("DROP TABLE alembic_version"))
        assert_problem(await client.get("/readyz"), 503, "not-ready")
        async with committed_database.begin() as session:
            await session.execute(text("DROP SCHEMA public CASCADE"))
            await session.execute(text("CREATE SCHEMA public"))
        await asyncio.to_thread(migrations.upgrade, committed_url)
        assert (await client.get("/readyz")).status_code == 200


@pytest.mark.parametrize(
    ("statement", "undone", "detail"),
    [
        (
            "ALTER TABLE transfers DISABLE TRIGGER post_transfers",
            "ALTER TABLE transfers ENABLE TRIGGER post_transfers",
            "trigger post_transfers on transfers: disabled",
        ),
        (
            "ALTER TABLE accounts RENAME TO ledger_accounts",
            "ALTER TABLE ledger_accounts RENAME TO accounts",
            "table accounts: missing",
        ),
        (
            "CREATE TRIGGER harm BEFORE INSERT ON transfers FOR EACH ROW EXECUTE FUNCTION reject_change()",
            "DROP TRIGGER harm ON transfers",
            "trigger harm on transfers: unknown",
        ),
    ],
)
async def test_the_service_is_not_ready_if_the_triggers_differ(
    committed_url: str, committed_database: Database, statement: str, undone: str, detail: str
) -> None:
    async with http_client(create_service(committed_url)) as client:
        async with committed_database.begin() as session:
            await session.execute(text(statement))
        answer = await client.get("/readyz")
        assert_problem(answer, 503, "not-ready")
        assert detail in answer.json()["detail"]
        async with committed_database.begin() as session:
            await session.execute(text(undone))
        assert (await client.get("/readyz")).status_code == 200


async def test_the_service_stays_ready_while_a_table_is_locked(
    committed_url: str, committed_database: Database
) -> None:
    async with http_client(create_service(committed_url)) as client:
        assert (await client.get("/readyz")).status_code == 200
        for table in ("accounts", "transfers", "users"):
            async with committed_database.session() as session:
                await session.execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
                assert (await client.get("/readyz")).status_code == 200
        async with committed_database.begin() as session:
            await session.execute(text("ALTER TABLE transfers DISABLE TRIGGER post_transfers"))
        assert_problem(await client.get("/readyz"), 503, "not-ready")


async def test_the_service_is_not_ready_while_every_connection_is_in_use(committed_url: str) -> None:
    async with http_client(create_service(committed_url, pool_size=1, pool_timeout=0.2)) as client:
        user = await make_user(client)
        path, headers = f"/users/{user['id']}/order-summary", sign_in(Role.CUSTOMER, user["id"])
        async with Database(committed_url) as database, database.begin() as session:
            await session.execute(text("LOCK TABLE users"))
            waiting = [asyncio.create_task(client.get(path, headers=headers)) for _ in range(8)]
            await _in_use(client, 8)  # of 11 connections; the others are for batches
            started = time.monotonic()
            assert_problem(await client.get("/readyz"), 503, "not-ready", detail="PoolExhausted")
            assert_problem(await client.get(path, headers=headers), 503, "pool-exhausted")
            assert time.monotonic() - started < 3
        assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}
        await _in_use(client, 0)
        assert (await client.get("/readyz")).status_code == 200


async def test_the_metrics_name_routes_by_their_path_templates(client: httpx.AsyncClient) -> None:
    user = await make_user(client)
    await client.get(f"/users/{user['id']}/order-summary")
    await client.get("/nothing/here")
    await client.request("PROPFIND", "/users")
    await client.get("/accounts/nonsense/entries")

    response = await client.get("/metrics")

    assert response.headers["content-type"].startswith("text/plain; version=")
    metrics = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in _lines(response)}
    for labels in (
        'method="POST",route="/users",status="201"',
        'method="GET",route="/users/{user_id}/order-summary",status="200"',
        'method="GET",route="/accounts/{account_id}/entries",status="422"',
        'method="any",route="unmatched",status="404"',
        'method="any",route="/users",status="405"',
    ):
        assert metrics[f"howdah_requests_total{{{labels}}}"] >= 1
    assert metrics['howdah_request_seconds_count{method="POST",route="/users"}'] >= 1
    assert metrics['howdah_pool_connections{database="main",state="limit"}'] == 30
    assert metrics['howdah_pool_connections{database="staff",state="limit"}'] == 18
    assert metrics['howdah_pool_connections{database="staff",state="in_use"}'] == 0
    assert metrics['howdah_pool_connections{database="staff",state="idle"}'] >= 1
    assert user["id"] not in response.text


async def test_the_metrics_report_the_batches(client: httpx.AsyncClient) -> None:
    user = await make_user(client)

    async def read_metrics() -> dict[str, float]:
        lines = [line.rsplit(" ", 1) for line in _lines(await client.get("/metrics"))]
        return {name: float(value) for name, value in lines if 'queue="user"' in name}

    before = await read_metrics()
    await asyncio.gather(*(client.get(f"/users/{user['id']}") for _ in range(20)))
    after = await read_metrics()

    trips = after['howdah_batch_size_count{queue="user"}'] - before['howdah_batch_size_count{queue="user"}']
    assert 1 <= trips <= 20
    for figure in ("size", "wait_seconds"):
        buckets = [value for name, value in after.items() if name.startswith(f"howdah_batch_{figure}_bucket")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == after[f'howdah_batch_{figure}_count{{queue="user"}}']
    assert after['howdah_batch_wait_seconds_count{queue="user"}'] >= 20
    assert after['howdah_batch_waiters{queue="user"}'] == 0
    assert after['howdah_batch_rejections_total{queue="user"}'] == 0


def _lines(response: httpx.Response) -> list[str]:
    return [line for line in response.text.splitlines() if line and not line.startswith("#")]


async def _in_use(client: httpx.AsyncClient, connections: int) -> None:
    async with asyncio.timeout(10):
        while f'howdah_pool_connections{{database="main",state="in_use"}} {float(connections)}' not in _lines(
            await client.get("/metrics")
        ):
            await asyncio.sleep(0.005)
