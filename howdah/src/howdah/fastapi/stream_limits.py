"""How slow a client may be, and how many bulk requests may use the database at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy.pool import Pool, QueuePool

from howdah.fastapi.problem import ProblemException
from howdah.serving.limits import check_positive

ResultT = TypeVar("ResultT")

_POOL_DIVISOR: Final = 4
# For a response that has no session.
_DEFAULT_STREAMS: Final = 5
_DEFAULT_WAIT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """The limits of a body that is read in parts: by `BodyRows`, `read_lines` and `answer_lines`.

    - `max_bytes`: a longer body gets a 413. `BodyRows` stores the body in a temporary file, if it is large.
    - `max_array_bytes`: the same for a JSON array, which is read into memory as a whole.
    - `window_seconds` and `min_bytes_per_second`: a client that sends nothing for the whole window, or fewer bytes per
      second on average, gets a 408.
    - `max_seconds`: a client that the service has waited for this long in total gets a 408.

    Only the time in which the service waits for the client counts.
    """

    max_bytes: int = 1_073_741_824
    max_array_bytes: int = 16_777_216
    min_bytes_per_second: float = 1_000.0
    window_seconds: float = 20.0
    max_seconds: float = 600.0

    def __post_init__(self) -> None:
        check_positive(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SendLimits:
    """The limits of a response that is sent in parts. At a limit the client is disconnected.

    - `window_seconds` and `min_bytes_per_second`: the client receives nothing for the whole window, or fewer bytes per
      second on average. The window must be longer than the pauses of a slow client. The kernel may buffer several
      megabytes, and while the client reads these, nothing is sent.
    - `max_seconds`: the service has waited for the client for this long in total.
    """

    min_bytes_per_second: float = 1_000.0
    window_seconds: float = 60.0
    max_seconds: float = 600.0

    def __post_init__(self) -> None:
        check_positive(self)


class TooManyStreams(ProblemException):
    """Other exports and bulk uploads use all connections that they may use (503, `too-many-streams`)."""

    def __init__(self, detail: str) -> None:
        super().__init__(HTTPStatus.SERVICE_UNAVAILABLE, "too-many-streams", detail)


class ClientPace:
    """The time in which the service waits for one client. `wait` raises `TimeoutError` at a limit.

    The client has a credit of `window_seconds`. Waiting uses it up, and each byte restores a part of it. So short
    pauses are allowed. The credit doesn't grow above `window_seconds`, however fast the client is.
    """

    def __init__(self, limits: BodyLimits | SendLimits) -> None:
        self._limits = limits
        self._credit = limits.window_seconds
        self._remaining = limits.max_seconds

    async def wait(self, awaitable: Awaitable[ResultT]) -> ResultT:
        loop = asyncio.get_running_loop()
        started = loop.time()
        async with asyncio.timeout(max(0.0, min(self._credit, self._remaining))):
            result = await awaitable
        waited = loop.time() - started
        self._credit -= waited
        self._remaining -= waited
        return result

    def count(self, size: int) -> None:
        """The client has sent or received this many bytes."""
        restored = self._credit + size / self._limits.min_bytes_per_second
        self._credit = min(self._limits.window_seconds, restored)


class StreamTicket:
    """The right of one export or bulk upload to use the database. At the latest, it is released when it is deleted."""

    def __init__(self, semaphore: asyncio.Semaphore) -> None:
        self._semaphore: asyncio.Semaphore | None = semaphore

    def release(self) -> None:
        semaphore, self._semaphore = self._semaphore, None
        if semaphore is not None:
            semaphore.release()

    def __del__(self) -> None:  # for a response that is never sent
        self.release()


async def take_ticket(pool: Pool | None) -> StreamTicket:
    """Wait until fewer than a quarter of the pool's connections are used by exports and bulk uploads.

    Without a pool five of them run at a time. Raises `TooManyStreams` after the pool's `pool_timeout`.
    """
    count, seconds = _DEFAULT_STREAMS, _DEFAULT_WAIT_SECONDS
    key: object = asyncio.get_running_loop()
    if isinstance(pool, QueuePool):
        key, count, seconds = pool, max(1, pool.size() // _POOL_DIVISOR), pool.timeout()
    semaphore = _semaphores.get(key)
    if semaphore is None:
        semaphore = _semaphores[key] = asyncio.Semaphore(count)
    try:
        async with asyncio.timeout(seconds):
            await semaphore.acquire()
    except TimeoutError as error:
        raise TooManyStreams(f"{count} other exports and bulk uploads are running: try again later") from error
    return StreamTicket(semaphore)


_semaphores: WeakKeyDictionary[object, asyncio.Semaphore] = WeakKeyDictionary()
