"""The periodic jobs of an application: when they run, and what happens if they fail or don't end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from fastapi import FastAPI
from sqlalchemy import text

from howdah import Database, Unavailable
from howdah.fastapi import Job, Resource, configure_app, jobs
from howdah.testing import open_client

SHORT = timedelta(milliseconds=5)


async def do_nothing(database: Database) -> None: ...


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def create_app(url: str, *chosen: Job, resources: tuple[Resource[str], ...] = ()) -> FastAPI:
    app = FastAPI()
    configure_app(app, database=lambda: Database(url), resources=resources, jobs=chosen, request_log=False)
    return app


@asynccontextmanager
async def started(app: FastAPI) -> AsyncGenerator[None]:
    async with app.router.lifespan_context(app):
        yield


async def test_a_job_runs_again_and_again_and_ends_before_the_database_is_closed(database_url: str) -> None:
    results: list[int] = []

    async def count(database: Database) -> None:
        async with database.session() as session:
            results.append((await session.execute(text("SELECT 1"))).scalar_one())

    async with started(create_app(database_url, Job("count", every=SHORT, work=count))):
        await until(lambda: len(results) >= 3)
    ended = len(results)
    await asyncio.sleep(0.03)
    assert len(results) == ended


@pytest.mark.parametrize("error", [ZeroDivisionError("no"), asyncio.CancelledError("of an inner task")])
async def test_a_failed_job_is_logged_and_goes_on_and_does_not_stop_others(
    database_url: str, error: BaseException, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_FIRST_RETRY_SECONDS", 0.005)
    failures, successes = 0, 0

    async def fail(database: Database) -> None:
        nonlocal failures
        failures += 1
        if failures < 3:
            raise error

    async def succeed(database: Database) -> None:
        nonlocal successes
        successes += 1

    app = create_app(
        database_url, Job("fails", every=timedelta(seconds=1), work=fail), Job("works", every=SHORT, work=succeed)
    )
    async with started(app):
        await until(lambda: failures >= 3 and successes >= 3)  # far sooner than `every` after a failure
    records = [record for record in caplog.records if record.name == "howdah.jobs"]
    assert [record.getMessage() for record in records] == [
        "the job 'fails' failed",
        f"the job 'fails' failed, 2 times in a row: {type(error).__name__}: {error}",
    ]
    first, second = [record.exc_info for record in records]
    assert first is not None
    assert (first[1], second) == (error, None)


async def test_an_outage_of_the_database_is_logged_in_a_few_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A job that runs every two seconds would fill the log with tracebacks."""
    outcomes = [*(Unavailable("no\nroute") for _ in range(9)), None]

    async def fail(_: object) -> None:
        if (error := outcomes.pop(0)) is not None:
            raise error

    caplog.set_level("INFO", "howdah.jobs")
    runner = jobs.JobRunner(Job("polls", every=SHORT, work=fail), None)
    while outcomes:
        await runner._run_once()
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        *(f"the job 'polls' failed, {count} times in a row" for count in (1, 2, 4, 8)),
        "the job 'polls' succeeded again, after 9 failures",
    ]
    assert not any(record.exc_info or "\n" in record.getMessage() for record in caplog.records)


async def test_a_bug_after_an_outage_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    outcomes: list[Exception | None] = [*(Unavailable("no") for _ in range(2)), *(KeyError("a") for _ in range(3))]
    outcomes += [None, KeyError("a")]

    async def fail(_: object) -> None:
        if (error := outcomes.pop(0)) is not None:
            raise error

    runner = jobs.JobRunner(Job("polls", every=SHORT, work=fail), None)
    while outcomes:
        await runner._run_once()
    assert [(record.getMessage().partition(":")[0], bool(record.exc_info)) for record in caplog.records] == [
        ("the job 'polls' failed, 1 times in a row", False),
        ("the job 'polls' failed, 2 times in a row", False),
        ("the job 'polls' failed", True),
        ("the job 'polls' failed, 4 times in a row", False),
        ("the job 'polls' failed", True),  # after a success
    ]


