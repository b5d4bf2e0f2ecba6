"""A comparison: contenders that take turns at the same work, and goals for the ratios of their figures.

If a contender raises an error, takes too long or returns a wrong result, the failure is recorded, and it
isn't run again. The other contenders are not affected.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeAlias

if TYPE_CHECKING:  # Shop has tables of the same names, so a process that measures Shop must not import these
    from benchmarks.postgres import Connections

Role: TypeAlias = Literal["howdah", "baseline", "reference", "peer"]
GoalKind: TypeAlias = Literal["times as fast", "of the time", "of the p50", "MB", "µs"]

MAX_TEXT_LENGTH: Final = 200
"""The largest number of characters of a failure's text, which must fit into a table."""

_log = logging.getLogger(__name__)


class ContenderFailed(Exception):
    """A contender has no figure. The message is the reason, as the tables show it."""


class WrongResult(ContenderFailed):
    """A contender returned or wrote something else than the comparison requires."""

    def __init__(self, text: str) -> None:
        super().__init__(f"wrong result: {text}")


@dataclass(frozen=True, slots=True)
class Contender:
    name: str
    role: Role
    run: Callable[[], Awaitable[Any]]
    units: int
    """The number of rows, pages, … that one run processes. Contenders are compared by the time per unit."""
    rounds: int | None = None
    """Fewer rounds than the others, for a slow contender."""
    omission: str | None = None
    """A part of the work that this contender doesn't do. It is stated below the figures."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What `contender` must reach. The meaning of `bound` depends on `kind`.

    - `times as fast`: the contender is at least `bound` times as fast as `against`.
    - `of the time`: it takes at most `bound` times the time of `against`.
    - `of the p50`: its median latency is at most `bound` times that of `against`.
    - `MB`: its peak memory is at most `bound` MB.
    - `µs`: it takes at most `bound` microseconds for one unit.
    """

    contender: str
    kind: GoalKind
    bound: float
    against: str | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures that a contender measured itself, for example in another process."""

    seconds: float
    megabytes: float | None = None
    latency: tuple[float, float] | None = None
    """The p50 and the p99 of the time per unit, in seconds."""
    cpu: Mapping[str, float] | None = None
    """The CPU time of each part, such as the service or the database, in seconds. It is that of all units together."""
    batch_size: float | None = None
    """The mean number of units in a batch, for a contender that batches concurrent requests."""


@dataclass(slots=True)
class Figures:
    """All rounds of one contender."""

    role: Role
    units: int
    omission: str | None = None
    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    """The p50 and the p99 of each round, in seconds."""
    cpu: list[Mapping[str, float]] = field(default_factory=list)
    batch_sizes: list[float] = field(default_factory=list)
    failure: str | None = None
    """The reason why the contender has no further rounds. The rounds before the failure don't count for any goal."""

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def per_second(self) -> float | None:
        median = self.median
        return self.units / median if median else None


@dataclass(frozen=True, slots=True)
class GoalResult:
    """A goal and its ratio in each round, or the reason why there is none."""

    goal: Goal
    values: Sequence[float] = ()
    failure: str | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.values) if self.values else None

    @property
    def is_met(self) -> bool | None:
        """None if the goal was not measured."""
        median = self.median
        if median is None:
            return None
        return median >= self.goal.bound if self.goal.kind == "times as fast" else median <= self.goal.bound


class Comparison(ABC):
    """One table of figures. A benchmark derives from this class; an instance measures one size."""

    name: ClassVar[str]
    description: ClassVar[str]
    """The work of all contenders, in one sentence; `{size}` is replaced."""
    unit: ClassVar[str]
    size: ClassVar[int] = 100_000
    """The amount of work, if the command doesn't set another one."""
    quick_size: ClassVar[int] = 5_000
    """The amount of work with `--quick`."""
    has_warm_up: ClassVar[bool] = True
    """Whether each contender runs once before the first round."""
    max_seconds: ClassVar[float] = 120.0
    """The time limit for one run at `size`, including its reset and its verification. For a larger size the limit is
    proportionally longer. At the limit the run is cancelled, which takes effect at its next await."""

    def __init__(self, connections: Connections, size: int, *, rounds: int = 5, is_quick: bool = False) -> None:
        self.connections = connections
        self.count = size
        self.requested_rounds = rounds
        self.is_quick = is_quick

    @property
    def time_limit(self) -> float:
        return self.max_seconds * max(1.0, self.count / self.size)

    @abstractmethod
    async def set_up(self) -> None:
        """Insert the data. Called once, in a database with empty tables."""

    @abstractmethod
    def contenders(self) -> Sequence[Contender]:
        """The contenders. Called once, after `set_up`."""

    @abstractmethod
    def goals(self) -> Sequence[Goal]:
        """The goals. Must not depend on `set_up`: if `set_up` fails, the goals are reported as not measured."""

    @abstractmethod
    async def reset(self, contender: Contender) -> None:
        """Restore the state from which every run starts. Not timed."""

    @abstractmethod
    async def verify(self, contender: Contender, returned: Any) -> None:
        """Raise `WrongResult` if the run returned or wrote something wrong. Not timed."""

    async def tear_down(self) -> None:  # noqa: B027  # most comparisons start nothing
        """Stop everything that `set_up` has started. Also called if `set_up` has failed."""

    async def skip_reason(self) -> str | None:
        """The reason why the comparison can't run here, or None."""
        return None

    def rounds(self) -> int:
        """The number of rounds: more than requested for noisy figures, fewer for steady ones."""
        return self.requested_rounds


