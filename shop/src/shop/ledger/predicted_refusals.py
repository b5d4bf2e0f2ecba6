"""Predict which requests of a batch are refused. The statement verifies the prediction before it posts anything.

Without a prediction, a batch with a refusal is declined, and sent again with the refusal to store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

from shop.ledger.account_cache import AccountCache
from shop.ledger.basic_posting import ExpectedState
from shop.ledger.basic_refusals import Refused, find_refused
from shop.ledger.models import AccountState
from shop.ledger.ownership import find_credit_refusal, find_debit_refusal, owns
from shop.ledger.requests import MAX_AMOUNT, TransferRequest

# If a balance is in this range, it is a bigint after each transfer, because an amount is at most `MAX_AMOUNT`.
_ORDINARY_BALANCES: Final = range(1 - MAX_AMOUNT, MAX_AMOUNT)


class Prediction(NamedTuple):
    """The refused items of a batch, by position, and the states of accounts on which their refusals depend."""

    refused: dict[int, Refused]
    states: dict[UUID, ExpectedState]


NO_PREDICTION: Final = Prediction({}, {})


def predict_refusals(items: Sequence[Sequence[TransferRequest]], known: AccountCache) -> Prediction:
    """Predict which items of a batch are refused. Only items with a single request are considered.

    A refusal is predicted only if `find_refused` finds it, too, and if both accounts are known. So it is never
    predicted if an account doesn't exist, or if the debited account doesn't belong to the customer. Nor is it
    predicted if another request of the batch has the same key: the answer of the first one decides that of the other
    one, so both are decided under locks.
    """
    likely: dict[int, TransferRequest] = {}
    refusing: set[UUID] = set()
    for position, item in enumerate(items):
        request = item[0]
        if len(item) > 1 or not known.has_limited((request.from_account_id, request.to_account_id)):
            continue
        account = _find_refusing(request, known)
        if account is not None:
            likely[position] = request
            refusing.add(account)
    if not likely:
        return NO_PREDICTION
    found, uses = find_refused(items, known, refusing), _count_keys(items)
    prediction = Prediction({}, {})
    for position, request in likely.items():
        if position in found and uses[request.scope, request.key] < 2:
            prediction.refused[position] = found[position]
            _add_states(prediction.states, request, known)
    return prediction


def _count_keys(items: Sequence[Sequence[TransferRequest]]) -> Counter[tuple[str, str | None]]:
    """How many requests have each key."""
    return Counter((request.scope, request.key) for item in items for request in item if request.key is not None)


def _find_refusing(request: TransferRequest, known: AccountCache) -> UUID | None:
    """The account that refuses this request if the known states are current. None if that isn't certain."""
    debit, credit, amount = known.find(request.from_account_id), known.find(request.to_account_id), request.amount
    if debit is None or credit is None or debit is credit or not owns(request.posted_by, debit):
        return None
    if debit.currency != credit.currency or request.currency not in (None, debit.currency):
        return None
    if type(amount) is not int or not 1 <= amount <= MAX_AMOUNT:
        return None
    # a hold may have expired
    if any(account.held or account.balance not in _ORDINARY_BALANCES for account in (debit, credit)):
        return None
    if find_debit_refusal(debit, amount) is not None:
        return debit.id
    return None if find_credit_refusal(credit, amount) is None else credit.id


def _add_states(states: dict[UUID, ExpectedState], request: TransferRequest, known: AccountCache) -> None:
    """Add the states in which the accounts refuse the request for the same reason as in the known ones."""
    debit, credit, amount = known.find(request.from_account_id), known.find(request.to_account_id), request.amount
    assert debit is not None
    assert credit is not None
    assert amount is not None
    # The debit is refused if the balance is below its limit. The credit is refused if it is at or above its limit.
    debit_limit = None if debit.allows_negative else amount - debit.overdraft_limit
    credit_limit = None if credit.balance_limit is None else credit.balance_limit - amount + 1
    for account, limit in ((debit, debit_limit), (credit, credit_limit)):
        lowest, highest = _ORDINARY_BALANCES[0], _ORDINARY_BALANCES[-1]
        if limit is not None and account.state is AccountState.OPEN:
            if account.balance < limit:
                highest = min(highest, limit - 1)
            else:
                lowest = max(lowest, limit)
        if (earlier := states.get(account.id)) is not None:
            lowest, highest = max(lowest, earlier.lowest_balance), min(highest, earlier.highest_balance)
        states[account.id] = ExpectedState(account.revision, lowest, highest)
