"""The delays of the run's own event loop.

The run shares its processors with the service and PostgreSQL. If it is too busy to read an answer, that isn't a delay
of the service. So these delays are subtracted from the measured times.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

_INTERVAL_SECONDS: Final = 0.05


class LagMeter:
    """Measures the delays of the event loop. `total` is their sum so far, in seconds."""

    def __init__(self) -> None:
        self.total = 0.0

    async def run(self) -> None:
        while True:
            started = time.monotonic()
            await asyncio.sleep(_INTERVAL_SECONDS)
            self.total += max(0.0, time.monotonic() - started - _INTERVAL_SECONDS)
