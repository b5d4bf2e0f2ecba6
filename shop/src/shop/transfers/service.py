"""The one way for money to move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from howdah import NotFound
from shop.transfers.books import BookAccount, Books, Hold, Outcome
from shop.transfers.listing import TransferSnapshot, transfer_with
from shop.transfers.models import Transfer, TransferState
from shop.transfers.repository import TransferRepository
from shop.transfers.requests import (
    BookedTransfer,
    Refusal,
    ScopedKey,
    TransferRefused,
    TransferRequest,
    TransferResult,
    fingerprints,
    linked_keys,
)
from shop.transfers.writing import write


async def post_transfers(session: AsyncSession, requests: Sequence[TransferRequest]) -> list[TransferResult]:
    """Decide the requests in the order given and write what they amount to; a result for each, in that order.

    A refusal is a result and doesn't touch its neighbours, but for those that are linked to it: one is decided on the
    balances that those before it left. All of it belongs to the caller's transaction, and nothing may be reported
    before that is committed. The accounts are locked in key order by one statement, and another one writes transfers,
    entries, balances and idempotency keys, so concurrent calls wait for each other and can't deadlock.

    Requests under the same key lock the same accounts, so that the later one sees what the earlier one came to. Those
    that don't (another body, or accounts that don't exist) may meet only when they are written: `KeyInUse`, after
    which the whole transaction must be rolled back and may be begun again.

    Raises `ValueError` for requests that contradict themselves.
    """
    return (await posted_under_locks(session, requests))[0]


async def posted_under_locks(
    session: AsyncSession, requests: Sequence[TransferRequest]
) -> tuple[list[TransferResult], Mapping[UUID, BookAccount]]:
    """`post_transfers`, and the accounts as they are when the transaction is committed."""
    if not requests:
        return [], {}
    accounts = await TransferRepository(session).lock_accounts(accounts_of(requests))
    return await _posted(session, accounts, requests), accounts


async def posted_where_free(
    session: AsyncSession, lists: Sequence[Sequence[TransferRequest]]
) -> tuple[list[list[TransferResult] | None], Mapping[UUID, BookAccount]]:
    """As `posted_under_locks`, for several lists and without waiting for an account: None for a list of which somebody
    else has locked one."""
    ids = {id_ for requests in lists for id_ in accounts_of(requests)}
    accounts, taken = await TransferRepository(session).lock_free_accounts(ids)
    free = [not taken or taken.isdisjoint(accounts_of(requests)) for requests in lists]
    chosen = [request for requests, is_free in zip(lists, free, strict=True) if is_free for request in requests]
    results = iter(await _posted(session, accounts, chosen))
    dealt = [
        [next(results) for _ in requests] if is_free else None for requests, is_free in zip(lists, free, strict=True)
    ]
    return dealt, accounts


async def _posted(
    session: AsyncSession, accounts: Mapping[UUID, BookAccount], requests: Sequence[TransferRequest]
) -> list[TransferResult]:
    repository = TransferRepository(session)
    reversed_ids = {request.reverses for request in requests if request.reverses is not None}
    settled_ids = {subject for request in requests if (subject := request.posts or request.voids) is not None}
    books = Books(
        accounts,
        used=await _used(repository, requests),
        reversible=await repository.reversible(reversed_ids),
        pending=await repository.holds(settled_ids),
    )
    results = books.decide(requests)
    if not books.is_empty:
        await write(session, books)
    return results


def accounts_of(requests: Sequence[TransferRequest]) -> set[UUID]:
    """The accounts that these requests name."""
    ids = {request.from_account_id for request in requests}
    ids.update(request.to_account_id for request in requests)
    return ids


async def post(session: AsyncSession, request: TransferRequest) -> BookedTransfer:
    """`post_transfers` with one request; raises `TransferRefused`."""
    return (await post_transfers(session, [request]))[0].unwrap()


async def transfer_funds(db: AsyncSession, from_account_id: UUID, to_account_id: UUID, amount: int) -> BookedTransfer:
    """Move `amount` of the accounts' smallest unit. Raises `TransferRefused`, a `ValueError`, and moves nothing then.

    In a session that has begun it is part of that transaction, which the caller commits; in a fresh one it commits
    its own.
    """
    async with db.begin_nested() if db.in_transaction() else db.begin():
        return await post(db, TransferRequest(from_account_id, to_account_id, amount))


async def find_transfer(db: AsyncSession, transfer_id: UUID) -> BookedTransfer:
    """The transfer as it stands: pending, posted or voided; an expired one counts as voided. Raises `NotFound`."""
    transfer: TransferSnapshot | None = (await db.scalars(transfer_with(transfer_id))).one_or_none()
    if transfer is None:
        raise NotFound(Transfer, [transfer_id])
    return transfer.as_booked()


def linked_under(key: str, requests: Sequence[TransferRequest]) -> list[TransferRequest]:
    """The requests, to be made together under one key."""
    last = len(requests) - 1
    return [
        request._replace(key=own_key, linked=place < last)
        for place, (own_key, request) in enumerate(zip(linked_keys(key), requests, strict=False))
    ]


async def reversal_of(
    db: AsyncSession, transfer_id: UUID, *, amount: int | None = None, key: str | None = None, scope: str = ""
) -> TransferRequest:
    """The request that takes a transfer back: so much of it, or all that is left then. Raises `NotFound`, and
    `TransferRefused` for one that isn't posted."""
    transfer = await find_transfer(db, transfer_id)
    if transfer.state is not TransferState.POSTED:
        raise TransferRefused(Refusal.NOT_POSTED)
    return TransferRequest(
        transfer.to_account_id,
        transfer.from_account_id,
        amount,
        description=f"reversal of {transfer_id}",
        reverses=transfer_id,
        key=key,
        scope=scope,
    )


