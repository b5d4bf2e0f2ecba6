"""The faults of a run: the time of each one, and what it may disturb."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

UNLIMITED = 1.0


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """The effects that a fault may have on clients. All others are violations."""

    max_unavailable: float = 0.05
    """The largest share of 503 among the answers to ordinary requests."""
    may_be_unready: bool = False
    """Whether `/readyz` may answer 503."""
    may_break_connections: bool = False
    """Whether connections may be refused or reset, and `/healthz` may be unreachable."""
    recovery_seconds: float = 10.0
    """The longest time from the end of the fault until the service is ready, reads and writes."""

    @property
    def keeps_working(self) -> bool:
        """Whether the service stays ready and answers most requests."""
        return not (self.max_unavailable >= UNLIMITED or self.may_be_unready or self.may_break_connections)


@dataclass(eq=False)
class Inflicted:
    """A fault that was inflicted, and its effects on ordinary requests."""

    name: str
    tolerance: Tolerance
    started: float
    ended: float | None = None
    calm: float | None = None
    """The time at which the service had recovered, or at which the wait for the recovery ended."""
    recovery_seconds: float | None = None
    """None if the service didn't recover in time, or if another fault prevented that."""
    requests: int = 0
    unavailable: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """The problem types of the answers with 503."""
    slowest: float = 0.0

    def overlaps(self, start: float, end: float) -> bool:
        return self.started <= end and (self.calm is None or self.calm >= start)


@dataclass
class Timeline:
    """The faults so far. All times are seconds since the start of the run."""

    inflicted: list[Inflicted] = field(default_factory=list)
    unusable: list[tuple[float, float | None]] = field(default_factory=list)
    """The start and the end of each time in which the database could not be used at all."""
    _origin: float = field(default_factory=time.monotonic)

    def now(self) -> float:
        return time.monotonic() - self._origin

    def begin(self, name: str, tolerance: Tolerance) -> Inflicted:
        self.inflicted.append(Inflicted(name, tolerance, self.now()))
        return self.inflicted[-1]

    def find_overlapping(self, start: float, end: float) -> list[Inflicted]:
        """The faults that were active in this time, or from which the service had not yet recovered."""
        return [each for each in self.inflicted if each.overlaps(start, end)]

    def allows_unready(self, start: float, end: float) -> bool:
        return any(each.tolerance.may_be_unready for each in self.find_overlapping(start, end))

    def allows_breaks(self, start: float, end: float) -> bool:
        return any(each.tolerance.may_break_connections for each in self.find_overlapping(start, end))

    def find_max_unavailable(self, start: float, end: float) -> float:
        """The largest share of 503 that is allowed. Faults that overlap may each cause their own."""
        return min(1.0, sum(each.tolerance.max_unavailable for each in self.find_overlapping(start, end)))

    @contextmanager
    def database_unusable(self) -> Iterator[None]:
        """A time in which the database can't be used, so `/readyz` must not answer 200."""
        started = self.now()
        self.unusable.append((started, None))
        place = len(self.unusable) - 1
        try:
            yield
        finally:
            self.unusable[place] = (started, self.now())

    def was_unusable(self, start: float, end: float) -> bool:
        """Whether the database was unusable during all of this time."""
        return any(each[0] <= start and (each[1] is None or each[1] >= end) for each in self.unusable)
