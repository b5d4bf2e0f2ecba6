"""`/orders/export`: any number of orders as NDJSON or CSV."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from howdah import Database
from howdah.fastapi import SendLimits, _spool, exports, unescape_formula
from shop.orders.models import Order, OrderStatus
from shop_tests.support.factories import make_order, make_user, walk
from shop_tests.support.http_service import client_of, run_shop_serve
from shop_tests.support.problems import assert_problem
from shop_tests.support.waiting import until

SPECIAL_TEXTS = ('a "b", c\r\nd', "=1+1", " é ", "a\nb")
MANY_ORDERS = 30_000  # more than the buffers hold between PostgreSQL and a client that has stopped reading

_MAKE_ORDERS = text("""
    INSERT INTO orders (id, user_id, status, currency, total_cents, placed_at, created_at, updated_at, version)
    SELECT gen_random_uuid(), :user_id, 'paid', 'GBP', n, now() - n * interval '1 minute', now(), now(), 1
    FROM generate_series(1, :count) AS n
    """)
_STREAMING = """
    FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'shop' AND state = 'idle in transaction'
    """


async def make_orders(database: Database, user: dict[str, Any], count: int) -> None:
    async with database.begin() as session:
        await session.execute(_MAKE_ORDERS, {"user_id": UUID(user["id"]), "count": count})


@pytest.fixture
async def orders(client: httpx.AsyncClient, stored: Database) -> list[dict[str, Any]]:
    """Several batches of orders, with nulls and texts that must be quoted."""
    ada, grace = await make_user(client), await make_user(client)
    await make_order(client, grace["id"], 100)
    async with stored.begin() as session:
        session.add_all(
            Order(
                user_id=UUID(grace["id"]),
                reference=reference,
                total_cents=2**62,
                status=OrderStatus.SHIPPED,
                placed_at=datetime(2026, 1, day, tzinfo=UTC),
            )
            for day, reference in enumerate(SPECIAL_TEXTS, start=1)
        )
    await make_orders(stored, ada, 2_500)
    return await listed(client)


async def listed(client: httpx.AsyncClient, **filters: Any) -> list[dict[str, Any]]:
    return [order for page in await walk(client, "/orders", limit=1_000, **filters) for order in page]


async def exported(client: httpx.AsyncClient, **parameters: Any) -> httpx.Response:
    response = await client.get("/orders/export", params=parameters)
    assert response.status_code == 200, response.text
    return response


def csv_rows(orders: list[dict[str, Any]]) -> list[dict[str, str]]:
    return [{name: "" if value is None else str(value) for name, value in order.items()} for order in orders]


async def test_ndjson_has_one_order_per_line_like_the_list(
    client: httpx.AsyncClient, orders: list[dict[str, Any]]
) -> None:
    response = await exported(client)
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.headers["content-disposition"] == 'attachment; filename="orders.ndjson"'
    assert len(orders) == 2_505
    assert [json.loads(line) for line in response.content.split(b"\n")[:-1]] == orders
    assert response.content.endswith(b"}\n")
    assert (await exported(client, format="ndjson")).content == response.content


async def test_csv_has_a_header_and_the_orders_of_the_list(
    client: httpx.AsyncClient, orders: list[dict[str, Any]]
) -> None:
    response = await exported(client, format="csv")
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert response.headers["content-disposition"] == 'attachment; filename="orders.csv"'
    rows = csv.DictReader(io.StringIO(response.text, newline=""), strict=True)
    escaped = list(rows)
    assert [{name: unescape_formula(value) for name, value in row.items()} for row in escaped] == csv_rows(orders)
    assert "'=1+1" in [row["reference"] for row in escaped]
    assert rows.fieldnames == list(orders[0])
    assert response.text.startswith("id,user_id,")
    assert ',"a ""b"", c\r\nd",shipped,' in response.text
    assert response.text.endswith("\r\n")


async def test_raw_csv_has_the_texts_unchanged(client: httpx.AsyncClient, orders: list[dict[str, Any]]) -> None:
    response = await exported(client, format="csv", raw="true")
    assert list(csv.DictReader(io.StringIO(response.text, newline=""), strict=True)) == csv_rows(orders)


async def test_an_export_without_orders_has_only_the_csv_header(client: httpx.AsyncClient) -> None:
    assert (await exported(client)).content == b""
    header = (await exported(client, format="csv")).text
    assert header.split(",")[:2] == ["id", "user_id"]
    assert header.count("\r\n") == 1


async def test_an_export_has_the_filters_of_the_list(client: httpx.AsyncClient, orders: list[dict[str, Any]]) -> None:
    shipped = next(order for order in orders if order["status"] == "shipped")
    for filters in (
        {"user_id": shipped["user_id"]},
        {"status": "shipped"},
        {"total_from": 2_400, "total_to": 2_450},
        {"placed_from": "2026-01-02T00:00:00Z", "placed_before": "2026-01-03T00:00:00Z"},
    ):
        expected = await listed(client, **filters)
        assert 0 < len(expected) < 2_500
        response = await exported(client, **filters)
        assert [json.loads(line) for line in response.content.split(b"\n")[:-1]] == expected


@pytest.mark.parametrize("query", ["format=xml", "format=CSV", "status=lost", "limit=5", "after=x"])
async def test_an_export_with_invalid_parameters_is_rejected(client: httpx.AsyncClient, query: str) -> None:
    assert_problem(await client.get(f"/orders/export?{query}"), 422, "validation")


async def test_a_time_out_of_range_is_a_problem_response(client: httpx.AsyncClient) -> None:
    response = await client.get("/orders/export", params={"placed_from": "0001-01-01T00:00:00+14:00"})
    assert_problem(response, 422, "validation")


async def streaming(database: Database) -> int:
    async with database.engine.connect() as connection:
        return await connection.scalar(text(f"SELECT count(*) {_STREAMING}")) or 0


def slow_client_of(service: str) -> httpx.AsyncClient:
    """A client with small buffers between itself and the service."""
    small = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)]
    return client_of(service, transport=httpx.AsyncHTTPTransport(socket_options=small))


async def in_use(client: httpx.AsyncClient) -> bool:
    return (
        'howdah_pool_connections{database="staff",state="in_use"} 0.0'
        not in (await client.get("/metrics")).text.splitlines()
    )


def connections_released(client: httpx.AsyncClient, database: Database) -> Callable[[], Awaitable[bool]]:
    async def is_released() -> bool:
        return await streaming(database) == 0 and not await in_use(client)

    return is_released


@pytest.fixture
def nothing_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be stored in temporary files, so that the rows wait for the client, and the connection with them."""
    monkeypatch.setattr(_spool, "MAX_STORED_BYTES", 0)


