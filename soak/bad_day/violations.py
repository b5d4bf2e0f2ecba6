"""The violations that a run has found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from soak.bad_day.timeline import Timeline

_SHOWN_OF_EACH = 2


@dataclass
class Found:
    """All violations of one kind."""

    first_at: float
    example: str
    count: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    """How often each fault was active at the time."""


@dataclass
class Violations:
    """Collects violations by kind, and prints the first ones when they are found."""

    timeline: Timeline
    found: dict[str, Found] = field(default_factory=dict)

    def add(self, kind: str, example: str, *, since: float | None = None) -> None:
        """Record a violation that was found now. It belongs to the faults that were active since the time `since`."""
        now = self.timeline.now()
        active = {each.name for each in self.timeline.find_overlapping(now if since is None else since, now)}
        entry = self.found.setdefault(kind, Found(now, example))
        entry.count += 1
        entry.faults.update(active)
        if entry.count <= _SHOWN_OF_EACH:
            during = f" [during {', '.join(sorted(active))}]" if active else ""
            print(f"t={now:.1f} s VIOLATION {kind}: {example}{during}", flush=True)

    def __bool__(self) -> bool:
        return bool(self.found)
