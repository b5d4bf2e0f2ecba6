"""Decide requests on accounts in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from howdah import uuid7
from shop.ledger.metadata import in_jsonb_order
from shop.ledger.models import AccountState, TransferState
from shop.ledger.requests import (
    MAX_AMOUNT,
    Refusal,
    ScopedKey,
    TransferRecord,
    TransferRequest,
    TransferResult,
    chains,
    fingerprints,
)
from shop.ledger.snapshots import Hold, PostingAccount, Reversible

MAX_BALANCE: Final = 2**63 - 1
_CHANGING: Final = ("balance", "held", "entry_count", "updated_at")


class Outcome(NamedTuple):
    """What the first request under a key, whose digest is `fingerprint`, came to."""

    fingerprint: bytes
    result: TransferResult


@dataclass(slots=True)
class PostingContext:
    """What a list of requests is decided on, and what it amounts to: `transfers`, `holds` and `keys` that are
    new, and the accounts as they are to be.

    `at` is the current time by the database's clock. The time of a transfer is `at`, or the `updated_at` of one of its
    accounts if that is later (the clock was set back). So an account's entries are in the order of time.
    """

    accounts: Mapping[UUID, PostingAccount]
    at: datetime
    used: Mapping[ScopedKey, Outcome] = field(default_factory=dict)
    reversible: dict[UUID, Reversible] = field(default_factory=dict)
    pending: Mapping[UUID, Hold] = field(default_factory=dict)
    transfers: list[TransferRecord] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    keys: dict[ScopedKey, Outcome] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Nothing is to be written."""
        return not (self.keys or self.transfers or self.holds or self.settled())

    def settled(self) -> list[Hold]:
        """The pending transfers that were there before and aren't any more."""
        return [hold for hold in self.pending.values() if hold.settled]

    def moved(self) -> list[PostingAccount]:
        """The accounts that have changed."""
        ids = {transfer.from_account_id for transfer in self.transfers}
        ids.update(transfer.to_account_id for transfer in self.transfers)
        ids.update(hold.from_account_id for hold in (*self.holds, *self.settled()))
        return [self.accounts[id_] for id_ in ids]

    def decide(self, requests: Sequence[TransferRequest]) -> list[TransferResult]:
        """A result for each, in that order; one is decided on what those before it left."""
        results: list[TransferResult] = []
        for chain in chains(requests):
            if len(chain) == 1:
                results.append(self._single(chain[0]))
            else:
                results.extend(self._chain(chain))
        return results

    def _single(self, request: TransferRequest) -> TransferResult:
        if request.key is None:
            return self._decide(request)
        [digest], pair = fingerprints((request,)), (request.scope, request.key)
        earlier = self.keys.get(pair) or self.used.get(pair)
        if earlier is not None:
            return _answered_before([earlier], [digest])[0]
        result = self._decide(request)
        self.keys[pair] = Outcome(digest, result)
        return result

    def _chain(self, chain: Sequence[TransferRequest]) -> Iterable[TransferResult]:
        digests = fingerprints(chain)
        pairs = [None if request.key is None else (request.scope, request.key) for request in chain]
        earlier = [None if pair is None else self.keys.get(pair) or self.used.get(pair) for pair in pairs]
        if any(earlier) or (pairs[0] is not None and len({*pairs}) < len(pairs)):
            return _answered_before(earlier, digests)
        results = self._linked(chain)
        for pair, digest, result in zip(pairs, digests, results, strict=True):
            if pair is not None:
                self.keys[pair] = Outcome(digest, result)
        return results

    def _linked(self, chain: Sequence[TransferRequest]) -> list[TransferResult]:
        undo = self._remembered(chain)
        group, first = uuid7(), len(self.transfers)
        results: list[TransferResult] = []
        for request in chain:
            result = self._decide(request, group)
            results.append(result)
            if result.refusal is not None:
                _restore(undo)
                del self.transfers[first:]
                refused = TransferResult(refusal=Refusal.LINKED_TRANSFER_FAILED)
                return [*[refused] * (len(results) - 1), result, *[refused] * (len(chain) - len(results))]
        return results

    def _remembered(self, chain: Sequence[TransferRequest]) -> list[tuple[Any, str, Any]]:
        """What a chain may change, as it is now."""
        kept: list[tuple[Any, str, Any]] = []
        for request in chain:
            for id_ in (request.from_account_id, request.to_account_id):
                if (account := self.accounts.get(id_)) is not None:
                    kept += [(account, name, getattr(account, name)) for name in _CHANGING]
            if request.reverses is not None and (taken := self.reversible.get(request.reverses)) is not None:
                kept.append((taken, "reversed_amount", taken.reversed_amount))
            subject = request.posts or request.voids
            if subject is not None and (hold := self.pending.get(subject)) is not None:
                kept += [(hold, name, getattr(hold, name)) for name in ("state", "settled", "is_told")]
        kept += [(self, "holds", list(self.holds)), (self, "reversible", dict(self.reversible))]
        return kept

    def _decide(self, request: TransferRequest, group: UUID | None = None) -> TransferResult:
        if request.reverses is not None:
            return self._reverse(request, group)
        if request.posts is not None or request.voids is not None:
            return self._settle(request, group)
        amount = request.amount
        if amount is None or not 1 <= amount <= MAX_AMOUNT:
            return TransferResult(refusal=Refusal.AMOUNT_OUT_OF_RANGE)
        return self._move(request, amount, group)

    def _reverse(self, request: TransferRequest, group: UUID | None) -> TransferResult:
        assert request.reverses is not None
        taken = self.reversible.get(request.reverses)
        ways = (request.to_account_id, request.from_account_id)
        if taken is None:
            hold = self.pending.get(request.reverses)
            is_its_way = hold is not None and (hold.from_account_id, hold.to_account_id) == ways
            return TransferResult(refusal=Refusal.NOT_POSTED if is_its_way else Refusal.REVERSAL_MISMATCH)
        if (taken.from_account_id, taken.to_account_id) != ways:
            return TransferResult(refusal=Refusal.REVERSAL_MISMATCH)
        left = taken.amount - taken.reversed_amount
        if left == 0:
            return TransferResult(refusal=Refusal.ALREADY_REVERSED)
        amount = left if request.amount is None else request.amount
        if not 1 <= amount <= MAX_AMOUNT:
            return TransferResult(refusal=Refusal.AMOUNT_OUT_OF_RANGE)
        if amount > left:
            return TransferResult(refusal=Refusal.EXCEEDS_REVERSIBLE_AMOUNT)
        if request.effective_at is not None and request.effective_at < taken.effective_at:
            return TransferResult(refusal=Refusal.REVERSAL_BEFORE_ORIGINAL)
        result = self._move(request, amount, group, taken=taken)
        if result.refusal is None:
            taken.reversed_amount += amount
        return result

    def _settle(self, request: TransferRequest, group: UUID | None) -> TransferResult:
        subject = request.posts or request.voids
        assert subject is not None
        hold = self.pending.get(subject)
        ways = (request.from_account_id, request.to_account_id)
        if hold is None:  # was it posted directly, without a hold?
            made = self.reversible.get(subject)
            is_made = made is not None and (made.from_account_id, made.to_account_id) == ways
            return TransferResult(refusal=Refusal.ALREADY_POSTED if is_made else Refusal.UNKNOWN_PENDING)
        if (hold.from_account_id, hold.to_account_id) != ways:
            return TransferResult(refusal=Refusal.UNKNOWN_PENDING)
        if hold.has_expired and request.posts is not None:
            return TransferResult(refusal=Refusal.PENDING_EXPIRED)
        if hold.has_expired and hold.settled_at == self.at and not hold.is_told:
            hold.is_told = True  # this transaction voided it, before it decided the requests
            return TransferResult(hold.shown(TransferState.VOIDED))
        if hold.state is not TransferState.PENDING:
            posted = hold.state is TransferState.POSTED
            return TransferResult(refusal=Refusal.ALREADY_POSTED if posted else Refusal.ALREADY_VOIDED)
        account = self.accounts[hold.from_account_id]
        if request.voids is not None:
            account.held -= hold.amount
            hold.state, hold.settled = TransferState.VOIDED, True
            return TransferResult(hold.shown(TransferState.VOIDED))
        amount = hold.amount if request.amount is None else request.amount
        if not 1 <= amount <= MAX_AMOUNT:
            return TransferResult(refusal=Refusal.AMOUNT_OUT_OF_RANGE)
        if amount > hold.amount:
            return TransferResult(refusal=Refusal.EXCEEDS_HELD_AMOUNT)
        account.held -= hold.amount
        result = self._move(request, amount, hold.group_id or group, hold=hold)
        if result.refusal is None:
            hold.state, hold.settled = TransferState.POSTED, True
            effective_at = result.unwrap().effective_at
            self.reversible[hold.id] = Reversible(
                hold.id, hold.from_account_id, hold.to_account_id, amount, effective_at, 0
            )
        else:
            account.held += hold.amount
        return result

    def _move(
        self,
        request: TransferRequest,
        amount: int,
        group: UUID | None,
        taken: Reversible | None = None,
        hold: Hold | None = None,
    ) -> TransferResult:
        debit, credit = self.accounts.get(request.from_account_id), self.accounts.get(request.to_account_id)
        if request.from_account_id == request.to_account_id:
            return TransferResult(refusal=Refusal.SAME_ACCOUNT)
        if debit is None or credit is None:
            return TransferResult(refusal=Refusal.UNKNOWN_ACCOUNT)
        if debit.currency != credit.currency or request.currency not in (None, debit.currency):
            return TransferResult(refusal=Refusal.CURRENCY_MISMATCH)
        refusal = _refused_by(debit, credit, amount)
        if refusal is not None:
            return TransferResult(refusal=refusal)
        if request.pending_seconds is not None:
            return self._hold(request, amount, debit, group, request.pending_seconds)
        effective_at = (_in_utc(request.effective_at) if hold is None else hold.effective_at) or self.at
        reversed_total = None
        if taken is not None:
            effective_at = max(effective_at, taken.effective_at)
            reversed_total = taken.reversed_amount + amount
        at = max(self.at, debit.updated_at, credit.updated_at)
        debit.updated_at = credit.updated_at = at
        debit.balance -= amount
        credit.balance += amount
        debit.entry_count += 1
        credit.entry_count += 1
        transfer = TransferRecord(
            uuid7() if hold is None else hold.id,
            request.from_account_id,
            debit.entry_count,
            request.to_account_id,
            credit.entry_count,
            amount,
            debit.currency,
            request.description if hold is None else hold.description,
            _as_kept(request.metadata) if hold is None else hold.details,
            effective_at,
            request.reverses,
            reversed_total,
            group,
            at,
            TransferState.POSTED,
            None,
            None if hold is None else hold.amount,
            debit.balance,
            credit.balance,
        )
        self.transfers.append(transfer)
        return TransferResult(transfer)

    def _hold(
        self, request: TransferRequest, amount: int, debit: PostingAccount, group: UUID | None, seconds: int
    ) -> TransferResult:
        if debit.held + amount > MAX_BALANCE:
            return TransferResult(refusal=Refusal.BALANCE_OUT_OF_RANGE)
        debit.held += amount
        hold = Hold(
            uuid7(),
            request.from_account_id,
            request.to_account_id,
            amount,
            debit.currency,
            request.description,
            _as_kept(request.metadata),
            _in_utc(request.effective_at),
            group,
            TransferState.PENDING,
            self.at + timedelta(seconds=seconds),
            self.at,
        )
        self.holds.append(hold)
        return TransferResult(hold.shown(TransferState.PENDING))


