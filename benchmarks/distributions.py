"""The random distributions from which the accounts of a transfer are drawn."""

from __future__ import annotations

from typing import Final

UNIFORM: Final = "uniform"
ZIPF: Final = "zipf"
HOT: Final = "hot"

ACCOUNTS: Final = {UNIFORM: 1_000, ZIPF: 100_000, HOT: 1_000}
"""The number of accounts in each distribution. In `hot`, every transfer uses the same first account."""

PLAIN_SCHEMA: Final = "plain"
"""The schema of the contenders that move money without Shop: the same tables and indexes, without Shop's triggers.
The triggers would reject their updates, or create the entries for them."""
