"""The one way for money to move."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

import orjson
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Coalescer, CoalescerStatus, Database, run_transaction, utcnow, uuid7
from shop.accounts.models import AccountState
from shop.transfers.repository import (
    LockedAccount,
    Outcome,
    PostedTransfer,
    Reversible,
    ScopedKey,
    TransferRepository,
    Writing,
)

MAX_AMOUNT: Final = 2**62  # two of them still fit the column
MAX_BALANCE: Final = 2**63 - 1


class Refusal(StrEnum):
    """Why a transfer isn't made. The codes are part of the interface and stay."""

    AMOUNT_OUT_OF_RANGE = "amount_out_of_range"
    SAME_ACCOUNT = "same_account"
    UNKNOWN_ACCOUNT = "unknown_account"
    CURRENCY_MISMATCH = "currency_mismatch"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    BALANCE_OUT_OF_RANGE = "balance_out_of_range"
    LIMIT_EXCEEDED = "limit_exceeded"
    ACCOUNT_FROZEN = "account_frozen"
    ACCOUNT_CLOSED = "account_closed"
    ALREADY_REVERSED = "already_reversed"
    MORE_THAN_IS_LEFT = "more_than_is_left"
    NOT_ITS_REVERSAL = "not_its_reversal"
    KEY_REUSED = "key_reused"


# A batch that met another one's keys sees them the next time, and would have to meet still others then.
_ATTEMPTS_AT_KEYS: Final = 5


class KeyInUse(Exception):
    """Another transaction has used one of the idempotency keys meanwhile: roll this one back, and begin it again."""


class TransferRefused(ValueError):
    """The rules of the books don't allow the transfer; nothing was moved."""

    def __init__(self, code: Refusal) -> None:
        self.code = code
        super().__init__(_EXPLANATIONS[code])


_EXPLANATIONS: Final[dict[Refusal, str]] = {
    Refusal.AMOUNT_OUT_OF_RANGE: f"the amount must be from 1 to {MAX_AMOUNT}",
    Refusal.SAME_ACCOUNT: "the two accounts are the same",
    Refusal.UNKNOWN_ACCOUNT: "there is no such account",
    Refusal.CURRENCY_MISMATCH: "the accounts, or the order, are in different currencies",
    Refusal.INSUFFICIENT_FUNDS: "the balance, and what the account may be overdrawn, don't cover the amount",
    Refusal.BALANCE_OUT_OF_RANGE: "a balance would be larger than can be kept",
    Refusal.LIMIT_EXCEEDED: "the balance would be more than the account may hold",
    Refusal.ACCOUNT_FROZEN: "one of the accounts is frozen",
    Refusal.ACCOUNT_CLOSED: "one of the accounts is closed",
    Refusal.ALREADY_REVERSED: "the whole of the transfer has been reversed already",
    Refusal.MORE_THAN_IS_LEFT: "that is more than is left of the transfer to be reversed",
    Refusal.NOT_ITS_REVERSAL: "there is no such transfer to be reversed between these accounts",
    Refusal.KEY_REUSED: "the idempotency key was used for another request",
}


@dataclass(frozen=True, slots=True)
class TransferRequest:
    """`amount` in the smallest unit. `currency`, where given, must be that of both accounts. `reverses` names the
    transfer of which this one takes that much back, the way it came; without an amount, all that is left. `key` is the
    idempotency key, `scope` whose key it is."""

    from_account_id: UUID
    to_account_id: UUID
    amount: int | None
    currency: str | None = None
    description: str | None = None
    reverses: UUID | None = None
    key: str | None = None
    scope: str = ""

    def fingerprint(self) -> bytes:
        """A digest of what is asked for, without the key."""
        asked = [self.from_account_id, self.to_account_id, self.amount, self.currency, self.description, self.reverses]
        return hashlib.sha256(orjson.dumps(asked, default=str)).digest()


@dataclass(frozen=True, slots=True)
class TransferResult:
    """Either a transfer or a refusal. `replayed`: it is the answer to an earlier request under the same key."""

    transfer: PostedTransfer | None = None
    refusal: Refusal | None = None
    replayed: bool = False

    def unwrap(self) -> PostedTransfer:
        """The transfer; raises `TransferRefused`."""
        if self.refusal is not None:
            raise TransferRefused(self.refusal)
        assert self.transfer is not None
        return self.transfer


