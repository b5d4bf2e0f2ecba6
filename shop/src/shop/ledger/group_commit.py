"""Transfers of many tasks in shared transactions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Final, TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Coalescer, CoalescerStatus, ConnectionLost, Database, DatabaseClock, LockTimeout, run_transaction
from shop.ledger.posting import PostingContext
from shop.ledger.repository import AccountsAt, accounts_now
from shop.ledger.requests import Refusal, TransferRequest, TransferResult
from shop.ledger.service import accounts_of, post_skip_locked, post_with_locks, void_expired_skip_locked
from shop.ledger.snapshots import PostingAccount
from shop.ledger.validation import check_request, checked
from shop.ledger.writing import KeyInUse, values_to_write, write_if_unchanged

# A batch that met another one's keys sees them the next time, and would have to meet still others then.
_ATTEMPTS_AT_KEYS: Final = 5
_MOST_KNOWN: Final = 100_000
_LONGEST_CAUTION: Final = 64
# Refusals that a held amount can cause. The hold may have expired in the meantime.
_FOR_WHAT_IS_HELD: Final = frozenset({Refusal.INSUFFICIENT_FUNDS, Refusal.BALANCE_OUT_OF_RANGE})

ResultT = TypeVar("ResultT")
_Item = Sequence[TransferRequest]
_Answer = list[TransferResult] | Exception


class Ledger:
    """Posts transfers and commits them before it returns the result. Concurrent requests share a transaction.

    Account states are cached. A batch is decided on the cache while the previous one is being written, and posted
    optimistically: one statement, which does nothing if an account's entry count or revision has changed. After a conflict,
    and for all requests that are not plain, `post_transfers` decides under locks. After consecutive conflicts the next
    1, 3, 7 … 63 batches use locks.

    All times are those of the database's clock. The wall clock of this process isn't used.

    If another transaction has locked an account, only the transfers of that account wait. They raise `LockTimeout`
    after the session's `lock_timeout`.

    If the connection breaks during a commit, the idempotency keys are looked up, and the requests that were not
    committed are posted. Requests without keys raise the error.

    Use it with `async with`. On exit it accepts no more requests (`CoalescerClosed`) and finishes those that wait.
    Raises `QueueFull` if too many wait.
    """

    def __init__(
        self, database: Database, *, workers: int = 2, max_batch_size: int = 500, max_waiting: int = 10_000
    ) -> None:
        self._database = database
        self._coalescer: Coalescer[_Item, list[TransferResult] | None] = Coalescer(
            self._carry,
            workers=workers,
            max_batch_size=max_batch_size,
            max_waiting=max_waiting,
            bisect_on_error=True,
            split_between_workers=True,
        )
        self._patient: Coalescer[_Item, list[TransferResult]] = Coalescer(
            self._carry_patiently,
            workers=workers,
            max_batch_size=max_batch_size,
            max_waiting=max_waiting,
            bisect_on_error=True,
        )
        self._lists = asyncio.Semaphore(workers)
        self._turn = asyncio.Lock()
        self._known = _Known()
        self._clock = DatabaseClock()
        self._inside, self._empty = 0, asyncio.Event()
        self._empty.set()

    async def __aenter__(self) -> Ledger:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._coalescer.aclose()
        await self._empty.wait()  # until no request is between the two
        await self._patient.aclose()

    def status(self) -> CoalescerStatus:
        """Figures of the shared transactions."""
        return self._coalescer.status()

    async def submit(self, request: TransferRequest) -> TransferResult:
        """Post one request. With a key it can be submitted again after any failure, and is posted once.

        Raises `TypeError` or `ValueError` if the request can't be stored exactly.
        """
        check_request(request)
        if request.linked:
            raise ValueError("linked: a single request can't be linked to another one; use submit_many()")
        return (await self._submit((request,)))[0]

    async def submit_many(self, requests: Sequence[TransferRequest]) -> list[TransferResult]:
        """Post the requests in order, in one transaction. Other waiting requests may share it.

        Raises `TypeError` or `ValueError` if a request can't be stored exactly or contradicts itself. Then none is
        posted.
        """
        item = checked(requests)
        if not item:
            return []
        async with self._lists:  # so that long lists don't delay single requests
            return await self._submit(item)

    async def void_expired(self, account_ids: Iterable[UUID]) -> int:
        """Void the expired holds of these accounts, and return their number. Accounts that another transaction has
        locked are skipped."""
        async with self._turn:
            return await self._committed(lambda session: void_expired_skip_locked(session, account_ids))

    async def _submit(self, item: _Item) -> list[TransferResult]:
        self._inside += 1
        self._empty.clear()
        try:
            results = await self._coalescer.submit(item)
            return await self._patient.submit(item) if results is None else results
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    async def _carry(self, items: Sequence[_Item]) -> Sequence[_Answer | None]:
        """The answer is None for an item with an account that another transaction has locked. Such items wait
        separately, so that they don't delay the others."""
        requests = [request for item in items for request in item]
        try:
            if self._known.may_be_relied_on() and all(request.is_basic for request in requests):
                results = await self._as_known(requests)
                if results is not None:
                    return _dealt(items, results)
        except ConnectionLost as lost:
            return await self._carry_again(items, lost)
        return await self._carry_free(items)

    async def _carry_patiently(self, items: Sequence[_Item]) -> Sequence[_Answer]:
        answers: list[_Answer | None] = list(await self._carry_free(items))  # most are free by now
        blocked = [item for item, answer in zip(items, answers, strict=True) if answer is None]
        waited: Sequence[_Answer | None] = []
        if blocked:
            try:
                waited = _dealt(blocked, await self._under_locks([request for item in blocked for request in item]))
            except ConnectionLost as lost:
                waited = await self._carry_again(blocked, lost)
            except LockTimeout as error:  # of one account, perhaps
                waited = [error if answer is None else answer for answer in await self._carry_free(blocked)]
        left = iter(waited)
        return [answer for each in answers if (answer := next(left) if each is None else each) is not None]

    async def _carry_free(self, items: Sequence[_Item]) -> Sequence[_Answer | None]:
        try:
            return await self._where_free(items)
        except ConnectionLost as lost:
            return await self._carry_again(items, lost)

    async def _carry_again(self, items: Sequence[_Item], lost: ConnectionLost) -> list[_Answer]:
        """After a transaction whose outcome nobody knows. Nothing may be raised: it could be tried again with those
        who have no keys."""
        keyed = [all(request.key is not None for request in item) for item in items]
        safe = [item for item, has_keys in zip(items, keyed, strict=True) if has_keys]
        answers: list[_Answer]
        try:
            answers = _dealt(safe, await self._under_locks([request for item in safe for request in item]))
        except Exception as error:
            answers = [error] * len(safe)
        left = iter(answers)
        return [next(left) if has_keys else lost for has_keys in keyed]

    async def _as_known(self, requests: Sequence[TransferRequest]) -> list[TransferResult] | None:
        """Post optimistically, on the account cache. None, and nothing written, if the cache is stale or incomplete."""
        known, clock, ids = self._known, self._clock, accounts_of(requests)
        async with self._database.autocommit() as connection:
            accounts = known.those_of(ids)
            if len(accounts) < len(ids) or clock.now() is None:
                found, at = await accounts_now(connection, [id_ for id_ in ids if id_ not in accounts])
                clock.learn(at)
                known.learn(found)
                accounts = known.those_of(ids)
                if len(accounts) < len(ids):  # there is none, or somebody's mistake made us forget it
                    return None
            since = known.mistakes
            try:
                # Nothing else runs from here until the turn is taken or waited for, so the turns are in the order in
                # which it was decided.
                if (now := clock.now()) is None:
                    return None
                assumed = [(account.id, account.entry_count, account.revision or None) for account in accounts.values()]
                is_held = any(account.held for account in accounts.values())
                if is_held:  # decided on copies: if the decision is dropped, the cache must not show it
                    accounts = {id_: copy(account) for id_, account in accounts.items()}
                books = PostingContext(accounts, now)
                results = books.decide(requests)
                if is_held:
                    if _may_have_expired(requests, results, accounts):
                        return None
                    known.accounts.update(accounts)
                values = values_to_write(books, assumed)
                async with self._turn:
                    if known.mistakes != since:  # it was decided on what another one was to make of the accounts
                        return None
                    written, at = await write_if_unchanged(connection, values)
                    if not written:  # the time may have been the reason
                        clock.forget()
                    clock.learn(at)
            except KeyInUse:
                written = False
            except BaseException:
                known.forget()
                clock.forget()  # after a failover the server may have another clock
                raise
            if not written:  # at once: whoever has the next turn has to know
                known.was_wrong()
                return None
        known.was_right()
        return results

    async def _under_locks(self, requests: Sequence[TransferRequest]) -> list[TransferResult]:
        if not requests:
            return []
        return await self._committed(lambda session: post_with_locks(session, requests))

    async def _where_free(self, items: Sequence[_Item]) -> list[list[TransferResult] | None]:
        async with self._turn:  # or two of this process would take each other for somebody else
            return await self._committed(lambda session: post_skip_locked(session, items))

    async def _committed(self, work: Callable[[AsyncSession], Awaitable[tuple[ResultT, AccountsAt]]]) -> ResultT:
        """What the work made of some accounts, which are known then."""
        for attempt in range(1, _ATTEMPTS_AT_KEYS + 1):
            try:
                result, locked = await run_transaction(self._database, work)
            except KeyInUse:  # by now it is committed and will be seen, or rolled back and free
                if attempt == _ATTEMPTS_AT_KEYS:
                    raise
            else:
                self._known.accounts.update(locked.accounts)
                self._clock.learn(locked.at)
                return result
        raise AssertionError


