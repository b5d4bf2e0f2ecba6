"""Retries with random delays. They use tenacity, which is imported only after a first attempt has failed."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from tenacity import RetryCallState

ResultT = TypeVar("ResultT")

# The limits of the first and of the longest random delay. A conflict usually ends within milliseconds.
_FIRST_WAIT_SECONDS: Final = 0.01
_LONGEST_WAIT_SECONDS: Final = 1.0


async def call_with_retries(
    once: Callable[[], Awaitable[ResultT]],
    *,
    on: tuple[type[Exception], ...],
    attempts: int,
    timeout: float | None = None,  # noqa: ASYNC109  # limits the start of a retry, not the work
    has_time: Callable[[float], bool] | None = None,
) -> ResultT:
    """Call `once`, and return its result. If it raises one of the errors `on`, it is called again.

    `once` is called at most `attempts` times. No retry starts later than `timeout` seconds after the first start. After
    the last attempt its error is raised. Before each retry there is a random delay of up to 10 ms, 20 ms, 40 ms … 1 s
    ("full jitter", <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>).

    `has_time` is called before each retry, with the expected seconds of the retry: its delay, plus the duration of the
    previous attempt. If it returns False, the error is raised.
    """
    started = attempt_started = time.monotonic()
    failed: Exception | None
    try:
        return await once()
    except on as error:
        failed = error

    # imported here, so that only processes with a failure load it
    from tenacity import (
        AsyncRetrying,
        retry_if_exception_type,
        stop_after_attempt,
        stop_any,
        stop_before_delay,
        wait_random_exponential,
    )

    async def attempt() -> ResultT:
        nonlocal attempt_started, failed
        if failed is not None:  # the first attempt counts, although it ran without tenacity
            first, failed = failed, None
            raise first
        attempt_started = time.monotonic()
        return await once()

    def must_stop(state: RetryCallState) -> bool:
        seconds = time.monotonic() - attempt_started + state.upcoming_sleep
        return limit(state) or (has_time is not None and not has_time(seconds))

    remaining = math.inf if timeout is None else timeout - (time.monotonic() - started)
    limit = stop_any(stop_after_attempt(attempts), stop_before_delay(remaining))
    retrying = AsyncRetrying(
        retry=retry_if_exception_type(on),
        stop=must_stop,
        wait=wait_random_exponential(multiplier=_FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS),
        reraise=True,
    )
    return await retrying(attempt)
