"""Between whom money is transferred."""

from __future__ import annotations

from typing import Final

SPREAD: Final = "spread"
ZIPF: Final = "zipf"
HOT: Final = "hot"

ACCOUNTS: Final = {SPREAD: 1_000, ZIPF: 100_000, HOT: 1_000}
"""How many accounts take part; in `hot` one of them is in every transfer."""