async def post_transfers(session: AsyncSession, requests: Sequence[TransferRequest]) -> list[TransferResult]:
    """Decide the requests in the order given and write what they amount to; a result for each, in that order.

    A refusal is a result and doesn't touch its neighbours: one is decided on the balances that those before it left.
    All of it belongs to the caller's transaction, and nothing may be reported before that is committed. The accounts
    are locked in key order by one statement, and another one writes transfers, entries, balances and idempotency keys,
    so concurrent calls wait for each other and can't deadlock. This is the only code that writes any of them.

    Requests under the same key lock the same accounts, so that the later one sees what the earlier one came to. Those
    that don't (another body, or accounts that don't exist) may meet only when they are written: `KeyInUse`, after
    which the whole transaction must be rolled back and may be begun again.
    """
    if not requests:
        return []
    books = TransferRepository(session)
    asked = [None if request.key is None else request.fingerprint() for request in requests]
    fingerprints: dict[ScopedKey, bytes] = {}
    for request, fingerprint in zip(requests, asked, strict=True):
        if request.key is not None and fingerprint is not None:
            fingerprints.setdefault((request.scope, request.key), fingerprint)
    accounts = await books.lock_accounts(
        {id_ for request in requests for id_ in (request.from_account_id, request.to_account_id)}
    )
    used = await books.outcomes_of(fingerprints.keys())
    decided = await _answered_before(books, used)
    fingerprints |= {pair: outcome.fingerprint for pair, outcome in used.items()}
    reversible = await books.reversible({request.reverses for request in requests if request.reverses is not None})

    writing = Writing(at=utcnow())
    results: list[TransferResult] = []
    for request, fingerprint in zip(requests, asked, strict=True):
        pair = (request.scope, request.key) if request.key is not None else None
        if pair is not None and fingerprints[pair] != fingerprint:
            results.append(TransferResult(refusal=Refusal.KEY_REUSED))
            continue
        if pair is not None and pair in decided:
            first = decided[pair]
            results.append(TransferResult(first.transfer, first.refusal, replayed=True))
            continue
        result = _decide(request, accounts, reversible, writing)
        if pair is not None:
            decided[pair] = result
            transfer_id = None if result.transfer is None else result.transfer.id
            writing.keys[pair] = Outcome(fingerprints[pair], transfer_id, result.refusal)
        results.append(result)
    if (writing.transfers or writing.keys) and not await books.write(writing):
        raise KeyInUse
    return results


async def _answered_before(
    books: TransferRepository, used: Mapping[ScopedKey, Outcome]
) -> dict[ScopedKey, TransferResult]:
    transfers = await books.posted([each.transfer_id for each in used.values() if each.transfer_id is not None])
    return {
        pair: TransferResult(
            transfer=None if outcome.transfer_id is None else transfers[outcome.transfer_id],
            refusal=None if outcome.refusal is None else Refusal(outcome.refusal),
        )
        for pair, outcome in used.items()
    }


async def post(session: AsyncSession, request: TransferRequest) -> PostedTransfer:
    """`post_transfers` with one request; raises `TransferRefused`."""
    return (await post_transfers(session, [request]))[0].unwrap()


async def transfer_funds(db: AsyncSession, from_account_id: UUID, to_account_id: UUID, amount: int) -> PostedTransfer:
    """Move `amount` of the accounts' smallest unit. Raises `TransferRefused`, a `ValueError`, and moves nothing then.

    In a session that has begun it is part of that transaction, which the caller commits; in a fresh one it commits
    its own.
    """
    async with db.begin_nested() if db.in_transaction() else db.begin():
        return await post(db, TransferRequest(from_account_id, to_account_id, amount))


async def reversal_of(
    db: AsyncSession, transfer_id: UUID, *, amount: int | None = None, key: str | None = None
) -> TransferRequest:
    """The request that takes a transfer back: so much of it, or all that is left then. Raises `NotFound`."""
    transfer = await TransferRepository(db).get_one(transfer_id)
    return TransferRequest(
        transfer.to_account_id,
        transfer.from_account_id,
        amount,
        description=f"reversal of {transfer_id}",
        reverses=transfer_id,
        key=key,
    )


