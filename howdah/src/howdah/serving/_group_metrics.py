"""The metrics of a group of workers, in their parent."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from howdah.serving._metrics import Family, Metrics, encode_metrics, keep_cumulative, sum_metrics
from howdah.serving._worker_process import WorkerProcess

# The time limit for the answers of the workers to one scrape.
_METRICS_SECONDS: Final = 1.0

_log: Final = logging.getLogger("howdah.serving")


class GroupMetrics:
    """The metrics of all workers. Those that have ended are included, so that no counter falls."""

    def __init__(self, list_running: Callable[[], list[WorkerProcess]]) -> None:
        self._list_running = list_running
        self._ended: Metrics = []
        self._failures = 0
        self._missing = 0
        self._asking: deque[tuple[WorkerProcess, int]] = deque()
        self._task: asyncio.Task[None] | None = None

    def keep(self, worker: WorkerProcess, *, is_expected: bool) -> None:
        """Add the last counts of a worker that has ended."""
        self._failures += not is_expected
        try:
            self._ended = sum_metrics([self._ended, keep_cumulative(worker.read_last_metrics())])
        except Exception:  # a collector of the application may return anything; the other workers go on
            _log.exception("the last metrics of %s can't be added, so its counts are lost", worker)

    def collect(self, worker: WorkerProcess, number: int) -> None:
        """Answer this request of the worker. Requests that arrive before the answer share it."""
        self._asking.append((worker, number))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._answer_all())

    async def _answer_all(self) -> None:
        while self._asking:
            asking = [*self._asking]
            self._asking.clear()
            await self._ask_workers()
            running = self._list_running()
            parts = [worker.metrics for worker in running if worker.metrics is not None]
            own = encode_metrics([*self._ended, *_describe_workers(len(running), self._failures, self._missing)])
            for worker, number in asking:
                worker.answer(number, [*parts, own])

    async def _ask_workers(self) -> None:
        """Wait for the current metrics of all workers.

        If a worker can't read its metrics, or doesn't answer in time, its last ones are used.
        """
        answers = [worker.ask_for_metrics() for worker in self._list_running()]
        if answers:
            await asyncio.wait(answers, timeout=_METRICS_SECONDS)
        self._missing += sum(not (answer.done() and answer.result()) for answer in answers)


def _describe_workers(running: int, failures: int, missing: int) -> Metrics:
    return [
        Family("howdah_workers", "gauge", "Worker processes that serve requests", [("howdah_workers", {}, running)]),
        Family(
            "howdah_worker_failures",
            "counter",
            "Worker processes that ended unexpectedly",
            [("howdah_worker_failures_total", {}, failures)],
        ),
        Family(
            "howdah_worker_metrics_missing",
            "counter",
            "Reads of a worker's metrics that failed or took too long, so its last ones were used",
            [("howdah_worker_metrics_missing_total", {}, missing)],
        ),
    ]
