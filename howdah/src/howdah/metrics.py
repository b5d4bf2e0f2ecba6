"""Collectors for prometheus_client: the connection pool and the batches.

Register them with a registry of yours. `howdah.fastapi.configure_app` does this for `/metrics`.

registry.register(PoolCollector({"main": database}))
registry.register(BatchCollector({"order": order_reader}))
registry.register(LogCollector())
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from howdah._batch_figures import CoalescerStatus
from howdah._log_writer import dropped_lines
from howdah.database import Database

__all__ = ["BatchCollector", "LogCollector", "PoolCollector"]

# The bounds of the buckets that a `CoalescerStatus` has: 1 to 1,024 items, and 1 ms to 33 s.
_SIZES: Final = [2**power for power in range(11)]
_SECONDS: Final = [2**power / 1000 for power in range(16)]


class _HasStatus(Protocol):
    """A `Coalescer`, a `JsonViewReader`, or an object of yours that has one."""

    def status(self) -> CoalescerStatus: ...


class PoolCollector(Collector):
    """The connections of each pool. The keys of `databases` are the values of the label `database`."""

    def __init__(self, databases: Mapping[str, Database]) -> None:
        self._databases = databases

    def collect(self) -> Iterator[Metric]:
        """The current metrics. prometheus_client calls this method."""
        labels = ["database", "state"]
        connections = GaugeMetricFamily("howdah_pool_connections", "Connections of the pool", labels=labels)
        waiters = GaugeMetricFamily("howdah_pool_waiters", "Tasks that wait for a connection", labels=["database"])
        for name, database in self._databases.items():
            status = database.pool_status()
            waiters.add_metric([name], status.waiting)
            connections.add_metric([name, "in_use"], status.in_use)
            connections.add_metric([name, "idle"], status.idle)
            connections.add_metric([name, "limit"], status.size + status.max_overflow)
        yield from (connections, waiters)


class BatchCollector(Collector):
    """The metrics of request batching, of coalescers and view readers.

    The keys of `queues` are the values of the label `queue`.
    """

    def __init__(self, queues: Mapping[str, _HasStatus]) -> None:
        self._queues = queues

    def collect(self) -> Iterator[Metric]:
        """The metrics, each with a value for every queue. prometheus_client calls this method."""
        labels = ["queue"]
        waiters = GaugeMetricFamily("howdah_batch_waiters", "Requests that wait for a batch", labels=labels)
        running = GaugeMetricFamily("howdah_batches_running", "Batches that are running", labels=labels)
        rejections = CounterMetricFamily(
            "howdah_batch_rejections", "Requests that were rejected because the queue was full", labels=labels
        )
        timeouts = CounterMetricFamily(
            "howdah_batch_timeouts", "Requests that had no result within submit_timeout", labels=labels
        )
        sizes = HistogramMetricFamily("howdah_batch_size", "Items per batch", labels=labels)
        waits = HistogramMetricFamily(
            "howdah_batch_wait_seconds", "Time that requests waited for a batch", labels=labels
        )
        for queue, batched in self._queues.items():
            status = batched.status()
            waiters.add_metric([queue], status.waiting)
            running.add_metric([queue], status.running)
            rejections.add_metric([queue], status.rejected)
            timeouts.add_metric([queue], status.expired)
            sizes.add_metric([queue], _to_buckets(_SIZES, status.batch_size_histogram), status.items)
            waits.add_metric([queue], _to_buckets(_SECONDS, status.wait_histogram), status.wait_seconds_sum)
        yield from (waiters, running, rejections, timeouts, sizes, waits)


class LogCollector(Collector):
    """The lines of the log that were dropped, in this process. See `howdah.logs.configure_logging`."""

    def collect(self) -> Iterator[Metric]:
        """The current metric. prometheus_client calls this method."""
        dropped = CounterMetricFamily("howdah_log_lines_dropped", "Lines of the log that were dropped")
        dropped.add_metric([], dropped_lines())
        yield dropped


def _to_buckets(bounds: Sequence[float], counts: Mapping[Any, int]) -> list[tuple[str, float]]:
    """Prometheus's cumulative buckets: each one includes the counts of the smaller ones."""
    totals = accumulate(counts.get(bound, 0) for bound in bounds)
    buckets = [(str(float(bound)), float(total)) for bound, total in zip(bounds, totals, strict=True)]
    return [*buckets, ("+Inf", float(sum(counts.values())))]