def _answered_before(earlier: Sequence[Outcome | None], digests: Sequence[bytes]) -> list[TransferResult]:
    """To a chain of which a key was used: the first answers, if it was this chain."""
    if all(
        outcome is not None and outcome.fingerprint == digest for outcome, digest in zip(earlier, digests, strict=True)
    ):
        return [outcome.result.again() for outcome in earlier if outcome is not None]
    reused = [
        outcome is not None and outcome.fingerprint != digest for outcome, digest in zip(earlier, digests, strict=True)
    ]
    if not any(reused):
        reused = [True] * len(earlier)
    return [TransferResult(refusal=Refusal.KEY_REUSED if each else Refusal.LINKED_TRANSFER_FAILED) for each in reused]


def _as_kept(metadata: Mapping[str, str] | None) -> Mapping[str, str] | None:
    return in_jsonb_order(metadata) if metadata else None


def _in_utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC)


def _restore(kept: Iterable[tuple[Any, str, Any]]) -> None:
    for thing, name, value in kept:
        setattr(thing, name, value)


def _refused_by(debit: PostingAccount, credit: PostingAccount, amount: int) -> Refusal | None:
    if debit.state is not AccountState.OPEN or credit.state is not AccountState.OPEN:
        closed = AccountState.CLOSED in (debit.state, credit.state)
        return Refusal.ACCOUNT_CLOSED if closed else Refusal.ACCOUNT_FROZEN
    if debit.balance - debit.held - amount < -debit.overdraft_limit and not debit.allows_negative:
        return Refusal.INSUFFICIENT_FUNDS
    if credit.balance_limit is not None and credit.balance + amount > credit.balance_limit:
        return Refusal.LIMIT_EXCEEDED
    if credit.balance + amount > MAX_BALANCE or debit.balance - debit.held - amount < -MAX_BALANCE:
        return Refusal.BALANCE_OUT_OF_RANGE
    return None
