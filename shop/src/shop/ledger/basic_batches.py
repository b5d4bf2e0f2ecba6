"""Post batches of basic transfers: one statement for a batch, and another one if refusals were not predicted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from enum import Enum
from typing import Final, TypeAlias
from uuid import UUID

from howdah import ConnectionLost, Database
from shop.ledger.basic_posting import BasicPlan, Declined, KnownState, Posted, plan_basic_posting, post_basic
from shop.ledger.basic_refusals import Refused, find_refused
from shop.ledger.known_accounts import KnownAccounts
from shop.ledger.lock_waits import KeyInUse, LockedForLong
from shop.ledger.predicted_refusals import NO_PREDICTION, Prediction, predict_refusals
from shop.ledger.repository import read_accounts
from shop.ledger.requests import TransferRequest, TransferResult
from shop.ledger.service import collect_account_ids, group_results
from shop.ledger.sharing import SharedAccounts

# The first attempt may find that a prediction is wrong, the second one may find refused items, and the third one
# accounts whose items must be decided under locks.
_MAX_ATTEMPTS: Final = 4
_DECLINED: Final = Declined()


class Undecided(Enum):
    """The result if one statement can't decide the item: it must be decided under locks. Nothing was posted."""

    UNDECIDED = "undecided"


UNDECIDED: Final = Undecided.UNDECIDED

Item: TypeAlias = Sequence[TransferRequest]
# The result of an item, or the exception that `submit` raises for it.
Answer: TypeAlias = list[TransferResult] | Exception


class BasicBatches:
    """Posts batches of basic transfers.

    Each statement is executed in a `turn`, which yields whether it must skip the accounts that others have locked.
    `recover` returns the answers of items after the connection broke during the commit.
    """

    def __init__(
        self,
        database: Database,
        *,
        turn: Callable[[], AbstractAsyncContextManager[bool]],
        recover: Callable[[Sequence[Item], ConnectionLost], Awaitable[Sequence[Answer]]],
    ) -> None:
        self._database, self._turn, self._recover = database, turn, recover
        self._shared_accounts = SharedAccounts()
        self._known_accounts = KnownAccounts()

    @property
    def has_others(self) -> bool:
        """Whether other processes have posted on the same accounts lately."""
        return self._shared_accounts.has_others

    async def post(self, items: Sequence[Item]) -> Sequence[Answer | Undecided]:
        """Post a batch. The result of an item is `UNDECIDED` if it isn't basic, or if the statement can't post it.

        The batch is posted by one transaction at most. So if this method raises, nothing was posted, and the coalescer
        may call it again with a part of the batch.
        """
        answers: list[Answer | Undecided] = [UNDECIDED] * len(items)
        places = basic = [n for n, item in enumerate(items) if all(request.is_basic for request in item)]
        prediction = await self._predict_refusals([items[n] for n in places])
        refused = {places[n]: each for n, each in prediction.refused.items()}
        places = [n for n in places if n not in refused]
        has_refusal = bool(refused)
        for _ in range(_MAX_ATTEMPTS):
            if not places and not refused:
                break
            results = await self._post_all([items[n] for n in places], list(refused.values()), prediction.states)
            if not isinstance(results, Declined):
                for place, answer in zip((*places, *refused), results, strict=True):
                    answers[place] = answer
                break
            prediction = NO_PREDICTION  # it is either wrong, or right at the time of the statement
            if results.is_prediction_wrong:
                places, refused = basic, {}
                continue
            found = self._find_refused([items[n] for n in places], results)
            refused |= {places[n]: each for n, each in found.items()}
            has_refusal = has_refusal or bool(found)
            # Send the others again. If none is refused, send those that need no account which has refused.
            refusing = frozenset() if found else results.refusing
            allowed = [n for n in places if n not in refused and refusing.isdisjoint(collect_account_ids(items[n]))]
            if len(allowed) == len(places):
                break
            places = allowed
        self._known_accounts.record_batch(has_refusal=has_refusal)
        return answers

    async def _predict_refusals(self, items: Sequence[Item]) -> Prediction:
        """Predict the refusals of a batch, if refusals are frequent. Accounts that aren't known are read first."""
        known = self._known_accounts
        if not known.is_used:
            return NO_PREDICTION
        unknown = known.find_unknown(_flatten(items))
        if unknown:
            try:
                async with self._database.autocommit() as connection:
                    known.add((await read_accounts(connection, unknown)).values())
            except ConnectionLost:  # nothing was posted, and the batch may get another connection
                return NO_PREDICTION
        return predict_refusals(items, known)

    def _find_refused(self, items: Sequence[Item], declined: Declined) -> dict[int, Refused]:
        """The refused items of a declined batch, by position."""
        if declined.states is None:
            return {}
        found = find_refused(items, declined.states, declined.refusing)
        if found:
            self._known_accounts.add(declined.states.read(declined.refusing).values())
        return found

    async def _post_all(
        self, items: Sequence[Item], refused: Sequence[Refused], predicted: Mapping[UUID, KnownState]
    ) -> Sequence[Answer | Undecided] | Declined:
        """Post all of these basic transfers and store the refusals, or do nothing. Return the answers of the items,
        then those of the refused items."""
        plan = plan_basic_posting(_flatten(items))
        if plan is None:
            return _DECLINED
        keys = {key: outcome for each in refused for key, outcome in each.keys.items()}
        if not items and not keys and not predicted:
            return [each.results for each in refused]
        entries = {id_: each.entries for id_, each in plan.accounts.items()}
        try:
            with self._shared_accounts.post(entries):
                async with self._database.autocommit() as connection, self._turn() as skips_locked:
                    posted = await post_basic(
                        connection, plan, refused=keys, predicted=predicted, skips_locked=skips_locked
                    )
                if isinstance(posted, Posted):
                    self._record(plan, entries, posted)
        except (KeyInUse, LockedForLong):
            return _DECLINED
        except ConnectionLost as lost:
            return [*await self._recover(items, lost), *[UNDECIDED] * len(refused)]
        if isinstance(posted, Declined):
            if posted.is_prediction_wrong:
                self._known_accounts.forget(predicted)
            return posted
        return [*group_results(items, posted.results), *(each.results for each in refused)]

    def _record(self, plan: BasicPlan, entries: Mapping[UUID, int], posted: Posted) -> None:
        """Record the states of the accounts after a batch."""
        self._shared_accounts.record(entries, posted.entry_counts)
        if self._known_accounts.is_used:
            changes = zip(plan.accounts.items(), posted.balances, strict=True)
            self._known_accounts.update({id_: balance + each.change for (id_, each), balance in changes})


def _flatten(items: Sequence[Item]) -> list[TransferRequest]:
    return [request for item in items for request in item]
