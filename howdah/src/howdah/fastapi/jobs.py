"""Periodic jobs of an application, such as the deletion of old rows."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from random import Random
from typing import Any, Final, TypeVar, overload

from howdah.database import Database
from howdah.errors import Unavailable
from howdah.fastapi.resources import MAIN_DATABASE, Resource

ResourceT = TypeVar("ResourceT")

# The first run of each process, and the runs after it, are delayed at random. Otherwise processes that were started
# together would always run together.
_JITTER: Final = 0.1
_MAX_FIRST_DELAY_SECONDS: Final = 60.0
# The first retry of a failed run; the wait doubles with each further failure, up to the interval of the job.
_FIRST_RETRY_SECONDS: Final = 60.0
# A cancelled transaction is rolled back within milliseconds. A job that catches its cancellation must not block the
# shutdown, because the service manager would kill the process.
_MAX_SHUTDOWN_SECONDS: Final = 5.0

# Not the generator of the module `random`, whose state belongs to the application.
_random: Final = Random()  # noqa: S311

_log = logging.getLogger("howdah.jobs")


class Job:
    """Work that an application does periodically, from its startup to its shutdown: `configure_app(..., jobs=[...])`.

        Job("delete old keys", every=timedelta(hours=1), work=delete_old_keys)

    `work` is an async function of the application's `Database`. `database` names one of the further databases instead.
    With `resource` it is a function of the opened resource, which must be in `configure_app(..., resources=[...])`.

    - A job doesn't overlap with itself: `every` is the time from the end of a run to the start of the next one. It is
      varied by up to 10 % at random. The first run starts after at most a minute, and at most a tenth of `every`.
    - An error is logged with its traceback, but an unavailable database in one line. If the next runs fail, too, only
      the 2nd, 4th, 8th, … failure is logged, in one line, and the first one of each other type of error with its
      traceback. The next run starts after one minute, then two, four, … up to `every`.
    - At shutdown a running job is cancelled, before the application's resources are closed. After 5 seconds the
      shutdown doesn't wait for it any longer.
    - Every process runs its jobs, so `work` may run in several processes at the same time.

    `/metrics` counts the runs by job and outcome, and has the time of the last success.
    """

    @overload
    def __init__(
        self,
        name: str,
        *,
        every: timedelta,
        work: Callable[[Database], Awaitable[object]],
        database: str | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        name: str,
        *,
        every: timedelta,
        work: Callable[[ResourceT], Awaitable[object]],
        resource: Resource[ResourceT],
    ) -> None: ...

    def __init__(
        self,
        name: str,
        *,
        every: timedelta,
        work: Callable[[Any], Awaitable[object]],
        database: str | None = None,
        resource: Resource[Any] | None = None,
    ) -> None:
        if every <= timedelta(0):
            raise ValueError(f"the job {name!r} must run every positive time, not every {every}")
        if not callable(work):
            raise TypeError(f"the work of the job {name!r} must be an async function, not {work!r}")
        if database is not None and resource is not None:
            raise TypeError(f"the job {name!r} has a database and a resource: pass one of them")
        self.name = name
        self.every = every
        self.work = work
        self.database = MAIN_DATABASE if database is None else database
        self.resource = resource

    def __repr__(self) -> str:
        return f"Job({self.name!r})"


class JobRunner:
    """Runs one job until it is stopped, and counts its runs."""

    def __init__(self, job: Job, argument: Any) -> None:
        self.name: Final = job.name
        self.successes = 0
        self.failures = 0
        self.last_success: float | None = None
        """The Unix time of the end of the last successful run."""
        self._job = job
        self._argument = argument
        self._is_stopping = False
        self._consecutive_failures = 0
        self._failure_types: set[type[BaseException]] = set()  # of the consecutive failures

    def stop(self) -> None:
        """End after this run, also if the work catches its cancellation."""
        self._is_stopping = True

    async def run(self) -> None:
        every = self._job.every.total_seconds()
        await asyncio.sleep(min(every * _JITTER, _MAX_FIRST_DELAY_SECONDS) * _random.random())
        while True:
            await self._run_once()
            if self._is_stopping:  # the work has caught its cancellation
                return
            await asyncio.sleep(self._choose_delay(every))

    async def _run_once(self) -> None:
        """Call the work. An error is logged, and doesn't end the job."""
        try:
            await self._job.work(self._argument)
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and (self._is_stopping or (task and task.cancelling())):
                raise
            # any other CancelledError comes from inside of the work, for example from a task that it has cancelled
            self.failures += 1
            self._consecutive_failures += 1
            self._log_failure(error)
        else:
            if self._consecutive_failures:
                _log.info("the job %r succeeded again, after %d failures", self.name, self._consecutive_failures)
            self.successes += 1
            self._consecutive_failures = 0
            self._failure_types.clear()
            self.last_success = time.time()

    def _log_failure(self, error: BaseException) -> None:
        """Log the 1st, 2nd, 4th, 8th, … failure in a row, so that an outage doesn't fill the log.

        The traceback of an unavailable database tells nothing, and that of a repeated failure nothing new. The first
        error of another type is logged with its traceback: a bug may follow an outage.
        """
        count = self._consecutive_failures
        is_new = type(error) not in self._failure_types
        self._failure_types.add(type(error))
        if is_new and not isinstance(error, Unavailable):
            _log.exception("the job %r failed", self.name)
        elif count & (count - 1) == 0:
            first_line = str(error).partition("\n")[0]
            description = f"{type(error).__name__}: {first_line}"
            _log.error("the job %r failed, %d times in a row: %s", self.name, count, description)

    def _choose_delay(self, every: float) -> float:
        """The seconds until the next run."""
        if self._consecutive_failures:
            every = min(every, _FIRST_RETRY_SECONDS * 2 ** min(self._consecutive_failures - 1, 20))
        return every * _random.uniform(1 - _JITTER, 1 + _JITTER)


