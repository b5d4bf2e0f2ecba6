"""`/metrics` for Prometheus: the requests, the pools, the batches and the jobs of one application."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Sequence
from http import HTTPMethod
from typing import Any, Final

from fastapi import APIRouter, HTTPException, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from howdah._batch_figures import CoalescerStatus
from howdah.fastapi.access import UNAUTHENTICATED
from howdah.fastapi.disconnects import get_logged_status
from howdah.fastapi.in_progress import RequestsInProgress
from howdah.fastapi.jobs import JobRunner
from howdah.fastapi.path_methods import ROUTE_PATH_KEY, get_route_path
from howdah.fastapi.rate_limits import RateLimiter
from howdah.fastapi.resources import Opened, find_opened
from howdah.metrics import BatchCollector, LogCollector, PoolCollector
from howdah.serving._figures import Family, Figures, sum_figures
from howdah.serving._scope_keys import FIGURES_KEY, WORKERS_KEY

# Other methods have the label `any`. A client can send any text as the method, and each would be a new time series.
_METHODS: Final = frozenset(HTTPMethod)

_UNMATCHED: Final = "unmatched"


class RequestMetrics:
    """The metrics of the requests of one application, in a registry of its own.

    The default registry of prometheus_client is for the whole process, and a process may have several applications.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "howdah_requests_total",
            "Requests by route and status",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "howdah_request_seconds", "Time until the response was sent", ["method", "route"], registry=self.registry
        )
        # The time series of the labels, because `labels` takes longer than the rest.
        self._series: dict[tuple[str, str, int | None], tuple[Counter, Histogram]] = {}

    def record(self, *, method: str, route: str, status: int | None, seconds: float) -> None:
        """Count one request. The status is None if there was no response, for example because the client has gone."""
        if route == _UNMATCHED or method not in _METHODS:
            method = "any"
        series = self._series.get((method, route, status))
        if series is None:
            series = self._requests.labels(method, route, status or "none"), self._seconds.labels(method, route)
            self._series[method, route, status] = series
        series[0].inc()
        series[1].observe(seconds)


class RequestMetricsMiddleware:
    """ASGI middleware that records each HTTP request."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, and record the request even if it fails."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        application, path = scope["app"], get_route_path(scope)  # a mounted application changes both in the same scope
        status: int | None = None
        started = time.perf_counter()

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception:
            status = status or 500  # Starlette sends the response outside of this middleware
            raise
        finally:
            self._metrics.record(
                method=scope["method"],
                route=_find_route(application, path, scope),
                status=get_logged_status(scope, status),
                seconds=time.perf_counter() - started,
            )


class ProcessMetrics:
    """All metrics of this process: the default registry, and those of one application."""

    def __init__(self, in_progress: RequestsInProgress, rate_limiter: RateLimiter | None = None) -> None:
        self.requests = RequestMetrics()
        self._in_progress = in_progress
        self._rate_limiter = rate_limiter
        self.opened: Opened | None = None
        """What the application has opened, if it is the outermost one of this process."""

    def list_registries(self, opened: Opened) -> list[CollectorRegistry]:
        current = CollectorRegistry()
        current.register(PoolCollector(opened.databases))
        current.register(BatchCollector(_find_queues(opened)))
        current.register(LogCollector())
        current.register(_LoadCollector(self._in_progress))
        if self._rate_limiter is not None:
            current.register(_RateLimitCollector(self._rate_limiter))
        if opened.jobs:
            current.register(_JobCollector(opened.jobs))
        return [REGISTRY, self.requests.registry, current]

    def read(self) -> Figures:
        """The metrics, for the sum over all worker processes."""
        assert self.opened is not None
        return [
            Family(family.name, family.type, family.documentation, [each[:3] for each in family.samples])
            for registry in self.list_registries(self.opened)
            for family in registry.collect()
        ]


def build_metrics_router(process: ProcessMetrics) -> APIRouter:
    """`/metrics`: those of this process, or the sums of all worker processes of `howdah.serving.serve`."""
    router = APIRouter(tags=["health"], dependencies=[UNAUTHENTICATED])

    @router.get(
        "/metrics",
        summary="Metrics for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def get_metrics(request: Request) -> Response:
        opened = find_opened(request, "the database")
        state = request.scope["state"]
        registries = process.list_registries(opened)
        # A mounted application has metrics of its own, which the server doesn't know.
        if state.get(FIGURES_KEY) is process and (workers := state.get(WORKERS_KEY)) is not None:
            try:
                registries = [_as_registry(sum_figures(await workers.collect()))]
            except TimeoutError as error:
                raise HTTPException(
                    503, "the metrics of the other worker processes can't be read: try again later"
                ) from error
        body = b"".join(map(generate_latest, registries))
        return Response(body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    return router


def _as_registry(figures: Figures) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_FigureCollector(figures))
    return registry


class _FigureCollector(Collector):
    """The summed metrics of several processes."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        for family in self._figures:
            metric = Metric(family.name, family.help, family.kind)
            for name, labels, value in family.samples:
                metric.add_sample(name, labels, value)
            yield metric


