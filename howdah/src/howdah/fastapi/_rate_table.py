"""How much of a rate limit each client has used, in bounded memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Self

_MIN_ENTRIES: Final = 2


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most `requests` at once, and on average at most `requests` in `seconds`. Raises `ValueError`.

    This is GCRA, a leaky bucket: a client that has used everything gets one request back every `seconds / requests`.
    So in the worst case, a client sends twice the number of requests in one period.
    """

    requests: int
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.requests < 1 or not (self.seconds > 0 and math.isfinite(self.seconds)):
            raise ValueError(f"a rate limit needs at least 1 request and more than 0 s, not {self}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `600/60`: 600 requests in 60 seconds. Raises `ValueError`."""
        requests, separator, seconds = text.partition("/")
        try:
            if not separator:
                raise ValueError
            return cls(int(requests), float(seconds))
        except ValueError:
            raise ValueError(
                f"{text!r} isn't a rate limit: write requests/seconds, such as 600/60 for 600 requests in 60 seconds"
            ) from None

    def __str__(self) -> str:
        return f"{self.requests}/{self.seconds:g}"


class RateTable:
    """The use of one limit by each key. It keeps at most `max_entries` keys.

    The value of a key is its *theoretical arrival time* (GCRA): the time at which nothing of the limit is used. A key
    whose time has passed is the same as an unknown key, so it may be forgotten. There are two generations of keys.
    After a period, or if the newer one is full, the older one is dropped. A key that has used something is forgotten
    only in the second case. There are then so many clients that a limit for each of them doesn't bound their total.
    """

    __slots__ = ("_current", "_interval", "_max_current", "_previous", "_rotate_at", "_seconds", "limit")

    def __init__(self, limit: RateLimit, *, max_entries: int) -> None:
        if max_entries < _MIN_ENTRIES:
            raise ValueError(f"max_entries must be at least {_MIN_ENTRIES}, not {max_entries}")
        self.limit = limit
        self._seconds = limit.seconds
        self._interval = limit.seconds / limit.requests
        self._max_current = max_entries // 2
        self._current: dict[str, float] = {}
        self._previous: dict[str, float] = {}
        self._rotate_at = 0.0

    def __len__(self) -> int:
        return len(self._current) + len(self._previous)

    def hit(self, key: str, now: float) -> float:
        """Count a request at the time `now`, in seconds of a monotonic clock.

        If the result is more than 0, the request exceeds the limit and isn't counted. The result is then the time in
        seconds until the next request is allowed. A result of 0 or less is converted by `remaining`.
        """
        current = self._current
        if now >= self._rotate_at or len(current) >= self._max_current:
            self._previous, self._current = current, {}
            current = self._current
            self._rotate_at = now + self._seconds
        arrival = current.get(key)
        if arrival is None:
            arrival = self._previous.pop(key, now)
            current[key] = arrival
        used = (arrival - now if arrival > now else 0.0) + self._interval
        excess = used - self._seconds
        if excess > self._interval * 1e-6:  # sums of floats aren't exact
            return excess
        current[key] = now + used
        return excess if excess < 0.0 else 0.0

    def remaining(self, excess: float) -> tuple[int, int]:
        """The requests that are left, and the seconds until nothing is used. `excess` is the result of `hit`."""
        if excess > 0.0:
            return 0, math.ceil(self._seconds)
        return int(-excess / self._interval + 1e-6), math.ceil(self._seconds + excess)
