"""The one way for money to move."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import assert_never
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from howdah import NotFound
from shop.transfers.books import Books, Outcome
from shop.transfers.expiry import void_expired_of
from shop.transfers.listing import TransferSnapshot, transfer_with
from shop.transfers.models import AnswerKind, Transfer, TransferState
from shop.transfers.repository import AccountsAt, StoredAnswer, TransferRepository
from shop.transfers.requests import (
    BookedTransfer,
    NamedTransfer,
    Refusal,
    ScopedKey,
    TransferRequest,
    TransferResult,
    fingerprints,
    linked_keys,
)
from shop.transfers.validation import check_request, checked
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

    Raises `TypeError` and `ValueError` for requests that can't be stored as they are, or contradict themselves.
    """
    return (await posted_under_locks(session, requests))[0] if requests else []


async def posted_under_locks(
    session: AsyncSession, requests: Sequence[TransferRequest]
) -> tuple[list[TransferResult], AccountsAt]:
    """`post_transfers`, and the accounts as they are when the transaction is committed."""
    chosen = checked(requests)
    locked = await TransferRepository(session).lock_accounts(accounts_of(chosen))
    return await _posted(session, locked, chosen), locked


async def posted_where_free(
    session: AsyncSession, lists: Sequence[Sequence[TransferRequest]]
) -> tuple[list[list[TransferResult] | None], AccountsAt]:
    """As `posted_under_locks`, for several lists and without waiting for an account: None for a list of which somebody
    else has locked one."""
    ids = {id_ for requests in lists for id_ in accounts_of(requests)}
    locked, taken = await TransferRepository(session).lock_free_accounts(ids)
    free = [not taken or taken.isdisjoint(accounts_of(requests)) for requests in lists]
    chosen = [request for requests, is_free in zip(lists, free, strict=True) if is_free for request in requests]
    results = iter(await _posted(session, locked, chosen))
    dealt = [
        [next(results) for _ in requests] if is_free else None for requests, is_free in zip(lists, free, strict=True)
    ]
    return dealt, locked


async def expired_voided(session: AsyncSession, account_ids: Iterable[UUID]) -> tuple[int, AccountsAt]:
    """Void what has expired of what these accounts hold, but those that somebody else has locked. How much it was, and
    the accounts."""
    locked, _ = await TransferRepository(session).lock_free_accounts(set(account_ids))
    return await _void_expired(session, locked), locked


async def _void_expired(session: AsyncSession, locked: AccountsAt) -> int:
    holding = [account.id for account in locked.accounts.values() if account.held]
    if not holding:
        return 0
    voided = 0
    for freed in await void_expired_of(session, holding, locked.at):
        account = locked.accounts[freed.id]
        account.held, account.revision, account.updated_at = freed.held, freed.revision, freed.updated_at
        voided += freed.voided
    return voided


async def _posted(
    session: AsyncSession, locked: AccountsAt, requests: Sequence[TransferRequest]
) -> list[TransferResult]:
    await _void_expired(session, locked)  # first: what has expired is in nobody's way
    repository = TransferRepository(session)
    reversed_ids = {request.reverses for request in requests if request.reverses is not None}
    settled_ids = {subject for request in requests if (subject := request.posts or request.voids) is not None}
    used = await _used(repository, requests)
    reversible = await repository.reversible(reversed_ids)
    # also those that are to be reversed and aren't posted, and those that are to be settled and never were pending
    pending = await repository.holds(settled_ids | (reversed_ids - reversible.keys()))
    reversible |= await repository.reversible(settled_ids - pending.keys())
    books = Books(locked.accounts, locked.at, used=used, reversible=reversible, pending=pending)
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
        [result] = await post_transfers(db, [TransferRequest(from_account_id, to_account_id, amount)])
    return result.unwrap()  # not before: what had expired stays voided


async def find_transfer(db: AsyncSession, transfer_id: UUID) -> BookedTransfer:
    """The transfer as it stands: pending, posted or voided; an expired one counts as voided. Raises `NotFound`."""
    transfer: TransferSnapshot | None = (await db.scalars(transfer_with(transfer_id))).one_or_none()
    if transfer is None:
        raise NotFound(Transfer, [transfer_id])
    return transfer.as_booked()


def linked_under(key: str, requests: Sequence[TransferRequest]) -> list[TransferRequest]:
    """The requests, to be made together under one key."""
    if type(key) is not str:
        raise TypeError(f"key is of type {type(key).__name__}; pass a str")
    last = len(requests) - 1
    return [
        request._replace(key=own_key, linked=place < last)
        for place, (own_key, request) in enumerate(zip(linked_keys(key), requests, strict=False))
    ]


async def reversal_of(
    db: AsyncSession,
    transfer_id: UUID,
    *,
    amount: int | None = None,
    description: str | None = None,
    effective_at: datetime | None = None,
    key: str | None = None,
    scope: str = "",
) -> TransferRequest:
    """The request that takes a transfer back: so much of it, or all that is left then. Raises `NotFound`."""
    named = await named_transfer(db, transfer_id)
    return named.reversal(amount, description=description, effective_at=effective_at, key=key, scope=scope)


async def posting_of(
    db: AsyncSession, transfer_id: UUID, *, amount: int | None = None, key: str | None = None, scope: str = ""
) -> TransferRequest:
    """The request that posts a pending transfer: so much of what it holds, or all. Raises `NotFound`."""
    return (await named_transfer(db, transfer_id)).posting(amount, key=key, scope=scope)


async def voiding_of(
    db: AsyncSession, transfer_id: UUID, *, key: str | None = None, scope: str = ""
) -> TransferRequest:
    """The request that voids a pending transfer. Raises `NotFound`."""
    return (await named_transfer(db, transfer_id)).voiding(key=key, scope=scope)


async def named_transfer(db: AsyncSession, transfer_id: UUID) -> NamedTransfer:
    """The transfer's accounts, whatever its state. Raises `NotFound`."""
    found = (await named_transfers(db, [transfer_id])).get(transfer_id)
    if found is None:
        raise NotFound(Transfer, [transfer_id])
    return found


async def named_transfers(db: AsyncSession, transfer_ids: Collection[UUID]) -> dict[UUID, NamedTransfer]:
    """The accounts of those of the transfers that exist, whatever their states: one statement, or none for no ids."""
    return await TransferRepository(db).named(transfer_ids)


async def answer_before(session: AsyncSession, request: TransferRequest) -> TransferResult | None:
    """What was answered to this request under its key, None if it wasn't used; the refusal `key_reused` if it was used
    for another one."""
    check_request(request)
    assert request.key is not None
    outcome = (await _used(TransferRepository(session), [request])).get((request.scope, request.key))
    if outcome is None:
        return None
    if outcome.fingerprint != fingerprints([request])[0]:
        return TransferResult(refusal=Refusal.KEY_REUSED)
    return outcome.result.again()


async def _used(repository: TransferRepository, requests: Sequence[TransferRequest]) -> dict[ScopedKey, Outcome]:
    """What was answered under those keys of the requests that were used before. Raises `LookupError` if the transfer of
    a key is missing."""
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
                case AnswerKind.OPENED:  # whatever is requested of the ledger, that was another request
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
