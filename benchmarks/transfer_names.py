"""Between whom money is transferred."""

from __future__ import annotations

from typing import Final

SPREAD: Final = "spread"
ZIPF: Final = "zipf"
HOT: Final = "hot"

ACCOUNTS: Final = {SPREAD: 1_000, ZIPF: 100_000, HOT: 1_000}
"""How many accounts take part; in `hot` one of them is in every transfer."""

BARE: Final = "bare"
"""The schema for those who move money without Shop: the same tables and indexes, without the triggers that would
keep them from it, or make the entries for them."""
