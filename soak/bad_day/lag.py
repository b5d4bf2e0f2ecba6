"""How long the event loop of the run itself was busy.

The run shares its processors with the service and PostgreSQL. What it was too busy to notice isn't the service's fault.
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
