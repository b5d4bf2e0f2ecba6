"""Request ids, and the log entries of requests."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest

from howdah import Database
from howdah.fastapi import PUBLIC
from shop_tests.support.http_service import client_of, create_service, http_client, run_shop_serve
from shop_tests.support.problems import assert_problem


async def test_a_valid_request_id_is_returned(client: httpx.AsyncClient) -> None:
    for request_id in ("abc-1.2_3:4", str(uuid4()), "x" * 128):
        response = await client.get("/healthz", headers={"X-Request-ID": request_id})
        assert response.headers.get_list("x-request-id") == [request_id]


@pytest.mark.parametrize("request_id", [None, "", "x" * 129, "two words", '{"a": 1}', "é", "a\tb", "$(reboot)"])
async def test_an_invalid_or_missing_request_id_is_replaced(client: httpx.AsyncClient, request_id: str | None) -> None:
    headers = [] if request_id is None else [(b"X-Request-ID", request_id.encode("latin-1"))]
    response = await client.get("/healthz", headers=headers)
    [generated] = response.headers.get_list("x-request-id")
    assert UUID(generated).version == 7


async def test_error_responses_have_the_request_id(client: httpx.AsyncClient) -> None:
    for path in ("/users/1", "/nothing/here", f"/users/{uuid4()}", "/users?limit=0"):
        assert (await client.get(path, headers={"X-Request-ID": "mine"})).headers["x-request-id"] == "mine"


async def test_an_unexpected_error_is_a_problem_response_and_a_traceback_in_the_log(
    committed_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_service(committed_url)

    @app.get("/broken", dependencies=[PUBLIC])
    async def broken() -> None:
        raise LookupError("a secret")

    async with http_client(app) as client:
        answer = await client.get("/broken", headers={"X-Request-ID": "mine"})
        metrics = (await client.get("/metrics")).text
    assert_problem(answer, 500, "internal-error")
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] == "mine"
    assert 'howdah_requests_total{method="GET",route="/broken",status="500"}' in metrics
    [logged] = [json.loads(record.message) for record in caplog.records if record.levelno == logging.ERROR]
    assert (logged["event"], logged["request_id"]) == ("unexpected error", "mine")
    assert "LookupError: a secret" in logged["exception"]


async def test_each_request_is_logged_as_a_line_of_json_with_its_request_id(
    committed_url: str, committed_database: Database, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    async with run_shop_serve(committed_url, log) as (process, address), client_of(address) as client:
        await client.get("/users?limit=0", headers={"X-Request-ID": "one"})
        await client.post("/users", json={"email": "ada@example.com", "name": "Ada"}, headers={"X-Request-ID": "two"})
        process.terminate()
        await process.wait()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"event", "level", "timestamp", "logger"} <= set.intersection(*(set(line) for line in lines))
    requests = {line["request_id"]: line for line in lines if line["event"] == "request"}
    assert {name: requests["one"][name] for name in ("method", "path", "status", "level")} == {
        "method": "GET",
        "path": "/users",
        "status": 422,
        "level": "info",
    }
    assert (requests["two"]["method"], requests["two"]["status"]) == ("POST", 201)
    assert requests["two"]["ms"] > 0
    assert "ada@example.com" not in log.read_text()
