"""The rules for transfers of customers, and refusals that show nothing about the accounts of others.

A request with `posted_by` is decided for this customer. They transfer, hold and reverse only from their own accounts.
They post and void only holds to their own accounts: a hold guarantees a payment, so the payer can't take it back. An
account or transfer of others is refused like one that doesn't exist.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from shop.ledger.models import AccountState
from shop.ledger.requests import MAX_BALANCE, Refusal
from shop.ledger.snapshots import PostingAccount

# If both accounts refuse an amount, the refusal that comes first in this order is the answer.
_PRECEDENCE: Final = {
    refusal: position
    for position, refusal in enumerate(
        (
            Refusal.ACCOUNT_CLOSED,
            Refusal.ACCOUNT_FROZEN,
            Refusal.INSUFFICIENT_FUNDS,
            Refusal.LIMIT_EXCEEDED,
            Refusal.BALANCE_OUT_OF_RANGE,
        )
    )
}


def owns(customer: UUID | None, account: PostingAccount | None) -> bool:
    """Whether the account is the customer's own. True for None: operators and the system move the money of everyone."""
    return customer is None or (account is not None and account.user_id == customer)


def find_refusal(
    debit: PostingAccount, credit: PostingAccount, amount: int, *, customer: UUID | None
) -> Refusal | None:
    """The reason why the accounts don't allow a transfer of this amount.

    A customer gets the reasons of their own account. If the other account is the reason, the refusal doesn't say why.
    """
    on_debit, on_credit = find_debit_refusal(debit, amount), find_credit_refusal(credit, amount)
    if on_debit is None and on_credit is None:
        return None
    if not owns(customer, credit):
        return on_debit or Refusal.COUNTERPARTY_UNAVAILABLE
    if not owns(customer, debit):
        return on_credit or Refusal.COUNTERPARTY_UNAVAILABLE
    return min((each for each in (on_debit, on_credit) if each is not None), key=_PRECEDENCE.__getitem__)


def find_debit_refusal(account: PostingAccount, amount: int) -> Refusal | None:
    """The reason why this amount can't be debited from the account, or None."""
    if account.state is not AccountState.OPEN:
        return _refuse_state(account)
    remaining = account.balance - account.held - amount
    if remaining < -account.overdraft_limit and not account.allows_negative:
        return Refusal.INSUFFICIENT_FUNDS
    return Refusal.BALANCE_OUT_OF_RANGE if remaining < -MAX_BALANCE else None


def find_credit_refusal(account: PostingAccount, amount: int) -> Refusal | None:
    """The reason why this amount can't be credited to the account, or None."""
    if account.state is not AccountState.OPEN:
        return _refuse_state(account)
    balance = account.balance + amount
    if account.balance_limit is not None and balance > account.balance_limit:
        return Refusal.LIMIT_EXCEEDED
    return Refusal.BALANCE_OUT_OF_RANGE if balance > MAX_BALANCE else None


def _refuse_state(account: PostingAccount) -> Refusal:
    return Refusal.ACCOUNT_CLOSED if account.state is AccountState.CLOSED else Refusal.ACCOUNT_FROZEN
