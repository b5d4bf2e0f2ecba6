"""The one way for money to move."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database, NotFound, lock, run_transaction, utcnow, uuid7
from shop.accounts.models import Account, Entry
from shop.transfers.models import Transfer
from shop.transfers.repository import IdempotencyKeyRepository, ScopedKey, TransferRepository

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
    ALREADY_REVERSED = "already_reversed"
    KEY_REUSED = "key_reused"


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
    Refusal.INSUFFICIENT_FUNDS: "the balance doesn't cover the amount",
    Refusal.BALANCE_OUT_OF_RANGE: "a balance would be larger than can be kept",
    Refusal.ALREADY_REVERSED: "the transfer has been reversed already",
    Refusal.KEY_REUSED: "the idempotency key was used for another request",
}


@dataclass(frozen=True, slots=True)
class TransferRequest:
    """`amount` in the smallest unit. `currency`, where given, must be that of both accounts. `reverses` names the
    transfer that this one takes back. `key` is the idempotency key, `scope` whose key it is."""

    from_account_id: UUID
    to_account_id: UUID
    amount: int
    currency: str | None = None
    description: str | None = None
    reverses: UUID | None = None
    key: str | None = None
    scope: str = ""

    def fingerprint(self) -> bytes:
        """A digest of what is asked for, without the key."""
        asked = [self.from_account_id, self.to_account_id, self.amount, self.currency, self.description, self.reverses]
        return hashlib.sha256(json.dumps(asked, default=str).encode()).digest()


@dataclass(frozen=True, slots=True)
class TransferResult:
    """Either a transfer or a refusal. `replayed`: it is the answer to an earlier request under the same key."""

    transfer: Transfer | None = None
    refusal: Refusal | None = None
    replayed: bool = False

    def unwrap(self) -> Transfer:
        """The transfer; raises `TransferRefused`."""
        if self.refusal is not None:
            raise TransferRefused(self.refusal)
        assert self.transfer is not None
        return self.transfer


async def post_transfers(session: AsyncSession, requests: Sequence[TransferRequest]) -> list[TransferResult]:
    """Decide the requests in the order given and write what they amount to; a result for each, in that order.

    A refusal is a result and doesn't touch its neighbours: one is decided on the balances that those before it left.
    All of it belongs to the caller's transaction, and nothing may be reported before that is committed. Idempotency
    keys are claimed first, then the accounts are locked in key order, so concurrent calls wait for each other and
    can't deadlock. This is the only code that writes transfers, entries and balances.
    """
    keys = IdempotencyKeyRepository(session)
    claims: dict[ScopedKey, bytes] = {}
    for request in requests:
        if request.key is not None:
            claims.setdefault((request.scope, request.key), request.fingerprint())
    used = await keys.claim(claims)
    accounts = await _lock_accounts(session, requests)
    reversed_ids = await TransferRepository(session).reversals_of(
        {request.reverses for request in requests if request.reverses is not None}
    )
    earlier = await TransferRepository(session).get_by_ids(
        outcome.transfer_id for outcome in used.values() if outcome.transfer_id is not None
    )
    transfers = {transfer.id: transfer for transfer in earlier}
    decided: dict[ScopedKey, TransferResult] = {
        pair: TransferResult(
            transfer=None if outcome.transfer_id is None else transfers[outcome.transfer_id],
            refusal=None if outcome.refusal is None else Refusal(outcome.refusal),
        )
        for pair, outcome in used.items()
    }
    fingerprints = claims | {pair: outcome.fingerprint for pair, outcome in used.items()}

    results: list[TransferResult] = []
    new: list[Transfer] = []
    entries: list[Entry] = []
    for request in requests:
        pair = (request.scope, request.key) if request.key is not None else None
        if pair is not None and fingerprints[pair] != request.fingerprint():
            results.append(TransferResult(refusal=Refusal.KEY_REUSED))
            continue
        if pair is not None and pair in decided:
            first = decided[pair]
            results.append(TransferResult(first.transfer, first.refusal, replayed=True))
            continue
        result = _decide(request, accounts, reversed_ids)
        if result.transfer is not None:
            new.append(result.transfer)
            entries += _apply(result.transfer, accounts)
        if pair is not None:
            decided[pair] = result
        results.append(result)
    # in the order of their foreign keys; the accounts' new balances go with the first
    session.add_all(new)
    await session.flush()
    session.add_all(entries)
    await session.flush()
    await keys.settle(
        {
            pair: (None if result.transfer is None else result.transfer.id, result.refusal)
            for pair, result in decided.items()
            if pair not in used
        }
    )
    return results


async def post(session: AsyncSession, request: TransferRequest) -> Transfer:
    """`post_transfers` with one request; raises `TransferRefused`."""
    return (await post_transfers(session, [request]))[0].unwrap()


async def transfer_funds(db: AsyncSession, from_account_id: UUID, to_account_id: UUID, amount: int) -> Transfer:
    """Move `amount` of the accounts' smallest unit. Raises `TransferRefused`, a `ValueError`, and moves nothing then.

    In a session that has begun it is part of that transaction, which the caller commits; in a fresh one it commits
    its own.
    """
    async with db.begin_nested() if db.in_transaction() else db.begin():
        return await post(db, TransferRequest(from_account_id, to_account_id, amount))


async def reversal_of(db: AsyncSession, transfer_id: UUID, *, key: str | None = None) -> TransferRequest:
    """The request that takes the whole of a transfer back. Raises `NotFound`."""
    transfer = await TransferRepository(db).get_one(transfer_id)
    return TransferRequest(
        transfer.to_account_id,
        transfer.from_account_id,
        transfer.amount,
        description=f"reversal of {transfer_id}",
        reverses=transfer_id,
        key=key,
    )


class Ledger:
    """Transfers, each in a transaction of its own that is committed before the result is given."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def submit(self, request: TransferRequest) -> TransferResult:
        """Post one request. Under a key it may be sent again after any failure, and is made once."""
        return (await self.submit_many([request]))[0]

    async def submit_many(self, requests: Sequence[TransferRequest]) -> list[TransferResult]:
        """Post the requests in order, in one transaction; run again if it loses a race."""
        return await run_transaction(self._database, lambda session: post_transfers(session, requests))


