"""Decide which items of a batch are refused, on states of accounts that aren't locked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol
from uuid import UUID

from shop.ledger.posting import Outcome, PostingContext
from shop.ledger.requests import ScopedKey, TransferRequest, TransferResult
from shop.ledger.service import collect_account_ids
from shop.ledger.snapshots import PostingAccount


class Refused(NamedTuple):
    """The results of an item whose requests are all refused, and its keys, which must be stored with them."""

    results: list[TransferResult]
    keys: dict[ScopedKey, Outcome]


class _States(Protocol):
    """The states of accounts on which refusals are decided. `owners` has the customers who must own an account."""

    @property
    def at(self) -> datetime: ...
    @property
    def owners(self) -> Mapping[UUID, UUID]: ...
    def read(self, ids: Iterable[UUID]) -> dict[UUID, PostingAccount]: ...


def find_refused(
    items: Sequence[Sequence[TransferRequest]], states: _States, refusing: Collection[UUID]
) -> dict[int, Refused]:
    """The items that are refused as a whole, by their position in the batch.

    Only items with a `refusing` account are decided, or all items if there is none. Each refused item is refused twice:
    in the order of the batch, and alone, on these states. So its refusal depends on no other item. It stays right
    whatever is posted before the refusal is stored, because the request would have got this answer at the time of the
    states.

    Other items may be posted, or must be decided under locks: those of which only some requests are refused, and those
    with an account that holds money, because the hold may have expired.
    """
    # All items of the refusing accounts are decided, in their order, so the other ones don't matter for them.
    candidates = {
        position: item
        for position, item in enumerate(items)
        if not refusing or any(each.from_account_id in refusing or each.to_account_id in refusing for each in item)
    }
    accounts = states.read({id_ for item in candidates.values() for id_ in collect_account_ids(item)})
    batch = PostingContext(accounts=accounts, at=states.at)
    found: dict[int, Refused] = {}
    for position, item in candidates.items():
        if _are_refused(batch.decide(item)) and all(_is_certain(request, accounts, states) for request in item):
            alone = PostingContext(accounts=states.read(collect_account_ids(item)), at=states.at)
            results = alone.decide(item)
            if _are_refused(results):
                found[position] = Refused(results, alone.keys)
    return found


def _are_refused(results: Sequence[TransferResult]) -> bool:
    return all(result.refusal is not None for result in results)


def _is_certain(request: TransferRequest, accounts: Mapping[UUID, PostingAccount], states: _States) -> bool:
    """Whether the states of the request's accounts are known, and don't change when a hold expires."""
    for id_ in (request.from_account_id, request.to_account_id):
        account, owner = accounts.get(id_), states.owners.get(id_)
        if account is not None and account.held:
            return False
        # For the customer who had to own it, an account of others is an unknown account. For other requests it may
        # exist.
        is_debited_by_owner = id_ == request.from_account_id and request.posted_by == owner
        if account is None and owner is not None and not is_debited_by_owner:
            return False
    return True