@dataclass(slots=True)
class _Known:
    """The accounts as they are once all that is under way has been committed."""

    accounts: dict[UUID, PostingAccount] = field(default_factory=dict)
    mistakes: int = 0
    _penalty: int = 1
    _cautious_for: int = 0
    """Trips."""

    def may_be_relied_on(self) -> bool:
        if self._cautious_for == 0:
            return True
        self._cautious_for -= 1
        return False

    def those_of(self, ids: Iterable[UUID]) -> dict[UUID, PostingAccount]:
        """Those of them that are known."""
        return {id_: account for id_ in ids if (account := self.accounts.get(id_)) is not None}

    def learn(self, accounts: Mapping[UUID, PostingAccount]) -> None:
        if len(self.accounts) > _MOST_KNOWN:
            self.forget()
        for id_, account in accounts.items():
            self.accounts.setdefault(id_, account)  # somebody may have learned of it, and decided on it, meanwhile

    def was_right(self) -> None:
        self._penalty = 1

    def was_wrong(self) -> None:
        self.forget()
        self._penalty = min(2 * self._penalty, _LONGEST_CAUTION)
        self._cautious_for = self._penalty - 1

    def forget(self) -> None:
        self.accounts.clear()
        self.mistakes += 1


def _may_have_expired(
    requests: Sequence[TransferRequest], results: Sequence[TransferResult], accounts: Mapping[UUID, PostingAccount]
) -> bool:
    """Whether a refusal may be due to a held amount."""
    return any(
        result.refusal in _FOR_WHAT_IS_HELD and accounts[request.from_account_id].held
        for request, result in zip(requests, results, strict=True)
        if result.refusal is not None
    )


def _dealt(items: Sequence[_Item], results: Sequence[TransferResult]) -> list[_Answer]:
    left = iter(results)
    return [[next(left) for _ in item] for item in items]
