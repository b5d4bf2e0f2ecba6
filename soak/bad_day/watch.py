"""Probes of health and readiness, the resources of the service, and the recovery after a fault."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Set
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

import orjson
import psutil

from soak.bad_day import rules
from soak.bad_day.deployment import Deployment
from soak.bad_day.model import Model
from soak.bad_day.timeline import Inflicted, Timeline
from soak.bad_day.traffic import Client, Traffic
from soak.bad_day.violations import Violations
from soak.bad_day.wire import NoAnswer, fetch

MEGABYTE: Final = 1_000_000
MAX_PEAK_MEGABYTES: Final = 300
"""How much the memory of the service may grow at any time."""
_HEALTH_SECONDS: Final = 0.25
_READINESS_SECONDS: Final = 0.5
_SAMPLE_SECONDS: Final = 0.25
_UNUSABLE_GRACE_SECONDS: Final = 2.0
"""For this time after the database became unusable, `/readyz` may still answer 200."""
_RECOVERY_PROBE_SECONDS: Final = 0.1
_RECOVERY_REQUEST_SECONDS: Final = 2.0
_WRITTEN: Final = frozenset({201, 409, 422})


async def probe_health(traffic: Traffic, stop: asyncio.Event) -> None:
    """Call `/healthz` at a fixed rate, each time on a new connection, as an orchestrator does."""
    async with asyncio.TaskGroup() as group:
        while not stop.is_set():
            group.create_task(_probe(traffic, rules.HEALTH, "/healthz"))
            await asyncio.sleep(_HEALTH_SECONDS)


async def probe_readiness(traffic: Traffic, stop: asyncio.Event) -> None:
    """Call `/readyz` again and again, and compare its answers with the faults.

    The next call waits for the last answer, as an orchestrator's does: each one opens a connection to PostgreSQL.
    """
    while not stop.is_set():
        await _check_readiness(traffic)
        await asyncio.sleep(_READINESS_SECONDS)


async def _probe(traffic: Traffic, kind: rules.Kind, path: str) -> int | None:
    client = Client(traffic, random.Random(0))
    try:
        answer = await client.send(kind, "GET", path)
        return None if answer is None else answer.status
    finally:
        client.close()


async def _check_readiness(traffic: Traffic) -> None:
    timeline = traffic.timeline
    started, address = timeline.now(), traffic.find_address()
    status = await _probe(traffic, rules.READINESS, "/readyz")
    ended = timeline.now()
    if traffic.find_address() != address:  # the old process is stopping, so it isn't ready
        return
    if status == rules.UNAVAILABLE and not timeline.allows_unready(started, ended):
        traffic.violations.add("readiness: 503 although the database works", "GET /readyz", since=started)
    if status == 200 and timeline.was_unusable(started - _UNUSABLE_GRACE_SECONDS, ended):
        traffic.violations.add("readiness: 200 although the database can't be used", "GET /readyz", since=started)


class Recovery:
    """Measures how soon after a fault the service is ready, reads and writes."""

    def __init__(self, traffic: Traffic, model: Model) -> None:
        self._traffic = traffic
        self._model = model

    async def measure(self, inflicted: Inflicted) -> None:
        """Wait for the recovery. If there is none in time, that is a violation, unless another fault prevents it."""
        timeline, tolerance = self._traffic.timeline, inflicted.tolerance
        assert inflicted.ended is not None
        bound, failure = tolerance.recovery_seconds * self._traffic.slack, "nothing was tried"
        while (waited := timeline.now() - inflicted.ended) < bound:
            failure = await self._find_failure()
            if not failure:
                inflicted.recovery_seconds = timeline.now() - inflicted.ended
                break
            await asyncio.sleep(_RECOVERY_PROBE_SECONDS)
        else:
            if not _is_disturbed(timeline, inflicted):
                self._traffic.violations.add(
                    f"no recovery from {inflicted.name}", f"after {waited:.0f} s: {failure}", since=inflicted.started
                )
        inflicted.calm = timeline.now()

    async def _find_failure(self) -> str:
        """Why the service hasn't recovered, or an empty text."""
        address, rng = self._traffic.find_address(), random.Random()
        source, target = rng.sample(self._model.spare_accounts, 2)
        transfer = orjson.dumps({"from_account_id": source, "to_account_id": target, "amount": 1})
        headers = {"Content_Type": "application/json", "Idempotency_Key": str(uuid4())}
        steps: tuple[tuple[str, str, bytes | None, Set[int]], ...] = (
            ("GET", "/readyz", None, {200}),
            ("GET", f"/users/{rng.choice(self._model.user_ids)}", None, {200}),
            ("POST", "/transfers", transfer, _WRITTEN),
        )
        for method, path, body, statuses in steps:
            try:
                async with asyncio.timeout(_RECOVERY_REQUEST_SECONDS * self._traffic.slack):
                    answer = await fetch(address, method, path, body, **({} if body is None else headers))
            except (NoAnswer, TimeoutError) as error:
                return f"{method} {path}: {type(error).__name__} {error}"
            if answer.status not in statuses:
                return f"{method} {path}: {answer.status} {answer.body[:200].decode(errors='replace')}"
        return ""


def _is_disturbed(timeline: Timeline, inflicted: Inflicted) -> bool:
    """Whether another fault was active after the end of this one."""
    assert inflicted.ended is not None
    others = timeline.find_overlapping(inflicted.ended, timeline.now())
    return any(each is not inflicted and not each.tolerance.keeps_working for each in others)


@dataclass
class Resources:
    """What the process of the service uses."""

    rss: int
    files: int
    threads: int

    def __str__(self) -> str:
        return f"{self.rss / MEGABYTE:.0f} MB, {self.files} file descriptors, {self.threads} threads"


def read_resources(pid: int) -> Resources:
    """Raises `psutil.Error` if the process has ended."""
    process = psutil.Process(pid)
    return Resources(process.memory_info().rss, process.num_fds(), process.num_threads())


async def watch_memory(deployment: Deployment, violations: Violations, stop: asyncio.Event) -> None:
    """Record a violation if a process uses 300 MB more than the first process did when this function was called."""
    pid = deployment.current.pid
    limit = read_resources(pid).rss + MAX_PEAK_MEGABYTES * MEGABYTE
    reported = False
    while not stop.is_set():
        if deployment.current.pid != pid:
            pid, reported = deployment.current.pid, False
        with contextlib.suppress(psutil.Error):
            rss = read_resources(pid).rss
            if rss > limit and not reported:
                reported = True
                violations.add("memory: too much at once", f"{rss / MEGABYTE:.0f} MB")
        await asyncio.sleep(_SAMPLE_SECONDS)
