"""Call the `apply` of a Coalescer with a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

from howdah._batch_figures import BatchFigures
from howdah._queued_items import QueuedItem, last_deadline
from howdah._retry import call_with_retries
from howdah.errors import BatchAbandoned, ConnectionFailed, TransactionConflict

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
Apply: TypeAlias = Callable[[Sequence[ItemT]], Awaitable[Sequence[ResultT | Exception]]]

# These errors mean that nothing was written, so `apply` can be called again with the same batch.
_RETRIED: Final = (TransactionConflict, ConnectionFailed)


@dataclass(frozen=True, slots=True)
class BatchCalls:
    """The limits of the calls of one Coalescer. Each call is counted in `figures`."""

    max_attempts: int
    submit_timeout: float
    batch_timeout: float
    figures: BatchFigures

    async def run(
        self, apply: Apply[ItemT, ResultT], batch: Sequence[QueuedItem[ItemT, ResultT]]
    ) -> Sequence[ResultT | Exception]:
        """Call `apply`, and again after some errors if the waiters may still get that result in time."""
        items, loop = [entry.item for entry in batch], asyncio.get_running_loop()
        return await call_with_retries(
            lambda: self._call(apply, items),
            on=_RETRIED,
            attempts=self.max_attempts,
            has_time=lambda seconds: loop.time() + seconds < last_deadline(batch, self.submit_timeout),
        )

    async def _call(self, apply: Apply[ItemT, ResultT], items: Sequence[ItemT]) -> Sequence[ResultT | Exception]:
        """Call `apply` within `batch_timeout`, and count the call."""
        self.figures.count_batch(len(items))
        bound = asyncio.timeout(self.batch_timeout)
        try:
            async with bound:
                return await apply(items)
        except TimeoutError as error:
            if not bound.expired():
                raise
            raise BatchAbandoned(
                f"the batch took longer than batch_timeout ({self.batch_timeout:g} s); it may have been written"
            ) from error
