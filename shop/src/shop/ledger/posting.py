"""Decide requests in memory: which transfers and holds they create, and how they change the accounts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, TypeVar
from uuid import UUID

from howdah import uuid7
from shop.ledger.metadata import sort_like_jsonb
from shop.ledger.models import TransferState
from shop.ledger.ownership import find_refusal, owns
from shop.ledger.requests import (
    MAX_AMOUNT,
    MAX_BALANCE,
    Refusal,
    ScopedKey,
    TransferRecord,
    TransferRequest,
    TransferResult,
    compute_fingerprints,
    split_into_chains,
)
from shop.ledger.snapshots import Hold, PostingAccount, Reversible

# With `_Record.__new__(_Record, ...)` keywords are as fast as positional arguments (CPython 3.11 to 3.13).
# `TransferRecord(...)` passes the keywords on in a dict, which takes 0.5 µs more: 10 % of a decision. For more than 15
# keywords CPython builds a dict, too. Only method calls are exempt, and only if the object's name isn't an imported
# one. So the class is assigned to a new name.
_Record: Final = TransferRecord

RowT = TypeVar("RowT")


class Outcome(NamedTuple):
    """The result of the first request with a key, and the fingerprint of that request."""

    fingerprint: bytes
    result: TransferResult


@dataclass(slots=True)
class PostingContext:
    """The working set of a batch: the rows that decisions read, and the new rows to write (`transfers`, `holds`,
    `keys`).

    `decide` also changes `accounts`, `reversible` and `pending`. `stored_outcomes` has the results of earlier
    transactions, by idempotency key.

    `at` is the current time by the database's clock. It is the time of new transfers. If the clock was set back,
    `updated_at` of an account may be later than `at`. Then a transfer of this account gets that later time, so that the
    entries of an account are always in the order of time.
    """

    accounts: dict[UUID, PostingAccount]
    at: datetime
    stored_outcomes: Mapping[ScopedKey, Outcome] = field(default_factory=dict)
    reversible: dict[UUID, Reversible] = field(default_factory=dict)
    pending: dict[UUID, Hold] = field(default_factory=dict)
    transfers: list[TransferRecord] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    keys: dict[ScopedKey, Outcome] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return not (self.keys or self.transfers or self.holds or self.settled_holds())

    def settled_holds(self) -> list[Hold]:
        """The stored holds that a decision has posted or voided."""
        return [hold for hold in self.pending.values() if hold.has_new_state]

    def changed_accounts(self) -> list[PostingAccount]:
        """The accounts that a decision has changed."""
        ids = {transfer.from_account_id for transfer in self.transfers}
        ids.update(transfer.to_account_id for transfer in self.transfers)
        ids.update(hold.from_account_id for hold in (*self.holds, *self.settled_holds()))
        return [self.accounts[id_] for id_ in ids]

    def decide(self, requests: Sequence[TransferRequest]) -> list[TransferResult]:
        """Decide the requests in order, each on the balances after the requests before it. Return a result for each."""
        results: list[TransferResult] = []
        for chain in split_into_chains(requests):
            if len(chain) == 1:
                results.append(self._decide_single(chain[0]))
            else:
                results.extend(self._decide_chain(chain))
        return results

    def _decide_single(self, request: TransferRequest) -> TransferResult:
        if request.key is None:
            return self._decide_one(request)
        [fingerprint], scoped_key = compute_fingerprints((request,)), (request.scope, request.key)
        earlier = self.keys.get(scoped_key) or self.stored_outcomes.get(scoped_key)
        if earlier is not None:
            return _replay_chain([earlier], [fingerprint])[0]
        result = self._decide_one(request)
        self.keys[scoped_key] = Outcome(fingerprint, result)
        return result

    def _decide_chain(self, chain: Sequence[TransferRequest]) -> list[TransferResult]:
        """The results of a chain of several requests. If its keys were used before, these are the stored results."""
        fingerprints = compute_fingerprints(chain)
        scoped_keys = [None if request.key is None else (request.scope, request.key) for request in chain]
        earlier = [None if key is None else self.keys.get(key) or self.stored_outcomes.get(key) for key in scoped_keys]
        has_repeated_key = scoped_keys[0] is not None and len({*scoped_keys}) < len(scoped_keys)
        if any(earlier) or has_repeated_key:
            return _replay_chain(earlier, fingerprints)
        results = self._decide_linked(chain)
        for key, fingerprint, result in zip(scoped_keys, fingerprints, results, strict=True):
            if key is not None:
                self.keys[key] = Outcome(fingerprint, result)
        return results

    def _decide_linked(self, chain: Sequence[TransferRequest]) -> list[TransferResult]:
        """Decide a chain on copies of the rows that it can change. If no request is refused, the copies replace the
        rows."""
        trial, group_id = self._copy_for(chain), uuid7()
        results: list[TransferResult] = []
        for position, request in enumerate(chain):
            result = trial._decide_one(request, group_id)
            if result.refusal is not None:
                results = [TransferResult(refusal=Refusal.LINKED_TRANSFER_FAILED)] * len(chain)
                results[position] = result
                return results
            results.append(result)
        self._apply_trial(trial)
        return results

    def _copy_for(self, chain: Iterable[TransferRequest]) -> PostingContext:
        """A context with copies of the rows that these requests name. The requests can't change other rows."""
        account_ids: set[UUID] = set()
        transfer_ids: set[UUID | None] = set()
        for request in chain:
            account_ids.update((request.from_account_id, request.to_account_id))
            transfer_ids.update((request.reverses, request.posts, request.voids))
        return PostingContext(
            accounts=_copy_rows(self.accounts, account_ids),
            at=self.at,
            reversible=_copy_rows(self.reversible, transfer_ids),
            pending=_copy_rows(self.pending, transfer_ids),
        )

    def _apply_trial(self, trial: PostingContext) -> None:
        self.accounts.update(trial.accounts)
        self.reversible.update(trial.reversible)
        self.pending.update(trial.pending)
        self.transfers += trial.transfers
        self.holds += trial.holds

    def _decide_one(self, request: TransferRequest, group_id: UUID | None = None) -> TransferResult:
        if request.reverses is not None:
            return self._reverse(request, group_id)
        if request.posts is not None or request.voids is not None:
            return self._settle(request, group_id)
        amount = request.amount
        if amount is None or not 1 <= amount <= MAX_AMOUNT:
            return TransferResult(refusal=Refusal.AMOUNT_OUT_OF_RANGE)
        return self._post_or_hold(request, amount, group_id)

    def _reverse(self, request: TransferRequest, group_id: UUID | None) -> TransferResult:
        """Reverse `amount`, or all that isn't reversed yet. The money returns to the account that was debited."""
        assert request.reverses is not None
        if not self._concerns_poster(request):
            return TransferResult(refusal=Refusal.REVERSAL_MISMATCH)
        original = self.reversible.get(request.reverses)
        if original is None:
            is_hold = _is_between(self.pending.get(request.reverses), request.to_account_id, request.from_account_id)
            return TransferResult(refusal=Refusal.NOT_POSTED if is_hold else Refusal.REVERSAL_MISMATCH)
        if not _is_between(original, request.to_account_id, request.from_account_id):
            return TransferResult(refusal=Refusal.REVERSAL_MISMATCH)
        if not owns(request.posted_by, self.accounts.get(request.from_account_id)):
            return TransferResult(refusal=Refusal.NOT_PAYEE)
        reversible_amount = original.amount - original.reversed_amount
        if reversible_amount == 0:
            return TransferResult(refusal=Refusal.ALREADY_REVERSED)
        amount = reversible_amount if request.amount is None else request.amount
        if not 1 <= amount <= MAX_AMOUNT:
            return TransferResult(refusal=Refusal.AMOUNT_OUT_OF_RANGE)
        if amount > reversible_amount:
            return TransferResult(refusal=Refusal.EXCEEDS_REVERSIBLE_AMOUNT)
        if request.effective_at is not None and request.effective_at < original.effective_at:
            return TransferResult(refusal=Refusal.REVERSAL_BEFORE_ORIGINAL)
        result = self._post_or_hold(request, amount, group_id, original=original)
        if result.refusal is None:
            original.reversed_amount += amount
        return result

    def _settle(self, request: TransferRequest, group_id: UUID | None) -> TransferResult:
        """Post or void a hold."""
        hold_id = request.posts or request.voids
        assert hold_id is not None
        if not self._concerns_poster(request):
            return TransferResult(refusal=Refusal.UNKNOWN_PENDING)
        hold = self.pending.get(hold_id)
        if hold is None:  # the id may be that of a transfer that was posted without a hold
            is_posted = _is_between(self.reversible.get(hold_id), request.from_account_id, request.to_account_id)
            return TransferResult(refusal=Refusal.ALREADY_POSTED if is_posted else Refusal.UNKNOWN_PENDING)
        if not _is_between(hold, request.from_account_id, request.to_account_id):
            return TransferResult(refusal=Refusal.UNKNOWN_PENDING)
        if not owns(request.posted_by, self.accounts.get(request.to_account_id)):
            return TransferResult(refusal=Refusal.NOT_PAYEE)
        if hold.is_voided_by_expiry and request.posts is not None:
            return TransferResult(refusal=Refusal.PENDING_EXPIRED)
        if hold.is_voided_by_expiry and hold.settled_at == self.at and not hold.is_expiry_reported:
            hold.is_expiry_reported = True  # this transaction has just voided it
            return TransferResult(hold.to_record(TransferState.VOIDED))
        if hold.state is not TransferState.PENDING:
            is_posted = hold.state is TransferState.POSTED
            return TransferResult(refusal=Refusal.ALREADY_POSTED if is_posted else Refusal.ALREADY_VOIDED)
        return self._void(request, hold) if request.voids is not None else self._post_hold(request, hold, group_id)

    def _concerns_poster(self, request: TransferRequest) -> bool:
        """Whether the customer owns one of the accounts. If not, the transfer is unknown to the customer."""
        accounts = (self.accounts.get(request.from_account_id), self.accounts.get(request.to_account_id))
        return any(owns(request.posted_by, account) for account in accounts)

    def _void(self, request: TransferRequest, hold: Hold) -> TransferResult:
        self.accounts[hold.from_account_id].held -= hold.amount
        hold.state, hold.has_new_state, hold.settled_by = TransferState.VOIDED, True, request.posted_by
        return TransferResult(hold.to_record(TransferState.VOIDED))

    def _post_hold(self, request: TransferRequest, hold: Hold, group_id: UUID | None) -> TransferResult:
        """Post `amount`, or the whole hold, and release the rest. If that is refused, the transfer stays pending."""
        amount = hold.amount if request.amount is None else request.amount
        if not 1 <= amount <= MAX_AMOUNT:
            return TransferResult(refusal=Refusal.AMOUNT_OUT_OF_RANGE)
        if amount > hold.amount:
            return TransferResult(refusal=Refusal.EXCEEDS_HELD_AMOUNT)
        account = self.accounts[hold.from_account_id]
        account.held -= hold.amount  # release the hold first, because the transfer needs its amount
        result = self._post_or_hold(request, amount, hold.group_id or group_id, hold=hold)
        if result.refusal is not None:
            account.held += hold.amount
            return result
        hold.state, hold.has_new_state, hold.settled_by = TransferState.POSTED, True, request.posted_by
        self.reversible[hold.id] = Reversible(
            id=hold.id,
            from_account_id=hold.from_account_id,
            to_account_id=hold.to_account_id,
            amount=amount,
            effective_at=result.unwrap().effective_at,
            reversed_amount=0,
        )
        return result

    def _post_or_hold(
        self,
        request: TransferRequest,
        amount: int,
        group_id: UUID | None,
        original: Reversible | None = None,
        hold: Hold | None = None,
    ) -> TransferResult:
        """Post the transfer, or create the hold, if both accounts allow it. `original` is the transfer that the request
        reverses. `hold` is the hold that it posts."""
        debit, credit = self.accounts.get(request.from_account_id), self.accounts.get(request.to_account_id)
        if request.from_account_id == request.to_account_id:
            return TransferResult(refusal=Refusal.SAME_ACCOUNT)
        # A customer's debit of a foreign account is refused like that of an unknown one. A hold was checked before.
        if debit is None or credit is None or (hold is None and not owns(request.posted_by, debit)):
            return TransferResult(refusal=Refusal.UNKNOWN_ACCOUNT)
        if debit.currency != credit.currency or request.currency not in (None, debit.currency):
            return TransferResult(refusal=Refusal.CURRENCY_MISMATCH)
        refusal = find_refusal(debit, credit, amount, customer=request.posted_by)
        if refusal is not None:
            return TransferResult(refusal=refusal)
        if request.pending_seconds is not None:
            return self._hold(request, amount, debit, group_id, request.pending_seconds)
        effective_at = (to_utc(request.effective_at) if hold is None else hold.effective_at) or self.at
        reversed_total = None
        if original is not None:
            effective_at = max(effective_at, original.effective_at)
            reversed_total = original.reversed_amount + amount
        at = max(self.at, debit.updated_at, credit.updated_at)
        debit.updated_at = credit.updated_at = at
        debit.balance -= amount
        credit.balance += amount
        debit.entry_count += 1
        credit.entry_count += 1
        transfer = _Record.__new__(
            _Record,
            id=uuid7() if hold is None else hold.id,
            from_account_id=request.from_account_id,
            from_entry_number=debit.entry_count,
            to_account_id=request.to_account_id,
            to_entry_number=credit.entry_count,
            amount=amount,
            currency=debit.currency,
            description=request.description if hold is None else hold.description,
            details=stored_metadata(request.metadata) if hold is None else hold.details,
            effective_at=effective_at,
            reverses_id=request.reverses,
            reversed_total=reversed_total,
            group_id=group_id,
            created_at=at,
            posted_by=request.posted_by,
            held_amount=None if hold is None else hold.amount,
            from_balance=debit.balance,
            to_balance=credit.balance,
            from_user_id=debit.user_id,
            to_user_id=credit.user_id,
        )
        self.transfers.append(transfer)
        return TransferResult(transfer)

    def _hold(
        self, request: TransferRequest, amount: int, debit: PostingAccount, group_id: UUID | None, seconds: int
    ) -> TransferResult:
        """Reserve the amount on the account for this number of seconds."""
        if debit.held + amount > MAX_BALANCE:
            return TransferResult(refusal=Refusal.BALANCE_OUT_OF_RANGE)
        debit.held += amount
        hold = Hold(
            id=uuid7(),
            from_account_id=request.from_account_id,
            to_account_id=request.to_account_id,
            amount=amount,
            currency=debit.currency,
            description=request.description,
            details=stored_metadata(request.metadata),
            effective_at=to_utc(request.effective_at),
            group_id=group_id,
            state=TransferState.PENDING,
            expires_at=self.at + timedelta(seconds=seconds),
            created_at=self.at,
            posted_by=request.posted_by,
        )
        self.holds.append(hold)
        return TransferResult(hold.to_record(TransferState.PENDING))


