"""The layers of `configure_app` share one `send`, and write log entries and metrics by themselves."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import prometheus_client
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from howdah import Database
from howdah.fastapi import RateLimit, RateLimits, configure_app
from howdah.fastapi._shared_response import SharedResponse, share_response
from howdah.fastapi.in_progress import RequestsInProgress
from howdah.fastapi.load_limit import LoadLimit, LoadLimiter
from howdah.fastapi.metrics import RequestMetrics

# One message for all requests: an ASGI application may do this.
START: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
BODY: dict[str, Any] = {"type": "http.response.body", "body": b"hello"}


async def receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def request(app: ASGIApp, path: str) -> list[Message]:
    """The messages of the response."""
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1")],
        "client": ("127.0.0.1", 1),
        "scheme": "http",
    }
    await app(scope, receive, send)
    return messages


def build_app(*, mounted: FastAPI | None = None) -> FastAPI:
    """An application with an ASGI application that sends the same messages for each request."""
    app = FastAPI()

    async def constant(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send(BODY)

    app.mount("/constant", constant)
    if mounted is not None:
        app.mount("/mounted", mounted)

    @app.get("/broken")
    async def fail() -> None:
        raise LookupError

    limit = RateLimit(1_000)
    configure_app(
        app,
        database=lambda: Database("postgresql://nobody@127.0.0.1:1/nothing"),
        rate_limits=RateLimits(classes={"read": limit}, address=limit),
    )
    return app


def list_names(message: Message) -> list[str]:
    return [name.decode() for name, _ in message["headers"]]


async def test_a_message_that_an_application_sends_again_has_each_header_once() -> None:
    app = build_app()
    first, second = [(await request(app, "/constant/"))[0] for _ in range(2)]
    assert START == {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
    assert list_names(first) == list_names(second)
    assert len({*list_names(first)}) == len(list_names(first))
    assert list_names(first) == [
        *("content-type", "ratelimit-policy", "ratelimit", "x-content-type-options", "cache-control"),
        *("content-security-policy", "cross-origin-resource-policy", "referrer-policy", "x-request-id"),
    ]


async def test_layers_with_nothing_between_them_share_one_send(monkeypatch: pytest.MonkeyPatch) -> None:
    created = 0
    initialize = SharedResponse.__init__

    def count(self: SharedResponse, send: Send) -> None:
        nonlocal created
        created += 1
        initialize(self, send)

    monkeypatch.setattr(SharedResponse, "__init__", count)
    await request(build_app(), "/constant/")
    assert created == 1
    start, _ = await request(build_app(mounted=build_app()), "/mounted/constant/")
    names = list_names(start)
    assert [names.count(name) for name in ("x-request-id", "cache-control", "referrer-policy")] == [1, 1, 1]
    assert names.count("ratelimit") == 2  # both applications count the request


async def test_a_layer_behind_something_that_wraps_send_completes_the_response_before_it() -> None:
    calls: list[str] = []
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    outer = share_response(send)
    outer.before_start.append(lambda response: calls.append(f"outer {response.status}"))

    async def replace_status(message: Message) -> None:
        if message["type"] == "http.response.start":
            calls.append("between")
            message = {**message, "status": 201}
        await outer(message)

    inner = share_response(replace_status)
    inner.before_start.append(lambda response: calls.append(f"inner {response.status}"))
    assert share_response(inner) is inner
    await inner(START)
    await inner(BODY)
    assert calls == ["inner 200", "between", "outer 201"]
    assert (inner.status, outer.status, messages[0]["status"]) == (200, 201, 201)
    assert inner.is_complete
    assert outer.is_complete


async def test_the_500_of_the_request_log_has_no_headers_of_inner_layers() -> None:
    start, body = await request(build_app(), "/broken")
    assert start["status"] == 500
    assert "internal-error" in body["body"].decode()
    names = list_names(start)
    assert "ratelimit" not in names
    assert [names.count(name) for name in ("x-request-id", "cache-control", "x-content-type-options")] == [1, 1, 1]


def expose(registry: CollectorRegistry) -> str:
    """The metrics, without the times at which the series began."""
    return re.sub(r"(_created\{.*\}) .*", r"\1 T", generate_latest(registry).decode())


@pytest.mark.parametrize("has_created", [True, False])
def test_the_metrics_of_requests_are_those_of_prometheus_client(has_created: bool) -> None:
    if not has_created:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        registry = CollectorRegistry()
        counter = Counter(
            "howdah_requests_total", "Requests by route and status", ["method", "route", "status"], registry=registry
        )
        histogram = Histogram(
            "howdah_request_seconds", "Time until the response was sent", ["method", "route"], registry=registry
        )
        metrics = RequestMetrics()
        assert expose(metrics.registry) == expose(registry)
        for status in (200, 404, None):
            for seconds in (0.0, 0.001, 0.005, 0.0051, 0.3, 10.0, 11.5):
                metrics.record("GET", "/users/{id}", status, seconds)
                counter.labels("GET", "/users/{id}", status or "none").inc()
                histogram.labels("GET", "/users/{id}").observe(seconds)
        metrics.record("PROPFIND", "/users/{id}", 200, 0.1)
        counter.labels("any", "/users/{id}", 200).inc()
        histogram.labels("any", "/users/{id}").observe(0.1)
        assert expose(metrics.registry) == expose(registry)
        assert ("_created" in expose(registry)) is has_created
    finally:
        prometheus_client.enable_created_metrics()  # type: ignore[no-untyped-call]


ENTRIES = """
import asyncio, sys
import structlog
from fastapi import FastAPI
from opentelemetry import trace
from howdah import Database
from howdah.fastapi import configure_app, request_log
from howdah.logs import configure_logging

