"""`/metrics` for Prometheus: the requests, the pools, the batches and the jobs of one application."""

from __future__ import annotations

import inspect
import math
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from http import HTTPMethod
from itertools import accumulate
from typing import Any, Final

from fastapi import APIRouter, HTTPException, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.routing import Mount
from starlette.types import Scope

from howdah._batch_figures import CoalescerStatus
from howdah.fastapi.access import UNAUTHENTICATED
from howdah.fastapi.in_progress import RequestsInProgress
from howdah.fastapi.jobs import JobRunner
from howdah.fastapi.path_methods import ROUTE_PATH_KEY
from howdah.fastapi.rate_limits import RateLimiter
from howdah.fastapi.resources import Opened, find_opened
from howdah.metrics import BatchCollector, LogCollector, PoolCollector
from howdah.serving._metrics import Family, Metrics, sum_metrics
from howdah.serving._scope_keys import METRICS_KEY, WORKERS_KEY

# Other methods have the label `any`. A client can send any text as the method, and each would be a new time series.
_METHODS: Final = frozenset(HTTPMethod)

_UNMATCHED: Final = "unmatched"

# The upper bounds of the durations, in seconds. The last one is infinity.
_BOUNDS: Final = Histogram.DEFAULT_BUCKETS
_BOUND_NAMES: Final = ["+Inf" if bound == math.inf else str(bound) for bound in _BOUNDS]
_ANY_COUNTER: Final = Counter("howdah", "Shows which samples prometheus_client exports", registry=None)


class RequestMetrics:
    """The metrics of the requests of one application, in a registry of its own.

    The default registry of prometheus_client is for the whole process, and a process may have several applications.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_RequestCollector(self))
        self.counts: dict[tuple[str, str, int | None], _Count] = {}
        """The requests by method, route and status."""
        self.times: dict[tuple[str, str], _Times] = {}
        """The durations of the requests by method and route."""

    def record_request(self, application: Any, path: str, scope: Scope, status: int | None, seconds: float) -> None:
        """Count a request that has ended. `application` and `path` are those of its scope at its start.

        A mounted application changes both in the same scope.
        """
        route: str | None = scope.get(ROUTE_PATH_KEY) if scope["app"] is application else None
        self.record(scope["method"], _find_route(application, path, scope) if route is None else route, status, seconds)

    def record(self, method: str, route: str, status: int | None, seconds: float) -> None:
        """Count one request. The status is None if there was no response, for example because the client has gone."""
        if route == _UNMATCHED or method not in _METHODS:
            method = "any"
        count = self.counts.get((method, route, status))
        if count is None:
            times = self.times.get((method, route))
            if times is None:
                times = self.times[method, route] = _Times()
            count = self.counts[method, route, status] = _Count(times)
        count.requests += 1
        count.times.buckets[bisect_left(_BOUNDS, seconds)] += 1
        count.times.seconds += seconds


class _Times:
    """The durations of the requests of one method and route: their number in each bucket, and their sum."""

    __slots__ = ("buckets", "created", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * len(_BOUNDS)
        self.seconds = 0.0
        self.created = time.time()


class _Count:
    """The number of the requests of one method, route and status."""

    __slots__ = ("created", "requests", "times")

    def __init__(self, times: _Times) -> None:
        self.requests = 0
        self.times = times
        self.created = time.time()


class _RequestCollector(Collector):
    """The counts as metrics.

    The counters of prometheus_client take a lock for each number, so they take three times as long. Here only one
    thread counts.
    """

    def __init__(self, metrics: RequestMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        labels = ["method", "route"]
        requests = CounterMetricFamily("howdah_requests", "Requests by route and status", labels=[*labels, "status"])
        seconds = HistogramMetricFamily("howdah_request_seconds", "Time until the response was sent", labels=labels)
        has_created = _exports_created()
        for (method, route, status), count in self._metrics.counts.items():
            values = [method, route, str(status or "none")]
            requests.add_metric(values, count.requests, created=count.created if has_created else None)
        for (method, route), times in self._metrics.times.items():
            values = [method, route]
            seconds.add_metric(values, [*zip(_BOUND_NAMES, accumulate(times.buckets), strict=True)], times.seconds)
            if has_created:
                named = dict(zip(labels, values, strict=True))
                seconds.add_sample("howdah_request_seconds_created", named, times.created)
        yield from (requests, seconds)


def _exports_created() -> bool:
    """Whether prometheus_client exports the start of each time series. A service may turn this off."""
    return any(sample.name.endswith("_created") for metric in _ANY_COUNTER.collect() for sample in metric.samples)


class ProcessMetrics:
    """All metrics of this process: the default registry, and those of one application."""

    def __init__(self, in_progress: RequestsInProgress, rate_limiter: RateLimiter | None) -> None:
        self.requests = RequestMetrics()
        self._in_progress = in_progress
        self._rate_limiter = rate_limiter
        self.opened: Opened | None = None
        """The open objects of the application, if it is the outermost one of this process."""

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

    def read(self) -> Metrics:
        """The metrics, for the sum over all worker processes. The values of a collector may be any numbers."""
        assert self.opened is not None
        return [
            Family(
                *(family.name, family.type, family.documentation),
                [(name, labels, float(value)) for name, labels, value, *_ in family.samples],
            )
            for registry in self.list_registries(self.opened)
            for family in registry.collect()
        ]


def build_metrics_router(process: ProcessMetrics) -> APIRouter:
    """`/metrics`: the metrics of this process, or their sums over all worker processes of `howdah.serving.serve`."""
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
        if state.get(METRICS_KEY) is process and (workers := state.get(WORKERS_KEY)) is not None:
            try:
                registries = [_as_registry(sum_metrics(await workers.collect()))]
            except TimeoutError as error:
                raise HTTPException(
                    503, "the metrics of the other worker processes can't be read: try again later"
                ) from error
        body = b"".join(map(generate_latest, registries))
        return Response(body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    return router


def _as_registry(metrics: Metrics) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_SummedMetricsCollector(metrics))
    return registry


class _SummedMetricsCollector(Collector):
    """The summed metrics of several processes."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        for family in self._metrics:
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
