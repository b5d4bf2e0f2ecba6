"""Limits for the requests of a process that are in progress or wait. The excess is rejected at once.

configure_app(app, database=..., load_limit=LoadLimit(target_seconds=0.2))

By Little's law, the number of requests in progress is the throughput times the average time in progress. So the limit
that keeps this time at its target can be found without knowing the throughput. The limit grows if it was reached and
the time is below the target. It shrinks in proportion if the time is above the target. This is `AIMDLimit` of Netflix's
concurrency-limits (<https://github.com/Netflix/concurrency-limits>), with the bounded step of its `GradientLimit`.

A few hundred requests may wait in front: a burst, or clients that each wait for their answer. The queue is standing if
there are more requests, or if one has waited for too long. Then a new request is rejected on arrival unless its
expected wait is short. A standing queue also has a deadline, as in "Fail at Scale"
(<https://queue.acm.org/detail.cfm?id=2839461>).

The queue is first in, first out: all accepted requests can be answered in time, so answering the newest first would
gain nothing.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from howdah.serving.limits import check_positive

TICK_SECONDS: Final = 0.1
"""The interval in which the limit is adapted."""

_INITIAL_LIMIT: Final = 128
# Netflix's gradient is at least 0.5. Here an interval is only 0.1 s, so that one pause of the process has little
# effect.
_MAX_DECREASE: Final = 0.8
_INCREASE: Final = 1.05
# The share of `max_wait_seconds` that a new request may expect to wait. The rest is a reserve, because the throughput
# may fall while it waits.
_EXPECTED_WAIT_SHARE: Final = 0.1
# Requests that are started in one iteration of the event loop. The work of all of them delays the next iteration, in
# which further requests are read and rejected.
_STARTS_PER_ITERATION: Final = 16
# The weight of the last interval in the average throughput.
_RATE_WEIGHT: Final = 0.3
# The shortest queue if it is standing. Requests come in bursts, even if few of them are answered in a second.
_MIN_WAITING: Final = 16
# An interval that was longer is a pause of the process, such as that of a virtual machine. It says nothing about load.
_PAUSE_SECONDS: Final = 3 * TICK_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadLimit:
    """The limits of one process. Times are in seconds. Raises `ValueError`.

    - `target_seconds` is how long requests may be in progress on average. Fewer are admitted if they take longer. A
      request doesn't count while it streams, while it waits for its client, and after its response.
    - `min_in_progress` and `max_in_progress` bound the limit that is found. If requests take longer than the target
      even without load, raise the minimum to their number per second times their duration.
    - `max_waiting` requests may wait, for example after a burst. Each of them has a connection, and the excess needs
      connections, too, to be rejected. So choose at most half of the server's `max_connections`.
    - `max_wait_seconds` is how long a request may wait in the queue. If there were more than `max_waiting` requests, or
      if one has waited for longer, the queue is standing. Until it is empty, a request is rejected on arrival if its
      expected wait is more than 0.1 of `max_wait_seconds`. If the queue stands for longer than `max_wait_seconds`,
      requests that have waited for longer are rejected.
    """

    target_seconds: float = 0.05
    min_in_progress: int = 64
    max_in_progress: int = 1_000
    max_wait_seconds: float = 0.75
    max_waiting: int = 512

    def __post_init__(self) -> None:
        check_positive(self)
        if self.max_in_progress < self.min_in_progress:
            raise ValueError(
                f"max_in_progress ({self.max_in_progress}) must not be less than min_in_progress "
                f"({self.min_in_progress})"
            )


class Overloaded(Exception):
    """The request is rejected: too many are in progress, and too many are waiting."""


@dataclass(frozen=True, slots=True)
class LoadStatus:
    """Figures for monitoring. `rejected` only grows."""

    in_progress: int
    limit: int
    waiting: int
    rejected: int


class LoadLimiter:
    """Admits requests. It belongs to one event loop, whose tasks call it; a tick adapts the limit."""

    def __init__(self, options: LoadLimit) -> None:
        self._options = options
        self._rejected = 0
        self.reset()

    def reset(self) -> None:
        """Forget all requests, for another event loop."""
        options = self._options
        self._limit = float(min(max(_INITIAL_LIMIT, options.min_in_progress), options.max_in_progress))
        # a low estimate: in a queue that is too long, all requests would miss their deadline
        self._rate = options.min_in_progress / options.target_seconds
        self._in_progress = 0
        self._expected = 0
        self._started = 0  # in this iteration of the event loop
        self._queue: OrderedDict[asyncio.Future[None], float] = OrderedDict()
        self._standing_since: float | None = None  # since when the queue has been too long to be a burst
        self._paused = 0.0  # seconds in which the process didn't run
        self._max_waiting = 0
        self._set_max_waiting()
        self.start_interval(0.0)

    def is_full(self) -> bool:
        """Whether a new request must be rejected. A caller that rejects it counts it with `count_rejected`."""
        return self._in_progress + len(self._queue) + self._expected >= self._limit + self._max_waiting

    def is_idle(self) -> bool:
        """Whether no request is in progress or waits."""
        return self._in_progress <= 0 and not self._queue

    def expect(self) -> None:
        """Count a request whose task has been created, but hasn't called `enter` yet.

        A server reads the requests of many connections before it runs the first of their tasks.
        """
        if not self._expected:
            asyncio.get_running_loop().call_soon(self._forget_expected)
        self._expected += 1

    def _forget_expected(self) -> None:
        """The tasks of all expected requests start in this iteration of the event loop."""
        self._expected = 0

    def count_rejected(self) -> None:
        self._rejected += 1
        self._has_rejected = True
        if self._standing_since is None:
            self._begin_standing(asyncio.get_running_loop().time() - self._paused)

    def try_enter(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether the request may start now. Call `leave` or `pause` afterwards. If it may not, call `enter`."""
        if self._queue or self._in_progress >= self._limit or self._started >= _STARTS_PER_ITERATION:
            return False
        self._count_start(loop)
        return True

    async def enter(self, *, is_expected: bool = False) -> None:
        """Wait until the request may start. Call `leave` or `pause` afterwards.

        Raises `Overloaded` if it is rejected. A request that `is_expected` was counted by `expect`, so it may wait.
        """
        loop = asyncio.get_running_loop()
        if self.try_enter(loop):
            return
        if not is_expected and self.is_full():
            self.count_rejected()
            raise Overloaded
        waiter: asyncio.Future[None] = loop.create_future()
        self._queue[waiter] = loop.time() - self._paused
        try:
            await waiter
        except BaseException:
            is_admitted = waiter.done() and not waiter.cancelled() and waiter.exception() is None
            if self._queue.pop(waiter, None) is None and is_admitted:  # admitted, and cancelled before it could run
                self._release()
            raise

    def leave(self, seconds: float) -> None:
        """Count a request that was answered after so many seconds in progress."""
        self._completed += 1
        self._seconds += seconds
        self._release()

    def pause(self) -> None:
        """Stop counting the request while its client decides how long it takes."""
        self._release()

    def resume(self) -> None:
        """Count the request again. It doesn't wait, because it has been admitted before."""
        self._in_progress += 1

    def _release(self) -> None:
        self._in_progress -= 1
        if self._queue:
            self._start_waiting()

    def _may_start(self) -> bool:
        if self._in_progress >= self._limit:
            self._has_reached_limit = True
            return False
        return self._started < _STARTS_PER_ITERATION

    def _count_start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._in_progress += 1
        if not self._started:
            loop.call_soon(self._begin_iteration)
        self._started += 1

    def _begin_iteration(self) -> None:
        self._started = 0
        self._start_waiting()

    def _start_waiting(self) -> None:
        while self._queue and self._may_start():
            waiter, _ = self._queue.popitem(last=False)
            if not waiter.done():
                self._count_start(waiter.get_loop())
                waiter.set_result(None)

    def start_interval(self, now: float) -> None:
        """Start an interval, in which no request has been answered yet."""
        self._interval_started = now
        self._completed = 0
        self._seconds = 0.0
        self._has_reached_limit = False
        self._has_rejected = False

    def tick(self, now: float) -> None:
        """Adapt the limit, and reject the requests whose deadline has passed."""
        elapsed = now - self._interval_started
        if elapsed <= 0:
            return
        if not self._queue and not self._has_rejected:
            self._standing_since = None
        if elapsed > _PAUSE_SECONDS:
            self._paused += elapsed - TICK_SECONDS
        else:
            self._adapt(self._completed / elapsed)
        self.start_interval(now)
        self._reject_late(now - self._paused)
        self._start_waiting()

    def _adapt(self, rate: float) -> None:
        """Adapt the limit and the length of the queue to the requests of one interval."""
        options = self._options
        if self._completed:
            ratio = options.target_seconds / max(self._seconds / self._completed, 1e-6)
            if ratio < 1:
                self._limit *= max(ratio, _MAX_DECREASE)
            elif self._has_reached_limit:
                self._limit = self._limit * _INCREASE + 1
            self._limit = min(max(self._limit, options.min_in_progress), options.max_in_progress)
        if self._queue or self._has_reached_limit or rate > self._rate:  # otherwise there was less to do
            self._rate += _RATE_WEIGHT * (rate - self._rate)
        self._set_max_waiting()

    def _set_max_waiting(self) -> None:
        options = self._options
        fitting = int(self._rate * options.max_wait_seconds * _EXPECTED_WAIT_SHARE)
        is_standing = self._standing_since is not None
        self._max_waiting = min(max(fitting, _MIN_WAITING), options.max_waiting) if is_standing else options.max_waiting

    def _reject_late(self, now: float) -> None:
        """Reject requests that have waited for too long, if there are more of them than a burst."""
        longest = self._options.max_wait_seconds
        if not self._queue or now - next(iter(self._queue.values())) <= longest:
            return
        if self._standing_since is None:
            self._begin_standing(now)
        elif now - self._standing_since > longest:
            while self._queue and now - next(iter(self._queue.values())) > longest:
                self._reject_waiting(last=False)

    def _begin_standing(self, now: float) -> None:
        """There are more requests than a burst. Reject the newest ones, which have waited least."""
        self._standing_since = now
        self._set_max_waiting()
        while len(self._queue) > self._max_waiting:
            self._reject_waiting(last=True)

    def _reject_waiting(self, *, last: bool) -> None:
        waiter, _ = self._queue.popitem(last)
        if not waiter.done():
            self._rejected += 1
            waiter.set_exception(Overloaded())

    def status(self) -> LoadStatus:
        """The current figures, in this process."""
        return LoadStatus(
            in_progress=self._in_progress,
            limit=int(self._limit),
            waiting=len(self._queue),
            rejected=self._rejected,
        )
