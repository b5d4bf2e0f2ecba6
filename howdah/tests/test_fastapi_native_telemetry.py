"""FastAPI's own telemetry in a configured application."""

from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.applications import FastAPI as Application
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from howdah import Database
from howdah.fastapi import configure_app, direct
from howdah.fastapi._fastapi_internals import IS_SUPPORTED

pytestmark = pytest.mark.skipif(
    not hasattr(Application(), "_native_telemetry"), reason="this version of FastAPI has no telemetry of its own"
)


def create_app(database_url: str, telemetry: Mapping[str, Any] | None = None) -> FastAPI:
    app = FastAPI(telemetry=telemetry)  # type: ignore[arg-type]  # a TypedDict
    configure_app(app, database=lambda: Database(database_url))

    @app.get("/hello")
    @direct
    async def say_hello() -> str:
        return "hello"

    return app


async def request_twice(app: FastAPI) -> None:
    async with app.router.lifespan_context(app) as state:

        async def run(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": {**(state or {})}}, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(run), base_url="http://test") as client:
            for _ in range(2):
                assert (await client.get("/hello")).json() == "hello"


async def test_a_provider_gets_a_span_of_each_request(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    await request_twice(create_app(database_url, {"tracer_provider": provider}))
    names = [span.name for span in exporter.get_finished_spans()]
    assert names.count("GET /hello") == 2
    warnings = [each for each in caplog.messages if "a provider of OpenTelemetry is set" in each]
    assert len(warnings) == (1 if IS_SUPPORTED else 0)


async def test_fastapi_looks_for_providers_at_startup_only(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(database_url)
    calls = 0

    def count(self: Any) -> bool:
        nonlocal calls
        calls += 1
        return False

    monkeypatch.setattr(type(app._native_telemetry), "enabled", count)
    await request_twice(app)
    assert calls == 1
