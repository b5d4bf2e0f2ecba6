"""The metrics of several processes as one."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock, Mock

import httpx
import pytest
from fastapi import FastAPI

from howdah import Database
from howdah.fastapi import configure_app
from howdah.serving import ServerLimits
from howdah.serving._group_metrics import GroupMetrics
from howdah.serving._metrics import (
    Family,
    Metrics,
    MetricsSource,
    decode_metrics,
    encode_metrics,
    keep_cumulative,
    sum_metrics,
)
from howdah.serving._scope_keys import METRICS_KEY, WORKERS_KEY
from howdah.serving._server import build_config
from howdah.serving._worker import WorkerServer, WorkerSetup
from howdah.serving._worker_process import WorkerProcess


def family(name: str, kind: str, *values: tuple[str, float]) -> Family:
    """A metric without labels, with one sample for each suffix."""
    return Family(name, kind, "help", [(f"{name}{suffix}", {}, value) for suffix, value in values])


def test_each_kind_of_metric_is_combined_by_its_meaning() -> None:
    cases = [
        (family("requests", "counter", ("_total", 2), ("_created", 100)), [5, 100]),
        (family("seconds", "summary", ("_count", 2), ("_sum", 0.5)), [5, 2]),
        (family("connections", "gauge", ("", 2)), [5]),
        (family("last_success_timestamp_seconds", "gauge", ("", 2)), [3]),
        (family("python_info", "gauge", ("", 1)), [1]),
        (family("process_start_time_seconds", "gauge", ("", 50)), [50]),
    ]
    others = [
        family("requests", "counter", ("_total", 3), ("_created", 101)),
        family("seconds", "summary", ("_count", 3), ("_sum", 1.5)),
        family("connections", "gauge", ("", 3)),
        family("last_success_timestamp_seconds", "gauge", ("", 3)),
        family("python_info", "gauge", ("", 1)),
        family("process_start_time_seconds", "gauge", ("", 60)),
    ]
    total = sum_metrics([[first for first, _ in cases], others])
    assert [[value for *_, value in each.samples] for each in total] == [expected for _, expected in cases]


def test_samples_with_other_labels_are_kept_apart_and_buckets_are_added() -> None:
    first = Family("size", "histogram", "h", [("size_bucket", {"queue": "a", "le": "1"}, 1.0)])
    second = Family(
        "size",
        "histogram",
        "h",
        [("size_bucket", {"queue": "a", "le": "1"}, 2.0), ("size_bucket", {"queue": "b", "le": "1"}, 4.0)],
    )
    (total,) = sum_metrics([[first], [second]])
    assert total.samples == [
        ("size_bucket", {"queue": "a", "le": "1"}, 3.0),
        ("size_bucket", {"queue": "b", "le": "1"}, 4.0),
    ]


def test_only_cumulative_metrics_of_an_ended_process_are_kept() -> None:
    metrics = [family("requests", "counter", ("_total", 2)), family("connections", "gauge", ("", 2))]
    assert keep_cumulative(metrics) == metrics[:1]


def test_infinities_survive_the_way_to_the_parent() -> None:
    (decoded,) = decode_metrics(encode_metrics([family("limit", "gauge", ("", math.inf))]))
    assert decoded.samples[0][2] == math.inf


class Group:
    """Two workers with the same metrics. The second answer of their parent comes too late."""

    def __init__(self, metrics: Metrics) -> None:
        self._answers = iter([[metrics, metrics]])

    async def collect(self) -> list[Metrics]:
        try:
            return next(self._answers)
        except StopIteration as error:
            raise TimeoutError from error


async def test_the_route_has_the_sums_of_all_workers_or_is_a_503() -> None:
    app = FastAPI()
    configure_app(app, database=lambda: Database("postgresql://nobody@127.0.0.1:1/none"))
    async with app.router.lifespan_context(app) as state:
        assert state is not None
        shared = {**state, WORKERS_KEY: Group(state[METRICS_KEY].read())}

        async def serve(scope: Any, receive: Any, send: Any) -> None:
            await app(scope | {"state": {**shared}}, receive, send)

        transport = httpx.ASGITransport(serve)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            lines = (await client.get("/metrics")).text.splitlines()
            late = await client.get("/metrics")
    assert 'howdah_pool_connections{database="main",state="limit"} 60.0' in lines
    assert late.status_code == 503
    assert "the other worker processes can't be read" in late.json()["detail"]


async def test_metrics_of_a_worker_that_cannot_be_added_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise the parent, and with it the whole service, would end when this worker ends."""
    metrics = GroupMetrics(list)
    for text in (b"no JSON", b"[[1, 2]]", b'[["a", "counter", "", [["a_total", {"b": []}, 1]]]]'):
        metrics.keep(cast(WorkerProcess, EndedWorker(text)), is_expected=False)
    assert [each.getMessage() for each in caplog.records] == [
        "the last metrics of worker 7 can't be added, so its counts are lost"
    ] * 3


