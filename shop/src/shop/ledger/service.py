"""Post transfers under locks. All money moves through `post_transfers` or `shop.ledger.group_commit`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import Enum
from typing import Final, assert_never
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from howdah import NotFound
from shop.ledger.expiry import void_expired_holds
from shop.ledger.models import AnswerKind, Transfer, TransferState
from shop.ledger.ownership import owns
from shop.ledger.posting import Outcome, PostingContext
from shop.ledger.repository import AccountsAt, StoredAnswer, TransferRepository
from shop.ledger.requests import (
    MAX_LINKED,
    NamedTransfer,
    Refusal,
    ScopedKey,
    TransferRecord,
    TransferRequest,
    TransferResult,
    chain_keys,
    compute_fingerprints,
)
from shop.ledger.snapshots import Hold
from shop.ledger.transfer_queries import TransferSnapshot, select_transfer
from shop.ledger.validation import check_request, validate_requests
from shop.ledger.writing import write


class Blocked(Enum):
    """The result if another transaction has locked one of the accounts, and nothing was posted."""

    BLOCKED = "blocked"


BLOCKED: Final = Blocked.BLOCKED


async def post_transfers(session: AsyncSession, requests: Sequence[TransferRequest]) -> list[TransferResult]:
    """Decide the requests in order, and write the transfers. Return a result for each request, in the same order.

    Each request is decided on the balances after the requests before it. A refusal is a result. It affects only the
    requests that are linked with the refused one. Everything is part of the caller's transaction. Don't report a result
    before the transaction is committed. One statement locks the accounts in key order, and another one writes
    transfers, entries, balances and idempotency keys. So concurrent calls wait for each other and can't deadlock.

    Requests with the same key usually lock the same accounts, so the second one waits and then reads the stored result.
    If the bodies differ or the accounts don't exist, they may lock different accounts. Then the second one may raise
    `KeyInUse`. After this error, roll back the whole transaction. It may be repeated.

    Raises `TypeError` or `ValueError` if a request can't be stored exactly or contradicts itself.
    """
    if not requests:
        return []
    validated = validate_requests(requests)
    locked = await TransferRepository(session).lock_accounts(collect_account_ids(validated))
    return await _post(session, locked, validated)


async def post_unblocked(
    session: AsyncSession, lists: Sequence[Sequence[TransferRequest]], *, waits: bool
) -> list[list[TransferResult] | Blocked]:
    """Like `post_transfers`, but post several lists, and don't wait for long.

    With `waits` it waits for each account for up to `LOCK_WAIT_MS`, then raises `LockedForLong`. Without it, the result
    of a list is `BLOCKED` if another transaction has locked one of its accounts. Raises `KeyLocked` if another
    transaction uses a key.
    """
    ids = {id_ for requests in lists for id_ in collect_account_ids(requests)}
    repository = TransferRepository(session)
    if waits:
        locked = await repository.lock_accounts(ids - await _find_foreign_only(repository, lists), is_wait_short=True)
    else:
        locked = await repository.lock_accounts_skip_locked(ids)
    # The owners of foreign accounts are read, too, so that a refusal takes as long as that of an unknown account.
    unlocked = (ids - locked.accounts.keys()) | _find_foreign_accounts(lists, locked)
    owners = await repository.find_owners(unlocked) if unlocked else {}
    blocked = {id_: owner for id_, owner in owners.items() if id_ not in locked.accounts}
    free = [n for n, each in enumerate(lists) if not blocked or not _is_blocked(each, locked, blocked)]
    free_lists = [lists[n] for n in free]
    requests = [request for each in free_lists for request in each]
    posted = await _post(session, locked, requests, waits_for_keys=False)
    results: list[list[TransferResult] | Blocked] = [BLOCKED] * len(lists)
    for n, group in zip(free, group_results(free_lists, posted), strict=True):
        results[n] = group
    return results


async def _find_foreign_only(repository: TransferRepository, lists: Sequence[Sequence[TransferRequest]]) -> set[UUID]:
    """The accounts that these requests name only to debit them for a customer who doesn't own them. They aren't locked:
    if the request waited, that would show that the account exists."""
    debited: set[tuple[UUID, UUID]] = set()
    needed: set[UUID] = set()
    for request in (request for requests in lists for request in requests):
        needed.add(request.to_account_id)
        if request.posted_by is None or request.posts or request.voids or request.reverses:
            needed.add(request.from_account_id)
        else:
            debited.add((request.from_account_id, request.posted_by))
    candidates = {id_ for id_, _ in debited} - needed
    if not candidates:
        return set()
    owners = await repository.find_owners(candidates)
    return candidates - {id_ for id_, customer in debited if owners.get(id_) == customer}


def _find_foreign_accounts(lists: Sequence[Sequence[TransferRequest]], locked: AccountsAt) -> set[UUID]:
    """The locked accounts from which a customer wants to transfer, and that aren't the customer's own."""
    return {
        request.from_account_id
        for requests in lists
        for request in requests
        if request.posted_by is not None
        and (account := locked.accounts.get(request.from_account_id)) is not None
        and not owns(request.posted_by, account)
    }


def _is_blocked(requests: Sequence[TransferRequest], locked: AccountsAt, blocked: Mapping[UUID, UUID | None]) -> bool:
    """Whether a request must wait for a lock of another transaction. `blocked` has the owners of the accounts that
    others have locked.

    A customer's transfer from a foreign account doesn't wait: its refusal doesn't depend on the accounts' states. If it
    waited, it would show that the account exists.
    """

    def is_foreign(request: TransferRequest) -> bool:
        if request.posted_by is None or request.posts or request.voids or request.reverses:
            return False
        account = locked.accounts.get(request.from_account_id)
        return request.posted_by != (blocked.get(request.from_account_id) if account is None else account.user_id)

    return any(
        not is_foreign(request)
        for request in requests
        if request.from_account_id in blocked or request.to_account_id in blocked
    )


def group_results(
    lists: Sequence[Sequence[TransferRequest]], results: Sequence[TransferResult]
) -> list[list[TransferResult]]:
    """Split the results of all requests into one list for each list of requests."""
    remaining = iter(results)
    return [[next(remaining) for _ in requests] for requests in lists]


async def void_expired(session: AsyncSession, account_ids: Iterable[UUID], *, waits: bool) -> int:
    """Void the expired holds of these accounts, and return the number of these holds.

    With `waits` it waits for each account for up to `LOCK_WAIT_MS`, then raises `LockedForLong`. Otherwise it skips the
    accounts that another transaction has locked.
    """
    repository = TransferRepository(session)
    if waits:
        return await _void_expired(session, await repository.lock_accounts(account_ids, is_wait_short=True))
    return await _void_expired(session, await repository.lock_accounts_skip_locked(account_ids))


async def _void_expired(session: AsyncSession, locked: AccountsAt) -> int:
    """Void the expired holds of the locked accounts, and update these accounts. Return the number of holds."""
    ids = [account.id for account in locked.accounts.values() if account.held]
    if not ids:
        return 0
    voided = 0
    for freed in await void_expired_holds(session, ids, locked.at):
        account = locked.accounts[freed.id]
        account.held, account.revision, account.updated_at = freed.held, freed.revision, freed.updated_at
        voided += freed.voided
    return voided


async def _post(
    session: AsyncSession, locked: AccountsAt, requests: Sequence[TransferRequest], *, waits_for_keys: bool = True
) -> list[TransferResult]:
    """Decide the requests on the locked accounts, and write the decision."""
    await _void_expired(session, locked)  # first, because an expired hold must not cause a refusal
    repository = TransferRepository(session)
    reversed_ids = {request.reverses for request in requests if request.reverses is not None}
    settled_ids = {hold_id for request in requests if (hold_id := request.posts or request.voids) is not None}
    stored_outcomes = await _find_outcomes(repository, requests)
    reversible = await repository.find_reversible(reversed_ids)
    # A request may reverse a hold that isn't posted, or post or void a transfer that was never pending. These rows are
    # read, too. Otherwise the refusal would have the wrong code.
    pending = await repository.find_holds(settled_ids | (reversed_ids - reversible.keys()))
    reversible |= await repository.find_reversible(settled_ids - pending.keys())
    context = PostingContext(
        accounts=locked.accounts,
        at=locked.at,
        stored_outcomes=stored_outcomes,
        reversible=reversible,
        pending=pending,
    )
    results = context.decide(requests)
    if not context.is_empty:
        await write(session, context, waits_for_keys=waits_for_keys)
    return results


def collect_account_ids(requests: Sequence[TransferRequest]) -> set[UUID]:
    """The accounts that these requests name."""
    ids = {request.from_account_id for request in requests}
    ids.update(request.to_account_id for request in requests)
    return ids


async def transfer_funds(db: AsyncSession, from_account_id: UUID, to_account_id: UUID, amount: int) -> TransferRecord:
    """Move `amount`, in the smallest unit of the accounts' currency. If it raises `TransferRefused` (a `ValueError`),
    no money was moved.

    If the session has a transaction, the transfer is part of it, and the caller commits. Otherwise this function begins
    and commits a transaction.
    """
    async with db.begin_nested() if db.in_transaction() else db.begin():
        [result] = await post_transfers(db, [TransferRequest(from_account_id, to_account_id, amount)])
    return result.unwrap()  # an error inside the block would roll back the voiding of expired holds


async def find_transfer(db: AsyncSession, transfer_id: UUID, *, customer: UUID | None = None) -> TransferRecord:
    """The transfer in its current state. An expired hold counts as voided. Raises `NotFound`.

    With `customer`, a transfer that is neither from nor to an account of this customer isn't found.
    """
    query = select_transfer(transfer_id, customer=customer)
    transfer: TransferSnapshot | None = (await db.scalars(query)).one_or_none()
    if transfer is None:
        raise NotFound(Transfer, [transfer_id])
    return transfer.as_record()


def as_linked_chain(key: str, requests: Sequence[TransferRequest]) -> list[TransferRequest]:
    """The requests as one linked chain under one key."""
    if type(key) is not str:
        raise TypeError(f"key is of type {type(key).__name__}; pass a str")
    if len(requests) > MAX_LINKED:
        raise ValueError(f"linked: a chain of {len(requests)} transfers is too long; link at most {MAX_LINKED}")
    last = len(requests) - 1
    return [
        request._replace(key=request_key, linked=position < last)
        for position, (request_key, request) in enumerate(zip(chain_keys(key)[: len(requests)], requests, strict=True))
    ]


async def find_named_transfers(
    db: AsyncSession, transfer_ids: Collection[UUID], *, customer: UUID | None = None
) -> dict[UUID, NamedTransfer]:
    """The transfers with these ids, in any state, with their accounts. Takes at most one statement. With `customer`,
    only the transfers from or to an account of this customer."""
    return await TransferRepository(db).find_named(transfer_ids, customer=customer)


async def find_replay(session: AsyncSession, request: TransferRequest) -> TransferResult | None:
    """The stored result of this request's key, as a replay. None if the key is unused. The refusal `key_reused` if the
    key was used for another request."""
    check_request(request)
    assert request.key is not None
    outcome = (await _find_outcomes(TransferRepository(session), [request])).get((request.scope, request.key))
    if outcome is None:
        return None
    if outcome.fingerprint != compute_fingerprints([request])[0]:
        return TransferResult(refusal=Refusal.KEY_REUSED)
    return outcome.result.as_replay()


async def _find_outcomes(
    repository: TransferRepository, requests: Sequence[TransferRequest]
) -> dict[ScopedKey, Outcome]:
    """The stored results, by idempotency key. Unused keys are left out. Raises `LookupError` if a stored answer names a
    transfer that doesn't exist."""
    answers = await repository.find_answers({(each.scope, each.key) for each in requests if each.key is not None})
    ids: dict[AnswerKind, list[UUID]] = {kind: [] for kind in AnswerKind}
    for stored in answers.values():
        if stored.transfer_id is not None:
            ids[stored.answer].append(stored.transfer_id)
    posted = await repository.find_posted(ids[AnswerKind.POSTED])
    holds = await repository.find_holds(ids[AnswerKind.PENDING] + ids[AnswerKind.VOIDED])
    outcomes: dict[ScopedKey, Outcome] = {}
    for scoped_key, stored in answers.items():
        try:
            result = _restore_result(stored, posted, holds)
        except KeyError:
            raise LookupError(
                f"idempotency key {scoped_key[1]!r} names the {stored.answer} transfer {stored.transfer_id}, "
                "which doesn't exist: run `shop check`"
            ) from None
        outcomes[scoped_key] = Outcome(stored.fingerprint, result)
    return outcomes


def _restore_result(
    stored: StoredAnswer, posted: Mapping[UUID, TransferRecord], holds: Mapping[UUID, Hold]
) -> TransferResult:
    """The result that was returned when the answer was stored. Raises `KeyError` if its transfer is missing."""
    match stored.answer:
        case AnswerKind.POSTED:
            return TransferResult(posted[_transfer_id(stored)])
        case AnswerKind.PENDING:
            return TransferResult(holds[_transfer_id(stored)].to_record(TransferState.PENDING))
        case AnswerKind.VOIDED:
            return TransferResult(holds[_transfer_id(stored)].to_record(TransferState.VOIDED))
        case AnswerKind.REFUSED:
            return TransferResult(refusal=Refusal(str(stored.refusal)))
        case AnswerKind.OPENED:  # the key was used to open an account
            return TransferResult(refusal=Refusal.KEY_REUSED)
        case _:
            assert_never(stored.answer)


def _transfer_id(stored: StoredAnswer) -> UUID:
    assert stored.transfer_id is not None  # the table's CHECK constraint
    return stored.transfer_id
