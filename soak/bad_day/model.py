"""The changes that the service has acknowledged."""

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
    """The rows that existed at the start, and the acknowledged changes, which must all be stored at the end."""

    accounts: list[str]
    """Each was funded with `INITIAL_BALANCE`."""
    spare_accounts: list[str]
    """Accounts whose balances aren't checked: clients that don't wait for answers post transfers between them."""
    user_ids: list[str]
    """Users that existed at the start."""
    posted: dict[str, AcknowledgedTransfer] = field(default_factory=dict)
    """The posted transfers, by idempotency key."""
    refused: set[str] = field(default_factory=set)
    """The idempotency keys of refused transfers."""
    orders: dict[str, str] = field(default_factory=dict)
    """The id of each order, by the article number of its only item. No two orders have the same article number."""
    users: dict[str, str] = field(default_factory=dict)
    """The id of each user, by the email address."""
    uploads: dict[str, int] = field(default_factory=dict)
    """The number of users of each acknowledged upload, by the prefix of their email addresses."""
    replays: int = 0
    """The number of requests that were sent again after their answer, with the same key, and answered again."""

    def compute_balances(self) -> dict[str, int]:
        balances = Counter(dict.fromkeys(self.accounts, INITIAL_BALANCE))
        for each in self.posted.values():
            balances[each.source] -= each.amount
            balances[each.target] += each.amount
        return dict(balances)