class Ledger:
    """Transfers that are committed before the result is given; those that wait at the same moment share a transaction.

    `async with` it: leaving, it takes no more requests (`CoalescerClosed`) and answers those there are. Raises
    `Overloaded` when too many wait.
    """

    def __init__(self, database: Database, *, trips: int = 2, max_batch: int = 500, max_waiting: int = 10_000) -> None:
        self._database = database
        self._coalescer: Coalescer[TransferRequest, TransferResult] = Coalescer(
            self.submit_many, trips=trips, max_batch=max_batch, max_waiting=max_waiting, isolate=True
        )

    async def __aenter__(self) -> Ledger:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._coalescer.aclose()

    def status(self) -> CoalescerStatus:
        """Figures of the shared transactions."""
        return self._coalescer.status()

    async def submit(self, request: TransferRequest) -> TransferResult:
        """Post one request. Under a key it may be sent again after any failure, and is made once."""
        return await self._coalescer.submit(request)

    async def submit_many(self, requests: Sequence[TransferRequest]) -> list[TransferResult]:
        """Post the requests in order, in one transaction; run again if it loses a race."""
        for _ in range(_ATTEMPTS_AT_KEYS - 1):
            try:
                return await self._post(requests)
            except KeyInUse:  # by now it is committed and will be seen, or rolled back and free
                continue
        return await self._post(requests)

    async def _post(self, requests: Sequence[TransferRequest]) -> list[TransferResult]:
        return await run_transaction(self._database, lambda session: post_transfers(session, requests))


def _decide(
    request: TransferRequest,
    accounts: Mapping[UUID, LockedAccount],
    reversible: Mapping[UUID, Reversible],
    writing: Writing,
) -> TransferResult:
    taken = None if request.reverses is None else reversible.get(request.reverses)
    if request.reverses is not None and (
        taken is None
        or (taken.from_account_id, taken.to_account_id) != (request.to_account_id, request.from_account_id)
    ):
        return TransferResult(refusal=Refusal.NOT_ITS_REVERSAL)
    left = None if taken is None else taken.amount - taken.taken_back
    amount = left if request.amount is None else request.amount
    if left == 0:
        return TransferResult(refusal=Refusal.ALREADY_REVERSED)
    if amount is None or not 1 <= amount <= MAX_AMOUNT:
        return TransferResult(refusal=Refusal.AMOUNT_OUT_OF_RANGE)
    if request.from_account_id == request.to_account_id:
        return TransferResult(refusal=Refusal.SAME_ACCOUNT)
    debit, credit = accounts.get(request.from_account_id), accounts.get(request.to_account_id)
    if debit is None or credit is None:
        return TransferResult(refusal=Refusal.UNKNOWN_ACCOUNT)
    if debit.currency != credit.currency or request.currency not in (None, debit.currency):
        return TransferResult(refusal=Refusal.CURRENCY_MISMATCH)
    if left is not None and amount > left:
        return TransferResult(refusal=Refusal.MORE_THAN_IS_LEFT)
    refusal = _refused_by_accounts(debit, credit, amount)
    if refusal is not None:
        return TransferResult(refusal=refusal)
    if taken is not None:
        taken.taken_back += amount
    transfer = PostedTransfer(
        uuid7(),
        debit.id,
        credit.id,
        amount,
        debit.currency,
        request.description,
        request.reverses,
        None if taken is None else taken.taken_back,
        writing.at,
    )
    writing.transfers.append(transfer)
    for account, change in ((debit, -amount), (credit, amount)):
        account.balance += change
        account.version += 1
        writing.entries.append((account.id, account.version, transfer.id, change, account.balance))
        if not account.moved:
            account.moved = True
            writing.accounts.append(account)
    return TransferResult(transfer)


def _refused_by_accounts(debit: LockedAccount, credit: LockedAccount, amount: int) -> Refusal | None:
    states = (debit.state, credit.state)
    if AccountState.CLOSED in states:
        return Refusal.ACCOUNT_CLOSED
    if AccountState.FROZEN in states:
        return Refusal.ACCOUNT_FROZEN
    if debit.balance - amount < -debit.overdraft_limit and not debit.allows_negative:
        return Refusal.INSUFFICIENT_FUNDS
    if credit.balance_limit is not None and credit.balance + amount > credit.balance_limit:
        return Refusal.LIMIT_EXCEEDED
    if credit.balance + amount > MAX_BALANCE or debit.balance - amount < -MAX_BALANCE:
        return Refusal.BALANCE_OUT_OF_RANGE
    return None
