"""How the service does: figures for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from howdah import CoalescerStatus
from howdah.fastapi import database_from_state

router = APIRouter(tags=["health"])

_pool = Gauge("shop_pool_connections", "Connections of the pool", ["state"])

# The bounds that a CoalescerStatus may name; a trip is never larger, and hardly anybody waits for longer.
_SIZES: Final = [2**power for power in range(11)]
_SECONDS: Final = [2**power / 1000 for power in range(16)]


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    status = database_from_state(request).pool_status()
    _pool.labels("in_use").set(status.in_use)
    _pool.labels("idle").set(status.idle)
    _pool.labels("limit").set(status.size + status.max_overflow)
    shared = CollectorRegistry()
    state = request.state
    shared.register(
        _Shared(
            {
                "user": state.users.with_orders.status(),
                "order": state.orders.with_items.status(),
                "transfer": state.ledger.status(),
            }
        )
    )
    return Response(generate_latest() + generate_latest(shared), headers={"Content-Type": CONTENT_TYPE_LATEST})


class _Shared(Collector):
    """The trips that requests share."""

    def __init__(self, by_name: Mapping[str, CoalescerStatus]) -> None:
        self._by_name = by_name

    def collect(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily("shop_batch_waiters", "Requests that wait for a trip", labels=["queue"])
        under_way = GaugeMetricFamily("shop_batches_running", "Trips under way", labels=["queue"])
        refused = CounterMetricFamily("shop_batch_rejections", "Requests that found the queue full", labels=["queue"])
        sizes = HistogramMetricFamily("shop_batch_size", "How many items a trip carried", labels=["queue"])
        waits = HistogramMetricFamily(
            "shop_batch_wait_seconds", "How long requests waited for a trip", labels=["queue"]
        )
        for name, status in self._by_name.items():
            waiting.add_metric([name], status.waiting)
            under_way.add_metric([name], status.running)
            refused.add_metric([name], status.rejected)
            sizes.add_metric([name], _cumulated(_SIZES, status.batch_size_histogram), status.items)
            waits.add_metric([name], _cumulated(_SECONDS, status.wait_histogram), status.wait_seconds_sum)
        yield from (waiting, under_way, refused, sizes, waits)


def _cumulated(bounds: Sequence[float], counts: Mapping[Any, int]) -> list[tuple[str, float]]:
    """Buckets as Prometheus has them: each has what is in the smaller ones, too."""
    buckets = accumulate(counts.get(bound, 0) for bound in bounds)
    named = [(str(float(bound)), float(count)) for bound, count in zip(bounds, buckets, strict=True)]
    return [*named, ("+Inf", float(sum(counts.values())))]
