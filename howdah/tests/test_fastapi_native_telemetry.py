"""FastAPI's own telemetry in a configured application."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import httpx
import pytest
from fastapi import APIRouter, FastAPI, HTTPException
from fastapi.applications import FastAPI as Application
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import BaseModel

from howdah import Database, NotFound
from howdah.fastapi import configure_app, direct
from howdah.fastapi._fastapi_internals import IS_SUPPORTED
from howdah.fastapi.direct_routes import DirectRoute

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
    warnings = [each for each in caplog.messages if "a tracer provider of OpenTelemetry is set" in each]
    assert len(warnings) == (1 if IS_SUPPORTED else 0)


class Telemetry:
    """Providers that keep everything in memory."""

    def __init__(self) -> None:
        self._spans, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        self._logs = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
        self._tracer_provider, self._logger_provider = TracerProvider(), LoggerProvider()
        self._tracer_provider.add_span_processor(SimpleSpanProcessor(self._spans))
        self._logger_provider.add_log_record_processor(SimpleLogRecordProcessor(self._logs))

    def configuration(self) -> dict[str, Any]:
        return {
            "operation_spans": False,
            "tracer_provider": self._tracer_provider,
            "meter_provider": MeterProvider([self._reader]),
            "logger_provider": self._logger_provider,
        }

    def describe(self) -> list[Any]:
        """The spans, the log entries and the metrics, without times and ids."""
        spans: list[Any] = [
            (each.name, each.kind, dict(each.attributes or {}), each.status.status_code, len(each.events))
            for each in self._spans.get_finished_spans()
        ]
        logs = [
            (record.event_name, record.severity_text, dict(record.attributes or {}), bool(record.span_id))
            for record in (each.log_record for each in self._logs.get_finished_logs())
        ]
        metrics_data = self._reader.get_metrics_data()
        assert metrics_data is not None
        metrics = [
            (metric.name, dict(cast(Any, point.attributes)), getattr(point, "count", None))
            for resource in metrics_data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        ]
        for _, _, attributes, _ in logs:  # the text of an exception has the lines of the code that called the endpoint
            attributes.pop("exception.stacktrace", None)
        return [spans, logs, metrics]


class Item(BaseModel):
    size: int


def create_items_app(database_url: str, telemetry: Telemetry, mark: Callable[[Any], Any]) -> FastAPI:
    app = FastAPI(telemetry=telemetry.configuration())  # type: ignore[arg-type]  # a TypedDict
    configure_app(app, database=lambda: Database(database_url), request_log=False)
    router = APIRouter(prefix="/items")

    @router.post("/{number}")
    @mark
    async def add_item(number: int, item: Item) -> Item:
        match number:
            case 1:
                raise HTTPException(status_code=404)
            case 2:
                raise NotFound(Item, [number])
            case 3:
                raise LookupError("a bug")
        return item

    app.include_router(router, prefix="/v1")
    return app


@pytest.mark.skipif(not IS_SUPPORTED, reason="this version of FastAPI has no direct routes")
async def test_without_operation_spans_a_direct_route_has_the_telemetry_of_fastapi(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[str] = []
    begin = DirectRoute.begin

    def count(self: DirectRoute, scope: Any) -> None:
        served.append(scope["path"])
        begin(self, scope)

    monkeypatch.setattr(DirectRoute, "begin", count)
    requests: list[tuple[str, bytes]] = [
        *((f"/v1/items/{number}?page=2", b'{"size": 1}') for number in range(4)),
        ("/v1/items/a", b'{"size": 1}'),
        ("/v1/items/0", b'{"size": "b"}'),
        ("/v1/items/0", b"{"),
        ("/v1/others", b"{}"),
    ]
    descriptions, statuses = [], []
    for mark in (direct, lambda endpoint: endpoint):
        telemetry = Telemetry()
        app = create_items_app(database_url, telemetry, mark)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            headers = {"Content-Type": "application/json"}
            responses = [await client.post(path, content=body, headers=headers) for path, body in requests]
        statuses.append([each.status_code for each in responses])
        descriptions.append(telemetry.describe())
        assert len(served) == 7  # none by the second application
    assert statuses == [[200, 404, 404, 500, 422, 422, 422, 404]] * 2
    assert descriptions[0] == descriptions[1]
    spans, logs, metrics = descriptions[0]
    assert [name for name, *_ in spans] == ["POST /v1/items/{number}"] * 7 + ["POST"]
    assert len(logs) == 4  # three failed validations, and an unexpected error
    assert metrics


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
