"""The states of accounts that this process has read lately. Refusals are predicted from them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from copy import copy
from datetime import UTC, datetime
from itertools import islice
from typing import Final
from uuid import UUID

from shop.ledger.models import AccountState
from shop.ledger.ownership import owns
from shop.ledger.requests import TransferRequest
from shop.ledger.snapshots import PostingAccount

# Refusals become frequent if a batch has one, and one of this number of batches before it had one, too. They become
# rare after this number of batches without one.
_FREQUENT_BATCHES: Final = 32
# The states of so many accounts take about 10 MB.
_MAX_ACCOUNTS: Final = 20_000


class AccountCache:
    """The states of accounts, while refusals are frequent. Otherwise it is empty, and nothing is read or kept.

    The states may be old, because another transaction may have changed an account. So a decision on them must be
    verified.
    """

    # `find_refused` reads these two. A refusal doesn't depend on the time, and no account must have a certain owner,
    # because `predict_refusals` leaves out the requests that debit an account of another customer.
    at: Final = datetime(1970, 1, 1, tzinfo=UTC)
    owners: Final[Mapping[UUID, UUID]] = {}

    def __init__(self) -> None:
        self._accounts: dict[UUID, PostingAccount] = {}
        self._limited: dict[UUID, PostingAccount] = {}  # those that may refuse a transfer
        self._recent_batches_left = 0
        self._used_batches_left = 0

    @property
    def is_used(self) -> bool:
        """Whether refusals are frequent."""
        return self._used_batches_left > 0

    def record_batch(self, *, has_refusal: bool) -> None:
        """Count a batch, and find out whether refusals are frequent."""
        was_recent = self._recent_batches_left > 0
        self._recent_batches_left = _FREQUENT_BATCHES if has_refusal else max(self._recent_batches_left - 1, 0)
        if has_refusal and was_recent:
            self._used_batches_left = _FREQUENT_BATCHES
        elif self._used_batches_left:
            self._used_batches_left -= 1
            if not self._used_batches_left:
                self._clear()

    def find_unknown(self, requests: Iterable[TransferRequest]) -> set[UUID]:
        """The accounts of these requests whose states must be read.

        The debited account of another customer is always one of them, so that its refusal takes as long as that of an
        account that doesn't exist.
        """
        known, unknown = self._accounts, set()
        for request in requests:
            debit = known.get(request.from_account_id)
            if debit is None or (request.posted_by is not None and not owns(request.posted_by, debit)):
                unknown.add(request.from_account_id)
            if request.to_account_id not in known:
                unknown.add(request.to_account_id)
        return unknown

    def add(self, accounts: Collection[PostingAccount]) -> None:
        """Keep these states, if refusals are frequent."""
        if not self.is_used:
            return
        if len(self._accounts) + len(accounts) > _MAX_ACCOUNTS:
            self._clear()
        for account in islice(accounts, _MAX_ACCOUNTS):  # a list of requests may have any number of accounts
            self._accounts[account.id] = account
            if account.state is AccountState.OPEN and account.allows_negative and account.balance_limit is None:
                self._limited.pop(account.id, None)
            else:
                self._limited[account.id] = account

    def invalidate(self, ids: Iterable[UUID]) -> None:
        """Remove these states, because they are old."""
        for id_ in ids:
            self._accounts.pop(id_, None)
            self._limited.pop(id_, None)

    def has_limited(self, ids: Iterable[UUID]) -> bool:
        """Whether one of these accounts may refuse a transfer."""
        return not self._limited.keys().isdisjoint(ids)

    def update(self, balances: Mapping[UUID, int]) -> None:
        """Replace the balances after a batch. The balance of an account that never refuses isn't needed."""
        for id_ in self._limited.keys() & balances.keys():
            self._limited[id_].balance = balances[id_]

    def find(self, id_: UUID) -> PostingAccount | None:
        """The state of the account."""
        return self._accounts.get(id_)

    def read(self, ids: Iterable[UUID]) -> dict[UUID, PostingAccount]:
        """Copies of the states of these accounts."""
        return {id_: copy(account) for id_ in ids if (account := self._accounts.get(id_)) is not None}

    def _clear(self) -> None:
        self._accounts.clear()
        self._limited.clear()