async def _lock_accounts(session: AsyncSession, requests: Sequence[TransferRequest]) -> dict[UUID, Account]:
    """The accounts that exist, locked; those that don't are each request's own refusal."""
    ids = {id_ for request in requests for id_ in (request.from_account_id, request.to_account_id)}
    try:
        return await lock(session, Account, ids)
    except NotFound as error:
        return await lock(session, Account, ids.difference(error.keys))


def _decide(request: TransferRequest, accounts: Mapping[UUID, Account], reversed_ids: set[UUID]) -> TransferResult:
    if not 1 <= request.amount <= MAX_AMOUNT:
        return TransferResult(refusal=Refusal.AMOUNT_OUT_OF_RANGE)
    if request.from_account_id == request.to_account_id:
        return TransferResult(refusal=Refusal.SAME_ACCOUNT)
    debit, credit = accounts.get(request.from_account_id), accounts.get(request.to_account_id)
    if debit is None or credit is None:
        return TransferResult(refusal=Refusal.UNKNOWN_ACCOUNT)
    if debit.currency != credit.currency or request.currency not in (None, debit.currency):
        return TransferResult(refusal=Refusal.CURRENCY_MISMATCH)
    if request.reverses in reversed_ids:
        return TransferResult(refusal=Refusal.ALREADY_REVERSED)
    if debit.balance < request.amount and not debit.allows_negative:
        return TransferResult(refusal=Refusal.INSUFFICIENT_FUNDS)
    if credit.balance + request.amount > MAX_BALANCE or debit.balance - request.amount < -MAX_BALANCE:
        return TransferResult(refusal=Refusal.BALANCE_OUT_OF_RANGE)
    if request.reverses is not None:
        reversed_ids.add(request.reverses)
    return TransferResult(
        transfer=Transfer(
            id=uuid7(),
            from_account_id=debit.id,
            to_account_id=credit.id,
            amount=request.amount,
            currency=debit.currency,
            description=request.description,
            reverses_id=request.reverses,
            created_at=utcnow(),
        )
    )


def _apply(transfer: Transfer, accounts: Mapping[UUID, Account]) -> Iterator[Entry]:
    """Move the balances; the entries that say so."""
    for account_id, amount in ((transfer.from_account_id, -transfer.amount), (transfer.to_account_id, transfer.amount)):
        account = accounts[account_id]
        account.balance += amount
        account.version += 1
        yield Entry(
            account_id=account_id,
            version=account.version,
            transfer_id=transfer.id,
            amount=amount,
            balance_after=account.balance,
            created_at=transfer.created_at,
        )