def build_runners(
    jobs: Sequence[Job], databases: Mapping[str, Database], values: Mapping[object, Any]
) -> list[JobRunner]:
    """A runner for each job. `values` are the opened resources, by their keys."""
    return [
        JobRunner(job, databases[job.database] if job.resource is None else values[job.resource.key]) for job in jobs
    ]


@asynccontextmanager
async def run_jobs(runners: Sequence[JobRunner]) -> AsyncGenerator[None]:
    """Run the jobs inside the `async with` block. Its end cancels them, and waits for them for a limited time."""
    tasks = {asyncio.create_task(runner.run(), name=f"job {runner.name}"): runner for runner in runners}
    try:
        yield
    finally:
        for task, runner in tasks.items():
            runner.stop()
            task.cancel()
        if tasks:
            _, running = await asyncio.wait(tasks, timeout=_MAX_SHUTDOWN_SECONDS)
            for task in running:
                _log.error(
                    "the job %r did not end within %g s after it was cancelled", tasks[task].name, _MAX_SHUTDOWN_SECONDS
                )


def check_jobs(jobs: list[Job], databases: Collection[str], resources: Collection[object]) -> None:
    """Raise `ValueError` if two jobs have the same name, or if a database or a resource of a job is unknown."""
    names = [job.name for job in jobs]
    for job in jobs:
        if names.count(job.name) > 1:
            raise ValueError(f"two jobs have the name {job.name!r}: give each its own name")
        if job.database not in databases:
            raise ValueError(
                f"the job {job.name!r} uses the database {job.database!r}, which is not in "
                "configure_app(..., databases={...})"
            )
        if job.resource is not None and job.resource.key not in resources:
            raise ValueError(
                f"the job {job.name!r} uses the resource {job.resource.name!r}: add it to "
                "configure_app(..., resources=[...])"
            )