@pytest.mark.usefixtures("nothing_stored")
async def test_clients_that_disconnect_early_release_their_connections(
    service: str, client: httpx.AsyncClient, stored: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "howdah.requests")
    await make_orders(stored, await make_user(client), MANY_ORDERS)

    async def all_stream() -> bool:
        return await streaming(stored) == 3

    async with slow_client_of(service) as slow, AsyncExitStack() as opened:
        leaving = [await opened.enter_async_context(slow.stream("GET", "/orders/export")) for _ in range(3)]
        reading = [response.aiter_raw() for response in leaving]
        await asyncio.gather(*map(anext, reading))
        await until(all_stream)
        assert await in_use(client)
    await until(connections_released(client, stored))

    async def all_logged() -> bool:
        return sum("/orders/export" in record.getMessage() for record in caplog.records) >= 3

    await until(all_logged)
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


@pytest.mark.usefixtures("nothing_stored")
async def test_a_client_that_receives_nothing_is_disconnected_and_its_connection_released(
    service: str, client: httpx.AsyncClient, stored: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "SendLimits", lambda: SendLimits(window_seconds=0.5))
    await make_orders(stored, await make_user(client), MANY_ORDERS)

    async with slow_client_of(service) as slow, slow.stream("GET", "/orders/export") as response:
        parts = response.aiter_raw()
        await anext(parts)
        await until(connections_released(client, stored))
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
            await read(parts)


async def read(parts: AsyncIterator[bytes]) -> None:
    async for _ in parts:
        pass


@pytest.mark.usefixtures("nothing_stored")
async def test_an_error_during_an_export_closes_the_connection_without_the_final_chunk(
    service: str, client: httpx.AsyncClient, stored: Database
) -> None:
    """Control: the client accepts every complete export."""
    await make_orders(stored, await make_user(client), MANY_ORDERS)

    async with slow_client_of(service) as slow, slow.stream("GET", "/orders/export") as response:
        assert response.status_code == 200
        parts = response.aiter_raw()
        await anext(parts)

        async def is_terminated() -> bool:
            async with stored.engine.connect() as connection:
                count = await connection.scalar(text(f"SELECT count(pg_terminate_backend(pid)) {_STREAMING}"))
            return bool(count)

        await until(is_terminated)  # while PostgreSQL sends the next batch, the session is active and isn't found
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
            await read(parts)
    await until(connections_released(client, stored))
    assert len((await exported(client)).content.splitlines()) == MANY_ORDERS


_LOAD_ALL = """
import asyncio, sys
from howdah import Database
from howdah.fastapi import SendLimits, _spool, exports, unescape_formula
from shop.orders.repository import OrderRepository
from shop import tables

async def main():
    async with Database(sys.argv[1]) as database, database.session(read_only=True) as session:
        await OrderRepository(session).list(limit=1)
        print(open("/proc/self/status").read())
        orders = await OrderRepository(session).list(limit=None)
        print(len(orders), open("/proc/self/status").read())

asyncio.run(main())
"""


@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize(
    ("count", "exported_mib", "listed_mib"),
    [(40_000, 8, 40), pytest.param(200_000, 15, 150, marks=pytest.mark.slow)],
)
async def test_orders_are_exported_in_constant_memory(
    *,
    committed_url: str,
    committed_database: Database,
    tmp_path: Path,
    count: int,
    exported_mib: int,
    listed_mib: int,
) -> None:
    """Control: all orders in a list."""

    def peaks_mib(status: str) -> list[int]:
        return [int(kib) // 1024 for kib in re.findall(r"VmHWM:\s+(\d+) kB", status)]

    async with run_shop_serve(committed_url, tmp_path / "log") as (process, address), client_of(address) as client:
        status = Path(f"/proc/{process.pid}/status")
        user = await make_user(client)

        async def export() -> int:
            async with client.stream("GET", "/orders/export") as response:
                return sum([part.count(b"\n") async for part in response.aiter_raw()])

        await make_orders(committed_database, user, 3_000)
        assert await export() == 3_000
        [before] = peaks_mib(status.read_text())
        await make_orders(committed_database, user, count - 3_000)
        assert await export() == count
        [after] = peaks_mib(status.read_text())
        print(f"export: {before} MiB, then {after} MiB")
        assert after - before < exported_mib

    loading = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _LOAD_ALL, committed_url), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await loading.communicate()
    before, after = peaks_mib(output.decode())
    print(f"list: {before} MiB, then {after} MiB")
    assert after - before > listed_mib
