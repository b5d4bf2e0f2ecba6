"""The rows that decisions read and change in memory: accounts, holds, and transfers to reverse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from shop.ledger.models import AccountState, TransferState
from shop.ledger.requests import TransferRecord


@dataclass(slots=True)
class PostingAccount:
    """The columns of an account that a decision reads. The decision changes the object before the row is written.

    `id`, `user_id` and `currency` of an account never change: a trigger rejects that.
    """

    id: UUID
    user_id: UUID | None
    currency: str
    balance: int
    held: int
    allows_negative: bool
    overdraft_limit: int
    balance_limit: int | None
    state: AccountState
    entry_count: int
    revision: int
    updated_at: datetime


@dataclass(slots=True)
class Reversible:
    """A posted transfer that a request reverses. `reversed_amount` is the part that has been reversed."""

    id: UUID
    from_account_id: UUID
    to_account_id: UUID
    amount: int
    effective_at: datetime
    reversed_amount: int


@dataclass(slots=True)
class Hold:
    """A row of `pending_transfers`, and two flags that are not stored.

    `has_new_state` is true after a decision has changed `state`, so the row must be written. `is_expiry_reported` is
    true after a request to void an expired hold got the result `voided`. In the transaction that voids the hold, only
    the first such request gets this result. The others are refused.
    """

    id: UUID
    from_account_id: UUID
    to_account_id: UUID
    amount: int
    currency: str
    description: str | None
    details: Mapping[str, str] | None
    effective_at: datetime | None
    group_id: UUID | None
    state: TransferState
    expires_at: datetime
    created_at: datetime
    posted_by: UUID | None
    settled_at: datetime | None = None
    settled_by: UUID | None = None
    has_new_state: bool = False
    is_expiry_reported: bool = False

    @property
    def is_voided_by_expiry(self) -> bool:
        """Whether the hold was voided because it expired. Expired holds are voided before any request is decided."""
        return self.state is TransferState.VOIDED and self.settled_at is not None and self.settled_at >= self.expires_at

    def to_record(self, state: TransferState) -> TransferRecord:
        """The hold as a result, in this state."""
        return TransferRecord(
            id=self.id,
            from_account_id=self.from_account_id,
            from_entry_number=None,
            to_account_id=self.to_account_id,
            to_entry_number=None,
            amount=self.amount,
            currency=self.currency,
            description=self.description,
            details=self.details,
            effective_at=self.effective_at or self.created_at,
            reverses_id=None,
            reversed_total=None,
            group_id=self.group_id,
            created_at=self.created_at,
            posted_by=self.posted_by,
            state=state,
            expires_at=self.expires_at if state is TransferState.PENDING else None,
            held_amount=self.amount,
        )
