"""The time of PostgreSQL's clock, computed without a query."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

_KEEP_SECONDS: Final = 60.0
# NTP adjusts the rate of each of the two clocks by up to 500 ppm, so they may drift apart by 1000 ppm. With this factor
# the computed time never gets ahead of the database's clock. In `_KEEP_SECONDS` it falls at most 120 ms behind.
_RATE: Final = 0.999


class DatabaseClock:
    """PostgreSQL's time, computed from the last `clock_timestamp()`. The wall clock of the process isn't used.

    Pass the value of `clock_timestamp()` to `learn`. `now` adds the time that has passed since then on the monotonic
    clock. The result lags behind PostgreSQL's clock by at least the time that the value took to reach this process. It
    is ahead only if PostgreSQL's clock was set back, or after a failover. So a statement that writes this time should
    compare it with `clock_timestamp()`. If the statement rejects the time, call `forget`, and then `learn` with the
    time that the statement returned.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._learned: tuple[datetime, float] | None = None

    def learn(self, at: datetime) -> None:
        """Set the time. `at` is the `clock_timestamp()` of a statement whose result has just arrived.

        `at` is ignored if `now` is later. Then `now` is closer to PostgreSQL's clock than `at` is.
        """
        known = self.now()
        if known is None or known < at:
            self._learned = (at, self._monotonic())

    def forget(self) -> None:
        """Discard the time. `now` is None until the next call of `learn`."""
        self._learned = None

    def now(self) -> datetime | None:
        """The database's time. None if no time was set in the last 60 seconds: then read `clock_timestamp()`."""
        if self._learned is None:
            return None
        at, then = self._learned
        passed = self._monotonic() - then
        return at + timedelta(seconds=passed * _RATE) if passed <= _KEEP_SECONDS else None