class _LoadCollector(Collector):
    """The requests in progress, and those that were not answered."""

    def __init__(self, in_progress: RequestsInProgress) -> None:
        self._in_progress = in_progress

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "howdah_requests_abandoned", "Requests that ended early without a client", self._in_progress.abandoned
        )
        if self._in_progress.limiter is None:
            return
        status = self._in_progress.limiter.status()
        yield GaugeMetricFamily("howdah_requests_in_progress", "Requests counted by the limit", status.in_progress)
        yield GaugeMetricFamily("howdah_requests_limit", "The limit of requests in progress", status.limit)
        yield GaugeMetricFamily("howdah_requests_waiting", "Requests that wait to be admitted", status.waiting)
        yield CounterMetricFamily("howdah_requests_rejected", "Requests rejected by the limits", status.rejected)


class _RateLimitCollector(Collector):
    """The requests that exceeded a rate limit, and the clients that are counted."""

    def __init__(self, limiter: RateLimiter) -> None:
        self._limiter = limiter

    def collect(self) -> Iterator[Metric]:
        rejected = CounterMetricFamily(
            "howdah_requests_rate_limited", "Requests rejected by a rate limit", labels=["limit"]
        )
        for name in self._limiter.list_names():
            rejected.add_metric([name], self._limiter.rejected[name])
        yield rejected
        yield GaugeMetricFamily(
            "howdah_rate_limit_entries", "Principals and addresses in memory", self._limiter.count_entries()
        )


class _JobCollector(Collector):
    """The runs of the application's jobs."""

    def __init__(self, runners: Sequence[JobRunner]) -> None:
        self._runners = runners

    def collect(self) -> Iterator[Metric]:
        runs = CounterMetricFamily("howdah_job_runs", "Runs of the jobs that have ended", labels=["job", "outcome"])
        last_success = GaugeMetricFamily(
            "howdah_job_last_success_timestamp_seconds", "The end of the last successful run", labels=["job"]
        )
        for runner in self._runners:
            runs.add_metric([runner.name, "success"], runner.successes)
            runs.add_metric([runner.name, "failure"], runner.failures)
            if runner.last_success is not None:
                last_success.add_metric([runner.name], runner.last_success)
        yield from (runs, last_success)


def _find_queues(opened: Opened) -> dict[str, Any]:
    """The resources that batch requests, by their names."""
    return {opened.names[key]: value for key, value in opened.values.items() if _has_status(value)}


def _has_status(value: Any) -> bool:
    """Whether it batches requests. An object of the application may have another `status`, which may raise."""
    read_status = getattr(type(value), "status", None)
    if not callable(read_status) or inspect.iscoroutinefunction(read_status):
        return False
    try:
        return isinstance(read_status(value), CoalescerStatus)
    except Exception:
        return False


def _find_route(application: Any, request_path: str, scope: Scope) -> str:
    """The path template of the route, because each path with another id would be a new time series."""
    route = scope.get("route")
    # In newer versions of FastAPI this context has the path with the prefixes of `include_router`.
    included = scope.get("fastapi", {}).get("effective_route_context")
    if getattr(included, "original_route", None) is route and route is not None:
        path = getattr(included, "path", None)
    else:
        path = getattr(route, "path", None) or scope.get(ROUTE_PATH_KEY)
    if scope["app"] is application:
        return path or _UNMATCHED
    # A mounted application has handled the request, and the route's path begins at the mount.
    mounts = (each for each in application.routes if isinstance(each, Mount))
    mount = next((each.path for each in mounts if each.path_regex.match(request_path)), "")
    return f"{mount}{path}" if path else mount or _UNMATCHED
