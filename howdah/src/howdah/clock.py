"""The time of the database's clock, known between two statements."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

_KEEP_SECONDS: Final = 60.0
# Two clocks that NTP adjusts differ by up to 500 ppm each: this process's seconds count for so much less, so that its
# time falls behind the database's and never gets ahead of it. In `_KEEP_SECONDS` it falls 60 ms behind.
_RATE: Final = 0.999


class DatabaseClock:
    """PostgreSQL's time, as far as this process knows it without asking. The process's own wall clock isn't used.

    `learn` takes what `clock_timestamp()` returned. `now` is that time plus the time that has passed since, by the
    monotonic clock. It is behind PostgreSQL's clock by the time that the answer took to arrive, and never ahead of it
    unless PostgreSQL's clock was set back, or another server took over. So a statement that writes this time compares
    it with `clock_timestamp()`; if it was refused, call `forget`, and `learn` the time that the statement returned.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._learned: tuple[datetime, float] | None = None

    def learn(self, at: datetime) -> None:
        """`at` is what `clock_timestamp()` returned in a statement whose result has just arrived. Of two times that
        were learned the later one counts: its answer took less time."""
        known = self.now()
        if known is None or known < at:
            self._learned = (at, self._monotonic())

    def forget(self) -> None:
        """Know no time until the next one is learned."""
        self._learned = None

    def now(self) -> datetime | None:
        """The database's time. None if nothing was learned in the last 60 seconds: read `clock_timestamp()` then."""
        if self._learned is None:
            return None
        at, then = self._learned
        passed = self._monotonic() - then
        return at + timedelta(seconds=passed * _RATE) if passed <= _KEEP_SECONDS else None