class EndedWorker:
    def __init__(self, text: bytes) -> None:
        self._text = text

    def __str__(self) -> str:
        return "worker 7"

    def read_last_metrics(self) -> Metrics:
        return decode_metrics(self._text)


async def test_a_worker_that_does_not_answer_is_counted_with_its_last_metrics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("howdah.serving._group_metrics._METRICS_SECONDS", 0.02)
    quick, silent = RunningWorker(answers=True), RunningWorker(answers=False)
    group = GroupMetrics(lambda: cast(list[WorkerProcess], [quick, silent]))
    group.collect(cast(WorkerProcess, quick), 5)
    async with asyncio.timeout(5):
        number, parts = await quick.answered
    assert number == 5
    assert [decode_metrics(part)[0].samples[0][2] for part in parts] == [2, 1, 2]  # the last one is `howdah_workers`
    assert find_value(decode_metrics(parts[-1]), "howdah_worker_metrics_missing_total") == 1


def find_value(metrics: Metrics, name: str) -> float:
    [value] = [value for family in metrics for sample, _, value in family.samples if sample == name]
    return value


class RunningWorker:
    """It counts 1, and 2 as soon as it is asked, if it answers."""

    def __init__(self, *, answers: bool) -> None:
        self._answers = answers
        self._count(1)
        self.answered: asyncio.Future[tuple[int, list[bytes]]] = asyncio.get_running_loop().create_future()

    def _count(self, value: float) -> None:
        self.metrics = encode_metrics([family("requests", "counter", ("_total", value))])

    def ask_for_metrics(self) -> asyncio.Future[bool]:
        asked: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self._answers:
            self._count(2)
            asked.set_result(True)
        return asked

    def answer(self, number: int, parts: list[bytes]) -> None:
        self.answered.set_result((number, parts))


async def test_metrics_that_cannot_be_encoded_do_not_end_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def read(self) -> Metrics:
            return [family("a", "counter", ("_total", cast(float, Decimal(1))))]

    server = create_worker(MagicMock(number=7, stop_timeout=1.0), Broken())
    server._control = MagicMock()
    server._send_metrics(0)
    assert [each.getMessage() for each in caplog.records] == ["worker 7: the metrics can't be read"]


def create_worker(setup: WorkerSetup, source: MetricsSource) -> WorkerServer:
    config, connections = build_config(None, ServerLimits())
    server = WorkerServer(config, connections=connections, setup=setup)
    server.lifespan = cast(Any, SimpleNamespace(state={METRICS_KEY: source}))
    return server


class Counting:
    """Counts its reads. Later ones may fail."""

    def __init__(self) -> None:
        self.reads = 0
        self.is_broken = False

    def read(self) -> Metrics:
        if self.is_broken:
            raise LookupError("a bug of a collector")
        self.reads += 1
        return [family("reads", "counter", ("_total", self.reads))]


async def test_a_worker_that_cannot_read_its_metrics_says_so_and_no_scrape_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the parent waited for the metrics, `collect` would raise `TimeoutError` after 3 s."""
    monkeypatch.setattr("howdah.serving._group_metrics._METRICS_SECONDS", 60.0)
    monkeypatch.setattr("howdah.serving._worker_process._start", lambda _: None)
    workers: list[WorkerProcess] = []
    group = GroupMetrics(lambda: workers)
    setups: list[WorkerSetup] = []
    monkeypatch.setattr("howdah.serving._worker_process._context.Process", NoProcess(setups))
    workers.append(WorkerProcess(7, create_app=Mock(), limits=ServerLimits(), stop_timeout=1.0, collect=group.collect))
    source = Counting()
    server = create_worker(setups[0], source)
    reader, server._control = await asyncio.open_connection(sock=setups[0].control)
    obeying = asyncio.create_task(server._obey(reader))
    try:
        for reads, missing in ((1, 0), (2, 0), (2, 1), (2, 2)):
            source.is_broken = missing > 0
            parts = await server._group.collect()
            assert find_value(parts[0], "reads_total") == reads
            assert find_value(parts[-1], "howdah_worker_metrics_missing_total") == missing
    finally:
        obeying.cancel()
        server._control.close()
        workers[0].close()


class NoProcess:
    """Takes the place of the class `Process`. It keeps the setup of the worker, and starts nothing."""

    def __init__(self, setups: list[WorkerSetup]) -> None:
        self._setups = setups
        self.pid = 7

    def __call__(self, *, args: tuple[WorkerSetup], **_: object) -> NoProcess:
        self._setups.append(replace(args[0], control=args[0].control.dup()))
        return self

    def join(self, _: float) -> None: ...
