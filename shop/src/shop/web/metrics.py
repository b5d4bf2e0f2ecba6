"""`/metrics`: the connection pool and the batches, for Prometheus. `shop.web.observability` counts the requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, TypeAlias

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from howdah import CoalescerStatus
from howdah.fastapi import database_from_state

GetQueues: TypeAlias = Callable[[Request], Mapping[str, CoalescerStatus]]
"""Returns the status of each coalescer of the application, by the value of the label `queue`."""

_pool = Gauge("shop_pool_connections", "Connections of the pool", ["state"])

# The bounds of the buckets that a `CoalescerStatus` has: 1 to 1,024 items, and 1 ms to 33 s.
_SIZES: Final = [2**power for power in range(11)]
_SECONDS: Final = [2**power / 1000 for power in range(16)]


def metrics_router(get_queues: GetQueues) -> APIRouter:
    """`/metrics`, with the metrics of these queues."""
    router = APIRouter(tags=["health"])

    @router.get(
        "/metrics",
        summary="Metrics for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics(request: Request) -> Response:
        status = database_from_state(request).pool_status()
        _pool.labels("in_use").set(status.in_use)
        _pool.labels("idle").set(status.idle)
        _pool.labels("limit").set(status.size + status.max_overflow)
        # The default registry is for the whole process, and a process may have several applications. So the metrics of
        # this application's queues are in their own registry.
        registry = CollectorRegistry()
        registry.register(_QueueCollector(get_queues(request)))
        return Response(generate_latest() + generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return router


class _QueueCollector(Collector):
    """The metrics of request batching, with the label `queue`."""

    def __init__(self, status_by_queue: Mapping[str, CoalescerStatus]) -> None:
        self._status_by_queue = status_by_queue

    def collect(self) -> Iterator[Metric]:
        """The metrics, each with a value for every queue. prometheus_client calls this method."""
        labels = ["queue"]
        waiters = GaugeMetricFamily("shop_batch_waiters", "Requests that wait for a batch", labels=labels)
        running = GaugeMetricFamily("shop_batches_running", "Batches that are running", labels=labels)
        rejections = CounterMetricFamily(
            "shop_batch_rejections", "Requests that were rejected because the queue was full", labels=labels
        )
        sizes = HistogramMetricFamily("shop_batch_size", "Items per batch", labels=labels)
        waits = HistogramMetricFamily("shop_batch_wait_seconds", "Time that requests waited for a batch", labels=labels)
        for queue, status in self._status_by_queue.items():
            waiters.add_metric([queue], status.waiting)
            running.add_metric([queue], status.running)
            rejections.add_metric([queue], status.rejected)
            sizes.add_metric([queue], _to_buckets(_SIZES, status.batch_size_histogram), status.items)
            waits.add_metric([queue], _to_buckets(_SECONDS, status.wait_histogram), status.wait_seconds_sum)
        yield from (waiters, running, rejections, sizes, waits)


def _to_buckets(bounds: Sequence[float], counts: Mapping[Any, int]) -> list[tuple[str, float]]:
    """Prometheus's cumulative buckets: each one includes the counts of the smaller ones."""
    totals = accumulate(counts.get(bound, 0) for bound in bounds)
    buckets = [(str(float(bound)), float(total)) for bound, total in zip(bounds, totals, strict=True)]
    return [*buckets, ("+Inf", float(sum(counts.values())))]
