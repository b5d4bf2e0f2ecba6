"""What the service has acknowledged."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from uuid import UUID

INITIAL_BALANCE = 1_000
UPLOAD_USERS = 1_200
"""The number of users of one upload."""


@dataclass(frozen=True)
class AcknowledgedTransfer:
    id: UUID
    source: str
    target: str
    amount: int


@dataclass
class Model:
    """The answers that clients rely on."""

    accounts: list[str]
    """Each was funded with `INITIAL_BALANCE`."""
    spare_accounts: list[str]
    """Accounts of which nothing is known: requests that nobody waits for move money between them."""
    user_ids: list[str]
    """Users that existed at the start."""
    posted: dict[str, AcknowledgedTransfer] = field(default_factory=dict)
    """By idempotency key."""
    refused: set[str] = field(default_factory=set)
    """The idempotency keys of refused transfers."""
    orders: dict[str, str] = field(default_factory=dict)
    """The id by the article number of the only item, which no other order has."""
    users: dict[str, str] = field(default_factory=dict)
    """The id by the address."""
    uploads: dict[str, int] = field(default_factory=dict)
    """The number of users of each acknowledged upload, by the beginning of their addresses."""
    replays: int = 0
    """Requests that were repeated after their answer, and answered in the same way."""

    def compute_balances(self) -> dict[str, int]:
        balances = Counter(dict.fromkeys(self.accounts, INITIAL_BALANCE))
        for each in self.posted.values():
            balances[each.source] -= each.amount
            balances[each.target] += each.amount
        return dict(balances)
