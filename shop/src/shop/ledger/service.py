"""Post transfers under locks. All money moves through `post_transfers` or `shop.ledger.group_commit`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import assert_never
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from howdah import NotFound
from shop.ledger.expiry import void_expired_holds
from shop.ledger.models import AnswerKind, Transfer, TransferState
from shop.ledger.posting import Outcome, PostingContext
from shop.ledger.repository import AccountsAt, StoredAnswer, TransferRepository
from shop.ledger.requests import (
    NamedTransfer,
    Refusal,
    ScopedKey,
    TransferRecord,
    TransferRequest,
    TransferResult,
    fingerprints,
    linked_keys,
)
from shop.ledger.transfer_queries import TransferSnapshot, select_transfer
from shop.ledger.validation import check_request, checked
from shop.ledger.writing import write


async def post_transfers(session: AsyncSession, requests: Sequence[TransferRequest]) -> list[TransferResult]:
    """Decide the requests in order, and write the transfers. Return a result for each request, in the same order.

    Each request is decided on the balances that the ones before it left. A refusal is a result. It affects only the
    requests that are linked with it. Everything is part of the caller's transaction: report no result before it is
    committed. One statement locks the accounts in key order, and another one writes transfers, entries, balances and
    idempotency keys. So concurrent calls wait for each other and can't deadlock.

    Requests with the same key lock the same accounts, so the second one waits and then reads the stored result. If they
    lock different accounts (another body, or accounts that don't exist), writing may raise `KeyInUse`. Then roll back
    the whole transaction; it may be repeated.

    Raises `TypeError` or `ValueError` if a request can't be stored exactly or contradicts itself.
    """
    return (await post_with_locks(session, requests))[0] if requests else []


async def post_with_locks(
    session: AsyncSession, requests: Sequence[TransferRequest]
) -> tuple[list[TransferResult], AccountsAt]:
    """`post_transfers`, and the accounts as they are when the transaction is committed."""
    chosen = checked(requests)
    locked = await TransferRepository(session).lock_accounts(accounts_of(chosen))
    return await _posted(session, locked, chosen), locked


async def post_skip_locked(
    session: AsyncSession, lists: Sequence[Sequence[TransferRequest]]
) -> tuple[list[list[TransferResult] | None], AccountsAt]:
    """Like `post_with_locks`, for several lists, and without waiting for locks. The result is None for a list with
    an account that another transaction has locked."""
    ids = {id_ for requests in lists for id_ in accounts_of(requests)}
    locked, taken = await TransferRepository(session).lock_free_accounts(ids)
    free = [not taken or taken.isdisjoint(accounts_of(requests)) for requests in lists]
    chosen = [request for requests, is_free in zip(lists, free, strict=True) if is_free for request in requests]
    results = iter(await _posted(session, locked, chosen))
    dealt = [
        [next(results) for _ in requests] if is_free else None for requests, is_free in zip(lists, free, strict=True)
    ]
    return dealt, locked


async def void_expired_skip_locked(session: AsyncSession, account_ids: Iterable[UUID]) -> tuple[int, AccountsAt]:
    """Void the expired holds of those of these accounts that no other transaction has locked. Return the number of
    holds, and the accounts."""
    locked, _ = await TransferRepository(session).lock_free_accounts(set(account_ids))
    return await _void_expired(session, locked), locked


async def _void_expired(session: AsyncSession, locked: AccountsAt) -> int:
    holding = [account.id for account in locked.accounts.values() if account.held]
    if not holding:
        return 0
    voided = 0
    for freed in await void_expired_holds(session, holding, locked.at):
        account = locked.accounts[freed.id]
        account.held, account.revision, account.updated_at = freed.held, freed.revision, freed.updated_at
        voided += freed.voided
    return voided


async def _posted(
    session: AsyncSession, locked: AccountsAt, requests: Sequence[TransferRequest]
) -> list[TransferResult]:
    await _void_expired(session, locked)  # before the decision: expired holds must not cause a refusal
    repository = TransferRepository(session)
    reversed_ids = {request.reverses for request in requests if request.reverses is not None}
    settled_ids = {subject for request in requests if (subject := request.posts or request.voids) is not None}
    used = await _used(repository, requests)
    reversible = await repository.reversible(reversed_ids)
    # for the right refusal: holds that requests reverse but that aren't posted, and transfers that requests post or
    # void but that were never pending
    pending = await repository.holds(settled_ids | (reversed_ids - reversible.keys()))
    reversible |= await repository.reversible(settled_ids - pending.keys())
    books = PostingContext(locked.accounts, locked.at, used=used, reversible=reversible, pending=pending)
    results = books.decide(requests)
    if not books.is_empty:
        await write(session, books)
    return results


def accounts_of(requests: Sequence[TransferRequest]) -> set[UUID]:
    """The accounts that these requests name."""
    ids = {request.from_account_id for request in requests}
    ids.update(request.to_account_id for request in requests)
    return ids


async def post(session: AsyncSession, request: TransferRequest) -> TransferRecord:
    """`post_transfers` with one request; raises `TransferRefused`."""
    return (await post_transfers(session, [request]))[0].unwrap()


async def transfer_funds(db: AsyncSession, from_account_id: UUID, to_account_id: UUID, amount: int) -> TransferRecord:
    """Move `amount` of the accounts' smallest unit. Raises `TransferRefused`, a `ValueError`, and moves nothing then.

    In a session that has begun it is part of that transaction, which the caller commits; in a fresh one it commits
    its own.
    """
    async with db.begin_nested() if db.in_transaction() else db.begin():
        [result] = await post_transfers(db, [TransferRequest(from_account_id, to_account_id, amount)])
    return result.unwrap()  # after the savepoint, so that expired holds stay voided


async def find_transfer(db: AsyncSession, transfer_id: UUID) -> TransferRecord:
    """The transfer in its current state. An expired hold counts as voided. Raises `NotFound`."""
    transfer: TransferSnapshot | None = (await db.scalars(select_transfer(transfer_id))).one_or_none()
    if transfer is None:
        raise NotFound(Transfer, [transfer_id])
    return transfer.as_record()


def as_linked_chain(key: str, requests: Sequence[TransferRequest]) -> list[TransferRequest]:
    """The requests as one linked chain under one key."""
    if type(key) is not str:
        raise TypeError(f"key is of type {type(key).__name__}; pass a str")
    last = len(requests) - 1
    return [
        request._replace(key=own_key, linked=place < last)
        for place, (own_key, request) in enumerate(zip(linked_keys(key), requests, strict=False))
    ]


async def reversal_request(
    db: AsyncSession,
    transfer_id: UUID,
    *,
    amount: int | None = None,
    description: str | None = None,
    effective_at: datetime | None = None,
    key: str | None = None,
    scope: str = "",
) -> TransferRequest:
    """The request that reverses a transfer: `amount`, or all that isn't reversed yet. Raises `NotFound`."""
    named = await named_transfer(db, transfer_id)
    return named.reversal(amount, description=description, effective_at=effective_at, key=key, scope=scope)


async def posting_request(
    db: AsyncSession, transfer_id: UUID, *, amount: int | None = None, key: str | None = None, scope: str = ""
) -> TransferRequest:
    """The request that posts a pending transfer: `amount`, or the whole hold. Raises `NotFound`."""
    return (await named_transfer(db, transfer_id)).posting(amount, key=key, scope=scope)


async def voiding_request(
    db: AsyncSession, transfer_id: UUID, *, key: str | None = None, scope: str = ""
) -> TransferRequest:
    """The request that voids a pending transfer. Raises `NotFound`."""
    return (await named_transfer(db, transfer_id)).voiding(key=key, scope=scope)


async def named_transfer(db: AsyncSession, transfer_id: UUID) -> NamedTransfer:
    """The transfer, in any state, with its accounts. Raises `NotFound`."""
    found = (await named_transfers(db, [transfer_id])).get(transfer_id)
    if found is None:
        raise NotFound(Transfer, [transfer_id])
    return found


async def named_transfers(db: AsyncSession, transfer_ids: Collection[UUID]) -> dict[UUID, NamedTransfer]:
    """Those of the transfers that exist, in any state, with their accounts. Takes at most one statement."""
    return await TransferRepository(db).named(transfer_ids)


async def find_replay(session: AsyncSession, request: TransferRequest) -> TransferResult | None:
    """The stored result of this request's key as a replay. None if the key is unused; the refusal `key_reused` if it
    was used for another request."""
    check_request(request)
    assert request.key is not None
    outcome = (await _used(TransferRepository(session), [request])).get((request.scope, request.key))
    if outcome is None:
        return None
    if outcome.fingerprint != fingerprints([request])[0]:
        return TransferResult(refusal=Refusal.KEY_REUSED)
    return outcome.result.again()


async def _used(repository: TransferRepository, requests: Sequence[TransferRequest]) -> dict[ScopedKey, Outcome]:
    """The stored results of those of the requests' keys that were used. Raises `LookupError` if the transfer of a key
    is missing."""
    found = await repository.answers_under({(each.scope, each.key) for each in requests if each.key is not None})
    ids: dict[AnswerKind, list[UUID]] = {kind: [] for kind in AnswerKind}
    for each in found.values():
        if each.transfer_id is not None:
            ids[each.answer].append(each.transfer_id)
    booked = await repository.booked(ids[AnswerKind.POSTED])
    holds = await repository.holds(ids[AnswerKind.PENDING] + ids[AnswerKind.VOIDED])

    def answered(pair: ScopedKey, stored: StoredAnswer) -> TransferResult:
        try:
            match stored.answer:
                case AnswerKind.POSTED:
                    return TransferResult(booked[_id(stored)])
                case AnswerKind.PENDING:
                    return TransferResult(holds[_id(stored)].shown(TransferState.PENDING))
                case AnswerKind.VOIDED:
                    return TransferResult(holds[_id(stored)].shown(TransferState.VOIDED))
                case AnswerKind.REFUSED:
                    return TransferResult(refusal=Refusal(str(stored.refusal)))
                case AnswerKind.OPENED:  # it opened an account, so this request is another one
                    return TransferResult(refusal=Refusal.KEY_REUSED)
        except KeyError:
            raise LookupError(
                f"idempotency key {pair[1]!r} names the {stored.answer} transfer {stored.transfer_id}, "
                "which doesn't exist: run `shop check`"
            ) from None
        assert_never(stored.answer)

    return {pair: Outcome(stored.fingerprint, answered(pair, stored)) for pair, stored in found.items()}


def _id(stored: StoredAnswer) -> UUID:
    assert stored.transfer_id is not None  # the table's CHECK constraint
    return stored.transfer_id
