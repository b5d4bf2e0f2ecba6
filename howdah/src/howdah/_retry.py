"""Trying again what lost a race: tenacity does the waiting, and costs nothing while nothing fails."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

ResultT = TypeVar("ResultT")

_FIRST_WAIT_SECONDS: Final = 0.01
_LONGEST_WAIT_SECONDS: Final = 1.0


async def retried(
    once: Callable[[], Awaitable[ResultT]],
    *,
    on: tuple[type[Exception], ...],
    attempts: int,
    timeout: float | None = None,  # noqa: ASYNC109  # a bound on starting again, not on the work
) -> ResultT:
    """What `once` returns, tried at most `attempts` times while it raises one of these errors, and not begun again
    later than `timeout` seconds after the first start; then the last error is raised.

    Between them it waits at random up to 10 ms, 20 ms, 40 ms … 1 s ("full jitter",
    <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>).
    """
    started = time.monotonic()
    failed: Exception | None
    try:
        return await once()
    except on as error:
        failed = error

    async def attempt() -> ResultT:
        nonlocal failed
        if failed is not None:  # the first attempt is in the count, and was out of tenacity's way
            first, failed = failed, None
            raise first
        return await once()

    stop = stop_after_attempt(attempts)
    retrying = AsyncRetrying(
        retry=retry_if_exception_type(on),
        stop=stop if timeout is None else stop | stop_before_delay(timeout - (time.monotonic() - started)),
        wait=wait_random_exponential(multiplier=_FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS),
        reraise=True,
    )
    return await retrying(attempt)
