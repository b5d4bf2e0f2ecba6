"""`POST /users/bulk`."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from howdah import Database
from howdah.fastapi import MAX_LINE_BYTES, _spool
from shop_tests.support.factories import make_user, walk
from shop_tests.support.http_service import client_of, run_shop_serve
from shop_tests.support.problems import assert_problem
from shop_tests.support.waiting import until

NDJSON = {"Content-Type": "application/x-ndjson"}


def line(number: object, **values: Any) -> str:
    return json.dumps({"email": f"user{number}@example.com", "name": f"Ada {number}"} | values)


def lines(count: int) -> str:
    return "".join(f"{line(number)}\n" for number in range(count))


async def in_parts(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]
        await asyncio.sleep(0)  # so that the parts arrive separately


async def emails(client: httpx.AsyncClient) -> list[str]:
    return [user["email"] for page in await walk(client, "/users", limit=1000) for user in page]


async def test_an_array_of_users_is_inserted_with_defaults(client: httpx.AsyncClient) -> None:
    rows = [{"email": "ADA@example.com", "name": " Ada "}, {"email": "b@example.com", "name": "B", "country": "France"}]
    response = await client.post("/users/bulk", json=rows)
    assert (response.status_code, response.json()) == (201, {"created": 2})
    first, second = (await client.get("/users")).json()["items"]
    assert (first["email"], first["name"], first["country"], first["version"]) == ("ada@example.com", "Ada", None, 1)
    assert (second["email"], second["country"]) == ("b@example.com", "France")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("{0}\n{1}\n{2}\n", id="plain"),
        pytest.param("{0}\n{1}\n{2}", id="no newline at the end"),
        pytest.param("{0}\r\n{1}\r\n{2}\r\n", id="CRLF"),
        pytest.param("\ufeff{0}\n{1}\n{2}\n", id="a byte order mark"),
        pytest.param("\n{0}\n\n  \n{1}\n{2}\n\n", id="blank lines"),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_lines_are_read_with_any_line_ending_and_in_parts_of_any_size(
    client: httpx.AsyncClient, body: str, size: int
) -> None:
    written = body.format(line(0), line(1, name="Adélaïde"), line(2)).encode()
    response = await client.post("/users/bulk", content=in_parts(written, size), headers=NDJSON)
    assert (response.status_code, response.json()) == (201, {"created": 3})
    assert [user["name"] for user in (await client.get("/users")).json()["items"]] == ["Ada 0", "Adélaïde", "Ada 2"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"[]", "application/json"), (b"", "application/x-ndjson"), (b"\n \n", "application/x-ndjson; charset=utf-8")],
)
async def test_an_empty_body_creates_no_users(client: httpx.AsyncClient, body: bytes, kind: str) -> None:
    response = await client.post("/users/bulk", content=body, headers={"Content-Type": kind})
    assert (response.status_code, response.json()) == (201, {"created": 0})


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param("nonsense", id="not JSON"),
        pytest.param("[1]", id="not an object"),
        pytest.param(line(1, email="nobody"), id="an invalid address"),
        pytest.param(line(1, admin=True), id="an extra field"),
        pytest.param(line(1, name="a\x00"), id="NUL"),
        pytest.param(line(1, name="\ud800"), id="half a surrogate pair"),
        pytest.param("[" * 10_000, id="deep"),
        pytest.param(line(1, name="x" * MAX_LINE_BYTES), id="a long line"),
    ],
)
@pytest.mark.parametrize("before", [0, 1, 1_200])
async def test_an_invalid_line_fails_the_import_and_is_reported(
    client: httpx.AsyncClient, bad: str, before: int
) -> None:
    body = "".join(f"{line(f'before{n}')}\n" for n in range(before)) + f"\n{bad}\n{line('behind')}\n"
    response = await client.post("/users/bulk", content=body.encode(), headers=NDJSON)
    assert_problem(response, 422, "invalid-line", line=before + 2)
    assert await emails(client) == []


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b'[{"email": "a@example.com", "name": "A"}, {"email": "nobody", "name": "B"}]', 2),
        (b"{}", 1),
        (b"null", 1),
        (b"[{}]", 1),
        (b"[{},]", 1),
        (b"[NaN]", 1),
        (b"[\n\n{,", 3),
        (b"", 1),
        (b"\xff", 1),
        (b"[" * 300 + b"]" * 300, 1),
        (b"[" * 100_000, 1),
        (b'[{"email": "a@example.com", "name": ' + b"9" * 5_000 + b"}]", 1),
        (rb'[{"email": "a@example.com", "name": "\ud800"}]', 1),
    ],
)
async def test_an_invalid_array_is_rejected_and_the_line_is_reported(
    client: httpx.AsyncClient, body: bytes, place: int
) -> None:
    response = await client.post("/users/bulk", content=body, headers={"Content-Type": "application/json"})
    assert_problem(response, 422, "invalid-line", line=place)
    assert await emails(client) == []


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_a_body_of_another_media_type_is_rejected(client: httpx.AsyncClient, kind: str) -> None:
    response = await client.post("/users/bulk", content=lines(1).encode(), headers={"Content-Type": kind})
    assert_problem(response, 415, "unsupported-media-type")
    assert response.headers["accept-post"] == "application/json, application/x-ndjson"


@pytest.mark.parametrize("count", [3, 2_500])
async def test_the_line_with_a_used_address_is_reported(client: httpx.AsyncClient, count: int) -> None:
    await make_user(client, email="taken@example.com")
    body = "\n\n" + lines(count) + "\n" + line("", email="Taken@Example.com") + "\n" + line("behind")
    response = await client.post("/users/bulk", content=body.encode(), headers=NDJSON)
    assert_problem(response, 409, "unique-violation", constraint="uq_users_email", line=count + 4)
    assert "taken" not in response.text
    assert await emails(client) == ["taken@example.com"]


async def test_the_line_with_a_duplicate_address_is_reported(client: httpx.AsyncClient) -> None:
    rows = [{"email": f"user{n % 1_500}@example.com", "name": "Ada"} for n in range(1_600)]
    response = await client.post("/users/bulk", json=rows)
    assert_problem(response, 409, "unique-violation", constraint="uq_users_email", line=1_501)
    assert await emails(client) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
async def test_fifty_thousand_users_are_inserted_with_constant_memory(committed_url: str, tmp_path: Path) -> None:
    async with run_shop_serve(committed_url, tmp_path / "log") as (process, address), client_of(address) as client:
        status = Path(f"/proc/{process.pid}/status")

        def peak_kib() -> int:
            return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0])

        async def bulk(first: int, count: int) -> None:
            body = "".join(f"{line(number, country='x' * 100)}\n" for number in range(first, first + count)).encode()
            response = await client.post("/users/bulk", content=in_parts(body, 65_536), headers=NDJSON)
            assert response.json() == {"created": count}

        await bulk(0, 3_000)
        before = peak_kib()
        await bulk(3_000, 50_000)
        assert peak_kib() - before < 10_000  # an array is read completely and takes 50 MB


async def test_a_client_that_disconnects_during_its_upload_inserts_nothing_and_held_no_connection(
    client: httpx.AsyncClient, stored: Database
) -> None:
    url = client.base_url
    _, writer = await asyncio.open_connection(url.host, url.port)
    part, authorization = lines(5_000).encode(), client.headers["Authorization"].encode()
    writer.write(
        b"POST /users/bulk HTTP/1.1\r\nHost: shop\r\nContent-Type: application/x-ndjson\r\n"
        b"Transfer-Encoding: chunked\r\nIdempotency-Key: a\r\nAuthorization: %b\r\n\r\n"
        % authorization
        + f"{len(part):x}\r\n".encode()
        + part
        + b"\r\n"
    )
    await writer.drain()

    async def is_received() -> bool:
        return _spool.stored_bytes() > 0

    async def is_idle() -> bool:
        metrics = (await client.get("/metrics")).text.splitlines()
        return 'howdah_pool_connections{database="staff",state="in_use"} 0.0' in metrics

    await until(is_received)
    await until(is_idle)  # jobs use connections, too
    writer.close()

    async def is_logged() -> bool:
        return 'route="/users/bulk",status="499"' in (await client.get("/metrics")).text

    await until(is_logged)
    assert _spool.stored_bytes() == 0
    assert await emails(client) == []
    assert (await client.post("/users/bulk", json=[])).status_code == 201