def _replay_chain(earlier: Sequence[Outcome | None], fingerprints: Sequence[bytes]) -> list[TransferResult]:
    """The results of a chain whose keys were used before, or that repeats a key.

    If all requests equal the stored ones, these are the stored results. Otherwise every request is refused.
    """
    pairs = list(zip(earlier, fingerprints, strict=True))
    replays = [
        outcome.result.as_replay()
        for outcome, fingerprint in pairs
        if outcome is not None and outcome.fingerprint == fingerprint
    ]
    if len(replays) == len(pairs):
        return replays
    is_reused = [outcome is not None and outcome.fingerprint != fingerprint for outcome, fingerprint in pairs]
    if not any(is_reused):  # only some keys of the chain were used, or two requests have the same key
        is_reused = [True] * len(pairs)
    return [
        TransferResult(refusal=Refusal.KEY_REUSED if each else Refusal.LINKED_TRANSFER_FAILED) for each in is_reused
    ]


def _is_between(row: Hold | Reversible | None, from_account_id: UUID, to_account_id: UUID) -> bool:
    """Whether the row exists and is a transfer between these accounts, in this direction."""
    return row is not None and row.from_account_id == from_account_id and row.to_account_id == to_account_id


def _copy_rows(rows: Mapping[UUID, RowT], ids: Iterable[UUID | None]) -> dict[UUID, RowT]:
    return {id_: copy(rows[id_]) for id_ in ids if id_ is not None and id_ in rows}


def stored_metadata(metadata: Mapping[str, str] | None) -> Mapping[str, str] | None:
    return sort_like_jsonb(metadata) if metadata else None


def to_utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC)