async def posting_of(
    db: AsyncSession, transfer_id: UUID, *, amount: int | None = None, key: str | None = None, scope: str = ""
) -> TransferRequest:
    """The request that posts a pending transfer: so much of what it holds, or all. Raises `NotFound`."""
    hold = await _hold(db, transfer_id)
    return TransferRequest(hold.from_account_id, hold.to_account_id, amount, posts=transfer_id, key=key, scope=scope)


async def voiding_of(
    db: AsyncSession, transfer_id: UUID, *, key: str | None = None, scope: str = ""
) -> TransferRequest:
    """The request that voids a pending transfer. Raises `NotFound`."""
    hold = await _hold(db, transfer_id)
    return TransferRequest(hold.from_account_id, hold.to_account_id, None, voids=transfer_id, key=key, scope=scope)


async def _hold(db: AsyncSession, transfer_id: UUID) -> Hold:
    hold = (await TransferRepository(db).holds([transfer_id])).get(transfer_id)
    if hold is None:
        await find_transfer(db, transfer_id)
        raise TransferRefused(Refusal.ALREADY_POSTED)  # at once, and never pending
    return hold


async def answer_before(session: AsyncSession, request: TransferRequest) -> TransferResult | None:
    """What was answered to this request under its key, None if it wasn't used; the refusal `key_reused` if it was used
    for another one."""
    assert request.key is not None
    outcome = (await _used(TransferRepository(session), [request])).get((request.scope, request.key))
    if outcome is None:
        return None
    if outcome.fingerprint != fingerprints([request])[0]:
        return TransferResult(refusal=Refusal.KEY_REUSED)
    return TransferResult(outcome.result.transfer, outcome.result.refusal, replayed=True)


async def _used(repository: TransferRepository, requests: Sequence[TransferRequest]) -> dict[ScopedKey, Outcome]:
    """What came of the keys that were used before, as it was answered then."""
    asked = {(request.scope, request.key): request for request in requests if request.key is not None}
    found = await repository.outcomes_of(asked.keys())
    made = [transfer_id for _, transfer_id, _ in found.values() if transfer_id is not None]
    booked = await repository.booked(made)
    held = (pair for pair in found if asked[pair].pending_seconds is not None or asked[pair].voids is not None)
    holds = await repository.holds([id_ for pair in held if (id_ := found[pair][1]) is not None])

    def answered(pair: ScopedKey) -> TransferResult:
        _, transfer_id, refusal = found[pair]
        if transfer_id is None:
            return TransferResult(refusal=None if refusal is None else Refusal(refusal))
        if (hold := holds.get(transfer_id)) is not None:
            voided = asked[pair].voids is not None
            return TransferResult(hold.shown(TransferState.VOIDED if voided else TransferState.PENDING))
        return TransferResult(booked.get(transfer_id))

    return {pair: Outcome(fingerprint, answered(pair)) for pair, (fingerprint, _, _) in found.items()}
