"""Rows in memory that requests are decided on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from shop.ledger.models import AccountState, TransferState
from shop.ledger.requests import TransferRecord


@dataclass(slots=True)
class PostingAccount:
    """The columns of an account that decisions need. A decision changes them, and then they are written."""

    id: UUID
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
    """A transfer that is to be reversed, and how much of it has been."""

    id: UUID
    from_account_id: UUID
    to_account_id: UUID
    amount: int
    effective_at: datetime
    reversed_amount: int


@dataclass(slots=True)
class Hold:
    """A pending transfer's row. `settled`: the new state must be written. `is_told`: the hold had expired, and a
    request of this list to void it was answered with `voided`."""

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
    settled_at: datetime | None = None
    settled: bool = False
    is_told: bool = False

    @property
    def has_expired(self) -> bool:
        """Whether it was voided at or after its expiry. Expired holds are voided before any request is decided."""
        return self.state is TransferState.VOIDED and self.settled_at is not None and self.settled_at >= self.expires_at

    def shown(self, state: TransferState) -> TransferRecord:
        """As an answer, in this state."""
        return TransferRecord(
            self.id,
            self.from_account_id,
            None,
            self.to_account_id,
            None,
            self.amount,
            self.currency,
            self.description,
            self.details,
            self.effective_at or self.created_at,
            None,
            None,
            self.group_id,
            self.created_at,
            state,
            self.expires_at if state is TransferState.PENDING else None,
            self.amount,
        )