async def test_a_job_does_not_overlap_with_itself(database_url: str) -> None:
    running, most, runs = 0, 0, 0

    async def work(database: Database) -> None:
        nonlocal running, most, runs
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)  # longer than `every`
        running -= 1
        runs += 1

    async with started(create_app(database_url, Job("slow", every=SHORT, work=work))):
        await until(lambda: runs >= 2)
    assert most == 1


async def test_the_shutdown_does_not_wait_for_a_job_that_catches_its_cancellation(
    database_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_MAX_SHUTDOWN_SECONDS", 0.05)
    begun, release = asyncio.Event(), asyncio.Event()

    async def refuse_to_end(database: Database) -> None:
        begun.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    async with asyncio.timeout(5):
        async with started(create_app(database_url, Job("stubborn", every=SHORT, work=refuse_to_end))):
            await begun.wait()
    assert "the job 'stubborn' did not end within 0.05 s" in caplog.text
    release.set()
    await until(lambda: not any(task.get_name() == "job stubborn" for task in asyncio.all_tasks()))


async def test_the_delays_are_random_and_limited() -> None:
    runner = jobs.JobRunner(Job("hourly", every=timedelta(hours=1), work=do_nothing), None)
    delays = {runner._choose_delay(3_600) for _ in range(100)}
    assert len(delays) > 50
    assert 3_240 <= min(delays) < max(delays) <= 3_960
    runner._consecutive_failures = 1
    assert 54 <= runner._choose_delay(3_600) <= 66
    runner._consecutive_failures = 2
    assert 108 <= runner._choose_delay(3_600) <= 132
    runner._consecutive_failures = 10_000
    assert 3_240 <= runner._choose_delay(3_600) <= 3_960


async def test_a_job_may_use_a_resource_and_is_in_the_metrics(database_url: str) -> None:
    values: list[str] = []

    @asynccontextmanager
    async def open_queue(database: Database) -> AsyncIterator[str]:
        yield "the queue"
        values.append("closed")

    async def drain(value: str) -> None:
        values.append(value)

    queue = Resource("queue", open_queue)
    app = create_app(database_url, Job("drain", every=SHORT, work=drain, resource=queue), resources=(queue,))
    metrics = ""

    async def send(message: dict[str, object]) -> None:
        nonlocal metrics
        body = message.get("body", b"")
        assert isinstance(body, bytes)
        metrics += body.decode()

    async with app.router.lifespan_context(app) as state:
        await until(lambda: len(values) >= 1)
        request = {"type": "http", "method": "GET", "path": "/metrics", "query_string": b"", "headers": []}
        await app({**request, "state": dict(state or {})}, _no_body, send)  # type: ignore[arg-type]
    assert (values[0], values[-1]) == ("the queue", "closed")
    assert 'howdah_job_runs_total{job="drain",outcome="failure"} 0.0' in metrics
    assert 'howdah_job_runs_total{job="drain",outcome="success"} ' in metrics
    assert 'howdah_job_last_success_timestamp_seconds{job="drain"} ' in metrics


async def test_the_client_of_tests_leaves_jobs_out(database: Database) -> None:
    runs = 0

    async def work(database: Database) -> None:
        nonlocal runs
        runs += 1

    app = create_app("postgresql://unused", Job("counts", every=timedelta(microseconds=1), work=work))
    async with open_client(app, {"main": database}, is_serial=True) as client:
        for _ in range(5):
            await client.get("/healthz")
        assert "howdah_job" not in (await client.get("/metrics")).text
    assert runs == 0


def test_wrong_jobs_are_refused() -> None:
    job = Job("a", every=SHORT, work=do_nothing)
    with pytest.raises(ValueError, match="two jobs have the name 'a'"):
        create_app("", job, Job("a", every=SHORT, work=do_nothing))
    with pytest.raises(ValueError, match="uses the database 'reports'"):
        create_app("", Job("b", every=SHORT, work=do_nothing, database="reports"))
    with pytest.raises(ValueError, match="uses the resource 'queue'"):
        create_app("", Job("b", every=SHORT, work=print, resource=Resource("queue", print)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive"):
        Job("b", every=timedelta(0), work=do_nothing)
    with pytest.raises(TypeError, match="async function"):
        Job("b", every=SHORT, work=None)  # type: ignore[call-overload]


async def _no_body() -> dict[str, object]:
    return {"type": "http.request", "body": b"", "more_body": False}