async def measure(
    comparison: Comparison, *, rounds: int, show_progress: Callable[[str], None] = lambda _text: None
) -> dict[str, Figures]:
    """Run the contenders in turn, `rounds` times; each round begins with another contender.

    A contender that fails, in the warm-up or in a round, is not run again. The others go on.
    """
    contenders = comparison.contenders()
    figures = {each.name: Figures(each.role, each.units, each.omission) for each in contenders}
    # Otherwise a garbage collection would scan all imported modules, and one contender would pay for that. `shop serve`
    # freezes the modules, too, after its startup.
    gc.collect()
    gc.freeze()

    async def run(contender: Contender) -> Measured | None:
        try:
            return await _run_once(comparison, contender)
        except Exception as error:
            _log.info("%s: %s failed", comparison.name, contender.name, exc_info=error)
            figures[contender.name].failure = failure_text(error)
        try:
            await comparison.connections.recover()
        except Exception as error:  # then the next contender fails, and its failure shows the reason
            _log.info("recovering after %s failed", contender.name, exc_info=error)
        return None

    if comparison.has_warm_up:
        for contender in contenders:
            show_progress(f"warm-up: {contender.name}")
            await run(contender)
    for number in range(rounds):
        for offset in range(len(contenders)):
            contender = contenders[(number + offset) % len(contenders)]
            own = figures[contender.name]
            if own.failure is not None or (contender.rounds is not None and number >= contender.rounds):
                continue
            show_progress(f"round {number + 1} of {rounds}: {contender.name}")
            measured = await run(contender)
            if measured is None:
                continue
            own.seconds.append(measured.seconds)
            if measured.megabytes is not None:
                own.megabytes.append(measured.megabytes)
            if measured.latency is not None:
                own.latencies.append(measured.latency)
            if measured.cpu is not None:
                own.cpu.append(measured.cpu)
            if measured.batch_size is not None:
                own.batch_sizes.append(measured.batch_size)
    return figures


async def _run_once(comparison: Comparison, contender: Contender) -> Measured:
    """One timed and verified run. Raises `ContenderFailed` at the time limit; errors of the contender pass through."""
    scope = asyncio.timeout(comparison.time_limit)
    try:
        async with scope:
            await comparison.reset(contender)
            await comparison.connections.driver.execute("CHECKPOINT")
            gc.collect()
            started = time.perf_counter()
            returned = await contender.run()
            seconds = time.perf_counter() - started
            await comparison.verify(contender, returned)
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise ContenderFailed(f"not finished in {comparison.time_limit:g} s") from error
    measured = returned if isinstance(returned, Measured) else Measured(seconds)
    # The ratios divide by these numbers, so none may be zero.
    if measured.seconds <= 0 or contender.units <= 0:
        raise ContenderFailed(f"nothing measured: {contender.units:,} units in {measured.seconds:g} s")
    if measured.latency is not None and measured.latency[0] <= 0:
        raise ContenderFailed("nothing measured: the median latency is 0")
    return measured


def evaluate_goal(goal: Goal, figures: Mapping[str, Figures]) -> GoalResult:
    """The goal's ratio in each round. Both figures of a ratio are from the same round."""
    for name in (goal.contender, goal.against):
        if name is None:
            continue
        if name not in figures:
            return GoalResult(goal, failure=f"{name} did not run")
        failure = figures[name].failure
        if failure is not None:
            return GoalResult(goal, failure=f"{name}: {failure}")
    ours = figures[goal.contender]
    if goal.kind == "MB":
        values = ours.megabytes
    elif goal.kind == "µs":
        values = [seconds / ours.units * 1e6 for seconds in ours.seconds]
    else:
        assert goal.against is not None
        theirs = figures[goal.against]
        if goal.kind == "of the p50":
            values = [mine / other for (mine, _), (other, _) in zip(ours.latencies, theirs.latencies, strict=False)]
        else:
            times = [
                (mine / ours.units) / (other / theirs.units)
                for mine, other in zip(ours.seconds, theirs.seconds, strict=False)  # a slow contender has fewer rounds
            ]
            values = [1 / each for each in times] if goal.kind == "times as fast" else times
    return GoalResult(goal, values) if values else GoalResult(goal, failure="no figures")


def failure_text(error: BaseException) -> str:
    """The error in one line, short enough for a table."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = str(error) if isinstance(error, ContenderFailed) else f"{type(error).__name__}: {error}"
    return shorten(text.strip().partition("\n")[0].removesuffix(":"))


def shorten(text: str, length: int = MAX_TEXT_LENGTH) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def check_equal(what: str, found: object, expected: object) -> None:
    """Raise `WrongResult` if they differ."""
    if found != expected:
        raise WrongResult(f"{what}: {shorten(repr(found), 80)} instead of {shorten(repr(expected), 80)}")


def check_close(what: str, found: float, expected: float) -> None:
    """Raise `WrongResult` if they differ by more than rounding."""
    if not math.isclose(found, expected):
        raise WrongResult(f"{what}: {found!r} instead of {expected!r}")
