"""Post batches of basic transfers. Each batch is one statement, or several if a refusal wasn't predicted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from enum import Enum
from typing import Final, TypeAlias
from uuid import UUID

from howdah import ConnectionLost, Database
from shop.ledger.account_cache import AccountCache
from shop.ledger.basic_posting import BasicPlan, Declined, ExpectedState, Posted, plan_basic_posting, post_basic
from shop.ledger.basic_refusals import Refused, find_refused
from shop.ledger.lock_waits import KeyInUse, LockedForLong
from shop.ledger.predicted_refusals import NO_PREDICTION, Prediction, predict_refusals
from shop.ledger.repository import read_accounts
from shop.ledger.requests import TransferRequest, TransferResult
from shop.ledger.service import collect_account_ids, group_results
from shop.ledger.sharing import SharedAccounts

# The first attempt may find that a prediction is wrong. The second one may find refused items, and the third one
# accounts whose items must be decided under locks. The fourth one posts the rest.
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

    Each statement is executed within the context manager `locking()`. It yields whether the statement must skip the
    accounts that other transactions have locked. If the connection breaks during a statement, `recover` finds the
    answers of its items.
    """

    def __init__(
        self,
        database: Database,
        *,
        locking: Callable[[], AbstractAsyncContextManager[bool]],
        recover: Callable[[Sequence[Item], ConnectionLost], Awaitable[Sequence[Answer]]],
    ) -> None:
        self._database, self._locking, self._recover = database, locking, recover
        self._shared_accounts = SharedAccounts()
        self._account_cache = AccountCache()

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
        positions = basic_positions = [n for n, item in enumerate(items) if all(request.is_basic for request in item)]
        prediction = await self._predict_refusals([items[n] for n in positions])
        refused = {positions[n]: each for n, each in prediction.refused.items()}
        positions = [n for n in positions if n not in refused]
        has_refusal = bool(refused)
        for _ in range(_MAX_ATTEMPTS):
            if not positions and not refused:
                break
            results = await self._post_all([items[n] for n in positions], list(refused.values()), prediction.states)
            if not isinstance(results, Declined):
                for position, answer in zip((*positions, *refused), results, strict=True):
                    answers[position] = answer
                break
            # Either the prediction is wrong, or this statement has verified it. So it isn't verified again.
            prediction = NO_PREDICTION
            if results.is_prediction_wrong:
                positions, refused = basic_positions, {}
                continue
            found = self._find_refused([items[n] for n in positions], results)
            refused |= {positions[n]: each for n, each in found.items()}
            has_refusal = has_refusal or bool(found)
            # Send the others again. If no item is refused, send those that use none of the refusing accounts.
            refusing = frozenset() if found else results.refusing
            allowed = [n for n in positions if n not in refused and refusing.isdisjoint(collect_account_ids(items[n]))]
            if len(allowed) == len(positions):
                break
            positions = allowed
        self._account_cache.record_batch(has_refusal=has_refusal)
        return answers

    async def _predict_refusals(self, items: Sequence[Item]) -> Prediction:
        """Predict the refusals of a batch, if refusals are frequent. Reads the unknown accounts first."""
        known = self._account_cache
        if not known.is_used:
            return NO_PREDICTION
        unknown = known.find_unknown(_flatten(items))
        if unknown:
            try:
                async with self._database.autocommit() as connection:
                    known.add((await read_accounts(connection, unknown)).values())
            except ConnectionLost:  # only a read has failed, and the statement gets another connection
                return NO_PREDICTION
        return predict_refusals(items, known)

    def _find_refused(self, items: Sequence[Item], declined: Declined) -> dict[int, Refused]:
        """The refused items of a declined batch, by position."""
        if declined.states is None:
            return {}
        found = find_refused(items, declined.states, declined.refusing)
        if found:
            self._account_cache.add(declined.states.read(declined.refusing).values())
        return found

    async def _post_all(
        self, items: Sequence[Item], refused: Sequence[Refused], predicted: Mapping[UUID, ExpectedState]
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
            with self._shared_accounts.posting(entries):
                async with self._database.autocommit() as connection, self._locking() as skips_locked:
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
                self._account_cache.invalidate(predicted)
            return posted
        return [*group_results(items, posted.results), *(each.results for each in refused)]

    def _record(self, plan: BasicPlan, entries: Mapping[UUID, int], posted: Posted) -> None:
        """Record what the batch shows about other processes, and the new balances."""
        self._shared_accounts.record(entries, posted.entry_counts)
        if self._account_cache.is_used:
            changes = zip(plan.accounts.items(), posted.balances, strict=True)
            self._account_cache.update({id_: balance + each.change for (id_, each), balance in changes})


def _flatten(items: Sequence[Item]) -> list[TransferRequest]:
    return [request for item in items for request in item]
