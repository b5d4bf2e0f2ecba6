"""The schedule of the faults. The same seed gives the same schedule."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final

MIN_SECONDS: Final = 3.0
MAX_SECONDS: Final = 12.0
MAX_DELAY_SECONDS: Final = 6.0
"""The faults of one round start within this time, so most of them overlap."""
CALM_SECONDS: Final = 12.0
"""The time without faults after a round. The recovery of the service is measured in it."""
MAX_PER_ROUND: Final = 3


@dataclass(frozen=True)
class PlannedFault:
    """A fault of the schedule. `seed` decides everything else that is random about it."""

    start: float
    name: str
    seconds: float
    seed: int


def plan_faults(
    seed: int, seconds: float, groups: Mapping[str, Set[str]], *, max_per_round: int = MAX_PER_ROUND
) -> list[PlannedFault]:
    """Plan faults for this time, in the order of their start.

    `groups` has the groups of each fault. Two faults with a group in common are never in the same round. Each fault
    occurs once before one occurs twice, as far as the groups allow.
    """
    rng = random.Random(seed)
    names = _draw_forever(rng, sorted(groups))
    planned: list[PlannedFault] = []
    postponed: list[str] = []
    start = 0.0
    while True:
        chosen: list[str] = []
        for _ in range(rng.randint(1, min(max_per_round, len(groups)))):
            name = postponed.pop(0) if postponed else next(names)
            if name in chosen or any(groups[name] & groups[each] for each in chosen):
                postponed.append(name)
            else:
                chosen.append(name)
        round_ = [
            PlannedFault(
                round(start + rng.uniform(0, MAX_DELAY_SECONDS), 1),
                name,
                round(rng.uniform(MIN_SECONDS, MAX_SECONDS), 1),
                rng.getrandbits(32),
            )
            for name in chosen
        ]
        start = max(each.start + each.seconds for each in round_) + CALM_SECONDS
        if start > seconds and planned:
            return planned
        planned += sorted(round_, key=lambda each: each.start)
        if start > seconds:
            return planned


def _draw_forever(rng: random.Random, names: Sequence[str]) -> Iterator[str]:
    """All names in random order, again and again."""
    while True:
        yield from rng.sample(names, len(names))