written = []
write_info = request_log.write_info

def write(logger, entry):
    written.append(write_info(logger, entry))
    return written[-1]

request_log.write_info = write
configure_logging("json")

async def respond(scope, receive, send):
    request_log.log_principal("user:1")
    structlog.contextvars.bind_contextvars(tenant={"ö": 2**70})
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})

async def ignore(message): ...

app = FastAPI()
app.mount("/", respond)
configure_app(app, database=lambda: Database("postgresql://nobody@127.0.0.1:1/nothing"))

async def main():
    context = trace.SpanContext(1, 2, is_remote=False)
    for path in ("/items", "/" + "x" * 300, "/half\\ud800"):
        scope = {"type": "http", "method": "GET", "path": path, "headers": [(b"x-request-id", b"mine")]}
        await app(dict(scope), None, ignore)
        with trace.use_span(trace.NonRecordingSpan(context)):
            await app(dict(scope), None, ignore)

asyncio.run(main())
processors = structlog.get_config()["processors"]
processors.insert(0, lambda logger, method, event: event)
asyncio.run(main())
processors.insert(0, lambda logger, method, event: {**event, "added": True})
asyncio.run(main())
print(written)
"""


def test_the_entry_of_a_request_is_the_same_if_structlog_makes_it() -> None:
    command = [sys.executable, "-c", ENTRIES]
    finished = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    assert json.loads(finished.stdout.lower()) == [True] * 6 + [False] * 12  # the control
    lines = re.sub(r'"(timestamp|ms)":("[^"]*"|[0-9.]+)', r'"\1":0', finished.stderr).splitlines()
    assert len(lines) == 18
    assert lines[:6] == lines[6:12]
    entries = [json.loads(line) for line in lines]
    assert entries[0] == {
        "method": "GET",
        "path": "/items",
        "status": 200,
        "ms": 0,
        "event": "request",
        "request_id": "mine",
        "principal": "user:1",
        "tenant": entries[0]["tenant"],
        "logger": "howdah.requests",
        "level": "info",
        "timestamp": 0,
    }
    assert (entries[1]["trace_id"], entries[1]["span_id"]) == ("0" * 31 + "1", "0" * 15 + "2")
    assert [entry["added"] for entry in entries[12:]] == [True] * 6


async def test_the_task_of_a_request_is_found_in_each_loop_and_thread() -> None:
    requests = RequestsInProgress(LoadLimiter(LoadLimit()), cancel_abandoned=True)

    async def check() -> None:
        for _ in range(2):
            assert requests._find_task() is asyncio.current_task()
            assert requests._loop is asyncio.get_running_loop()

    def check_twice() -> None:
        for _ in range(2):  # a new loop in the same thread
            asyncio.run(check())

    await check()
    with ThreadPoolExecutor(1) as pool:  # it blocks this task, which stays the current one of its loop
        pool.submit(check_twice).result(30)
    await check()
