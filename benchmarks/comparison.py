"""A comparison: contenders that do the same work, in turn, and the goals that their figures are held against."""

from __future__ import annotations

import gc
import math
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

if TYPE_CHECKING:  # a process that measures Shop must not have tables of the same names
    from benchmarks.server import Connections

Role: TypeAlias = Literal["howdah", "limit", "reference", "peer"]
Kind: TypeAlias = Literal["times as fast", "of the time", "of the p50", "MB"]


class NotTheSameWork(Exception):
    """A contender left something else in the database, or returned something else, than it was to."""


@dataclass(frozen=True, slots=True)
class Contender:
    name: str
    role: Role
    work: Callable[[], Awaitable[Any]]
    units: int
    """How many rows, pages, … one run is. Contenders compare by the time of one."""
    rounds: int | None = None
    """Fewer rounds than the others, for a slow one."""
    lacks: str | None = None
    """A part of the work that it can't do, and is forgiven; it is named beside its figures."""


@dataclass(frozen=True, slots=True)
class Goal:
    """`contender` is to be at least `bound` times as fast as `against`, to take at most `bound` of its time or of its
    median latency, or to stay within `bound` MB."""

    contender: str
    kind: Kind
    bound: float
    against: str | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What a contender measured itself, in a process of its own."""

    seconds: float
    megabytes: float | None = None
    latency: tuple[float, float] | None = None
    """p50 and p99 of its units, in seconds."""


@dataclass(slots=True)
class Figures:
    """A contender's rounds."""

    role: Role
    units: int
    lacks: str | None = None
    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    """Of each round the p50 and the p99, in seconds."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def per_unit(self) -> float:
        return self.median / self.units


@dataclass(frozen=True, slots=True)
class Outcome:
    """A goal and what came of it: the median, and the least and the most, over the rounds."""

    goal: Goal
    median: float
    least: float
    most: float

    @property
    def met(self) -> bool:
        return self.median >= self.goal.bound if self.goal.kind == "times as fast" else self.median <= self.goal.bound


class Comparison(ABC):
    """One table of figures. A benchmark derives from this, and is made once for each size."""

    name: ClassVar[str]
    work: ClassVar[str]
    """What all contenders do, in a sentence; `{size}` stands for the size."""
    unit: ClassVar[str]
    size: ClassVar[int] = 100_000
    """How much work, unless the command says otherwise."""
    warm_up: ClassVar[bool] = True

    def __init__(self, connections: Connections, size: int) -> None:
        self.connections = connections
        self.count = size

    @abstractmethod
    async def set_up(self) -> None:
        """Make the data. Called once, in a database with empty tables."""

    @abstractmethod
    def contenders(self) -> Sequence[Contender]: ...

    @abstractmethod
    def goals(self) -> Sequence[Goal]: ...

    @abstractmethod
    async def reset(self, contender: Contender) -> None:
        """Bring the data back into the state from which every run starts. Not timed."""

    @abstractmethod
    async def verify(self, contender: Contender, returned: Any) -> None:
        """Raise `NotTheSameWork` unless the run did what it was to. Not timed."""

    async def tear_down(self) -> None:  # noqa: B027  # most have nothing to stop
        """Stop what `set_up` has started."""

    async def left_out(self) -> str | None:
        """Why it can't be run here, if so."""
        return None

    def rounds(self, asked: int) -> int:
        """More for what is noisy, fewer for what isn't."""
        return asked


async def measure(
    comparison: Comparison, *, rounds: int, say: Callable[[str], None] = lambda _text: None
) -> dict[str, Figures]:
    """Run the contenders in turn, `rounds` times; each round begins with another one. Raises `NotTheSameWork`."""
    contenders = comparison.contenders()
    figures = {each.name: Figures(each.role, each.units, each.lacks) for each in contenders}
    # What is loaded by now stays, and isn't walked through at the expense of whoever runs when a collection is due: a
    # service does the same when it has started.
    gc.collect()
    gc.freeze()
    if comparison.warm_up:
        for contender in contenders:
            say(f"warm-up: {contender.name}")
            await _run(comparison, contender)
    for number in range(rounds):
        for place in range(len(contenders)):
            contender = contenders[(number + place) % len(contenders)]
            if contender.rounds is not None and number >= contender.rounds:
                continue
            say(f"round {number + 1} of {rounds}: {contender.name}")
            measured = await _run(comparison, contender)
            figures[contender.name].seconds.append(measured.seconds)
            if measured.megabytes is not None:
                figures[contender.name].megabytes.append(measured.megabytes)
            if measured.latency is not None:
                figures[contender.name].latencies.append(measured.latency)
    return figures


def outcome(goal: Goal, figures: Mapping[str, Figures]) -> Outcome:
    """The goal's figure in every round, the contenders' figures of one round by each other."""
    ours = figures[goal.contender]
    if goal.kind == "MB":
        values = ours.megabytes
        return Outcome(goal, statistics.median(values), min(values), max(values))
    assert goal.against is not None
    theirs = figures[goal.against]
    if goal.kind == "of the p50":
        values = [mine / other for (mine, _), (other, _) in zip(ours.latencies, theirs.latencies, strict=True)]
    else:
        times = [
            (mine / ours.units) / (other / theirs.units)
            for mine, other in zip(ours.seconds, theirs.seconds, strict=False)  # a slow one has fewer rounds
        ]
        values = [1 / each for each in times] if goal.kind == "times as fast" else times
    return Outcome(goal, statistics.median(values), min(values), max(values))


async def _run(comparison: Comparison, contender: Contender) -> Measured:
    await comparison.reset(contender)
    await comparison.connections.driver.execute("CHECKPOINT")
    gc.collect()
    started = time.perf_counter()
    returned = await contender.work()
    seconds = time.perf_counter() - started
    await comparison.verify(contender, returned)
    return returned if isinstance(returned, Measured) else Measured(seconds)


def same(what: str, found: object, wanted: object) -> None:
    """Raise `NotTheSameWork` if they differ."""
    if found != wanted:
        raise NotTheSameWork(f"{what}: {found!r} instead of {wanted!r}")


def close(what: str, found: float, wanted: float) -> None:
    if not math.isclose(found, wanted):
        raise NotTheSameWork(f"{what}: {found!r} instead of {wanted!r}")
