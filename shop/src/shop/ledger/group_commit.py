"""Group commit: the transfers of concurrent tasks share a transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from howdah import (
    BatchAbandoned,
    Coalescer,
    CoalescerStatus,
    ConnectionLost,
    Database,
    DatabaseClock,
    HowdahError,
    LockTimeout,
    QueueTimeout,
    run_transaction,
)
from shop.ledger.account_cache import AccountCache
from shop.ledger.ownership import owns
from shop.ledger.posting import PostingContext
from shop.ledger.repository import AccountsAt, read_accounts
from shop.ledger.requests import Refusal, TransferRequest, TransferResult
from shop.ledger.service import (
    BLOCKED,
    Blocked,
    collect_account_ids,
    group_results,
    post_skip_locked,
    post_with_locks,
    void_expired_skip_locked,
)
from shop.ledger.snapshots import PostingAccount
from shop.ledger.validation import check_request, validate_requests
from shop.ledger.writing import KeyInUse, KeyLocked, expected_values, values_to_write, write_if_unchanged

# After `KeyInUse` the next attempt sees the other transaction's keys. It fails only if a third transaction uses a key.
_MAX_KEY_ATTEMPTS: Final = 5
# Short, because `Ledger.aclose` waits for the submitted requests before it closes the blocked queue.
_BLOCKED_CLOSE_SECONDS: Final = 1.0
# Refusals that a held amount can cause. They may be wrong if the cached amount includes an expired hold.
_REFUSALS_BY_HOLDS: Final = frozenset({Refusal.INSUFFICIENT_FUNDS, Refusal.BALANCE_OUT_OF_RANGE})

ResultT = TypeVar("ResultT")
_Item: TypeAlias = Sequence[TransferRequest]
# The result of an item, or the exception that `submit` raises for it.
_Answer: TypeAlias = list[TransferResult] | Exception


class Ledger:
    """Posts transfers and commits them before it returns the result. Concurrent requests share a transaction.

    Account states are cached. A batch is decided on the cached states while the previous batch is being written. Then
    it is posted optimistically, by one statement that writes nothing if an account's entry count or revision has
    changed (a version conflict). After a version conflict the batch is decided again, under locks. After consecutive
    conflicts the next 1, 3, 7 … 63 batches use locks, too. A batch with a request that isn't basic always uses locks.

    All times are those of the database's clock. The wall clock of this process isn't used.

    If another transaction has locked an account, only the transfers of that account wait. They raise `LockTimeout`
    after the session's `lock_timeout`.

    If the connection breaks during a commit, the idempotency keys are looked up, and the requests that were not
    committed are posted. Requests without keys raise the error.

    Each call returns or raises within `submit_timeout` seconds. At the timeout it raises `QueueTimeout` if nothing was
    posted, and `ResultTimeout` if the transfer may have been posted, or may be posted later. The same request with the
    same key is posted once, so it can be submitted again after any of these errors.

    If another transaction uses the same key and doesn't end, only the requests with this key wait. Other requests wait
    only until these are found: 0.2 s for each bisection of the batch.

    Use it with `async with`. On exit it accepts no more requests (`CoalescerClosed`) and finishes those in the queue,
    at most for `close_timeout` seconds. Raises `QueueFull` if more than `max_waiting` tasks wait.
    """

    def __init__(
        self,
        database: Database,
        *,
        workers: int = 2,
        max_batch_size: int = 500,
        max_waiting: int = 10_000,
        submit_timeout: float = 10.0,
        close_timeout: float = 5.0,
    ) -> None:
        self.database: Final = database
        self._submit_timeout = submit_timeout
        self._close_timeout = close_timeout
        self._coalescer: Coalescer[_Item, list[TransferResult] | Blocked] = Coalescer(
            self._post_batch,
            workers=workers,
            max_batch_size=max_batch_size,
            max_waiting=max_waiting,
            submit_timeout=submit_timeout,
            close_timeout=close_timeout,
            bisect_on_error=True,
            split_between_workers=True,
        )
        self._blocked_queue: Coalescer[_Item, list[TransferResult]] = Coalescer(
            self._post_blocked,
            workers=workers,
            max_batch_size=max_batch_size,
            max_waiting=max_waiting,
            submit_timeout=submit_timeout,
            close_timeout=min(close_timeout, _BLOCKED_CLOSE_SECONDS),
            bisect_on_error=True,
        )
        self._bulk_slots = asyncio.Semaphore(workers)
        self._write_lock = asyncio.Lock()
        self._account_cache = AccountCache()
        self._clock = DatabaseClock()
        self._active_submits, self._has_no_submits = 0, asyncio.Event()
        self._has_no_submits.set()

    async def __aenter__(self) -> Ledger:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Accept no more requests, and finish those in the queues.

        This takes at most `close_timeout` seconds, and one second more for the blocked queue.
        """
        until = asyncio.get_running_loop().time() + self._close_timeout
        await self._coalescer.aclose()
        with suppress(TimeoutError):  # then closing the blocked queue fails the remaining requests
            async with asyncio.timeout_at(until):
                await self._has_no_submits.wait()  # a request may be on its way to the blocked queue
        await self._blocked_queue.aclose()

    def status(self) -> CoalescerStatus:
        """The status of the queue and of the batches."""
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

        Raises `TypeError` or `ValueError` if a request can't be stored exactly or contradicts itself. In this case no
        request is posted.
        """
        item = validate_requests(requests)
        if not item:
            return []
        deadline = self._start_deadline()
        try:
            async with asyncio.timeout_at(deadline):
                await self._bulk_slots.acquire()  # so that long lists don't delay single requests
        except TimeoutError:
            raise QueueTimeout(
                f"the requests were not sent: other lists were posted for {self._submit_timeout:g} s"
            ) from None
        try:
            return await self._submit(item, deadline)
        finally:
            self._bulk_slots.release()

    async def void_expired(self, account_ids: Iterable[UUID]) -> int:
        """Void the expired holds of these accounts, and return their number. Accounts that another transaction has
        locked are skipped. Raises `BatchAbandoned` after `submit_timeout`, so that the write lock is released."""
        try:
            async with asyncio.timeout(self._submit_timeout), self._write_lock:
                return await self._commit(lambda session: void_expired_skip_locked(session, account_ids))
        except TimeoutError as error:
            if isinstance(error, HowdahError):
                raise
            raise BatchAbandoned(
                f"no answer after {self._submit_timeout:g} s; the holds may have been voided"
            ) from error

    def _start_deadline(self) -> float:
        """The end of a wait that begins now, as a time of the event loop."""
        return asyncio.get_running_loop().time() + self._submit_timeout

    async def _submit(self, item: _Item, deadline: float | None = None) -> list[TransferResult]:
        """Return the results or raise an error, at the latest at this time of the event loop."""
        loop = asyncio.get_running_loop()
        timeout = None if deadline is None else deadline - loop.time()
        deadline = self._start_deadline() if deadline is None else deadline
        self._active_submits += 1
        self._has_no_submits.clear()
        try:
            results = await self._coalescer.submit(item, timeout=timeout)
            if not isinstance(results, Blocked):
                return results
            return await self._blocked_queue.submit(item, timeout=deadline - loop.time())
        finally:
            self._active_submits -= 1
            if not self._active_submits:
                self._has_no_submits.set()

    async def _post_batch(self, items: Sequence[_Item]) -> Sequence[_Answer | Blocked]:
        """Post a batch of the first queue. The result of an item is `BLOCKED` if another transaction has locked one of
        its accounts. `_submit` then moves it to the blocked queue, so that it doesn't delay other items."""
        requests = _flatten(items)
        try:
            if self._account_cache.take_optimistic_slot() and all(request.is_basic for request in requests):
                results = await self._post_optimistic(requests)
                if results is not None:
                    return group_results(items, results)
        except ConnectionLost as lost:
            return await self._recover(items, lost)
        return await self._post_unblocked(items)

    async def _post_blocked(self, items: Sequence[_Item]) -> Sequence[_Answer]:
        """Post a batch of the blocked queue. Items whose accounts are still locked wait for the locks."""
        answers = await self._post_unblocked(items)
        blocked = [item for item, answer in zip(items, answers, strict=True) if answer is BLOCKED]
        try:
            waited: Sequence[_Answer] = await self._post_with_locks(blocked)
        except ConnectionLost as lost:
            waited = await self._recover(blocked, lost)
        except LockTimeout as timeout:
            # The batch waited too long for one lock. Items that don't need this lock must not fail.
            retried = await self._post_unblocked(blocked)
            waited = [timeout if isinstance(answer, Blocked) else answer for answer in retried]
        return _replace_blocked(answers, waited)

    async def _post_unblocked(self, items: Sequence[_Item]) -> Sequence[_Answer | Blocked]:
        """Post the items whose accounts and keys no other transaction has locked. Return `BLOCKED` for the others."""
        try:
            async with self._write_lock:  # otherwise two batches of this process could block each other
                return await self._commit(lambda session: post_skip_locked(session, items))
        except KeyLocked:  # PostgreSQL doesn't say which key, so bisect to find it
            if len(items) == 1:
                return [BLOCKED]
            half = len(items) // 2
            return [*await self._post_unblocked(items[:half]), *await self._post_unblocked(items[half:])]
        except ConnectionLost as lost:
            return await self._recover(items, lost)

    async def _post_with_locks(self, items: Sequence[_Item]) -> list[list[TransferResult]]:
        if not items:
            return []
        requests = _flatten(items)
        return group_results(items, await self._commit(lambda session: post_with_locks(session, requests)))

    async def _recover(self, items: Sequence[_Item], lost: ConnectionLost) -> list[_Answer]:
        """Find the results of a batch whose connection broke during the commit. If all requests of an item have keys,
        the keys are looked up, and the requests are posted if they were not committed. Other items fail with `lost`.

        This method must not raise. Otherwise the coalescer would retry the whole batch, and could post requests without
        keys twice.
        """
        answers: list[_Answer] = [lost] * len(items)
        positions = [n for n, item in enumerate(items) if all(request.key is not None for request in item)]
        recovered: Sequence[_Answer]
        try:
            recovered = await self._post_with_locks([items[n] for n in positions])
        except Exception as error:
            recovered = [error] * len(positions)
        for position, answer in zip(positions, recovered, strict=True):
            answers[position] = answer
        return answers

    async def _post_optimistic(self, requests: Sequence[TransferRequest]) -> list[TransferResult] | None:
        """Post the requests optimistically. Return None if nothing was written: the cache is incomplete or stale, or
        another transaction has locked an account or used a key."""
        ids = collect_account_ids(requests)
        async with self.database.autocommit() as connection:
            ids -= await self._load_accounts(connection, ids, requests)
            try:
                # Nothing may be awaited between the decision and the request for the write lock. Each decision assumes
                # that the decisions before it are written, so the statements must be sent in the order of decision.
                decision = self._decide_on_cache(requests, ids)
                if decision is None:
                    return None
                async with self._write_lock:
                    return decision.results if await self._write(connection, decision) else None
            except BaseException:
                self._account_cache.invalidate()
                self._clock.forget()  # after a failover the server may have another clock
                raise

    async def _load_accounts(
        self, connection: AsyncConnection, ids: Collection[UUID], requests: Iterable[TransferRequest]
    ) -> set[UUID]:
        """Load the accounts that are not in the cache, and return the ids of accounts that don't exist. Read the
        database's clock if its last reading is too old.

        An account that a customer names and doesn't own is loaded, too, so that its refusal takes as long as that of an
        unknown account.
        """
        cached = self._account_cache.find(ids)
        to_load = {id_ for id_ in ids if id_ not in cached} if len(cached) < len(ids) else set()
        to_load.update(
            request.from_account_id
            for request in requests
            if request.posted_by is not None and not owns(request.posted_by, cached.get(request.from_account_id))
        )
        if not to_load and self._clock.now() is not None:
            return set()
        loaded, at = await read_accounts(connection, list(to_load))
        self._clock.learn(at)
        self._account_cache.add(loaded)
        return to_load - loaded.keys()

    def _decide_on_cache(self, requests: Sequence[TransferRequest], ids: Collection[UUID]) -> _Decision | None:
        """Decide the requests on the cached accounts, and store the new states in the cache. `ids` are those of the
        accounts that exist. Return None, without a change of the cache, if one of them is missing, or if an expired
        hold may have caused a refusal."""
        accounts, now = self._account_cache.find(ids), self._clock.now()
        if len(accounts) < len(ids) or now is None:  # the cache was invalidated
            return None
        expected = expected_values(accounts.values())
        has_holds = any(account.held for account in accounts.values())
        if has_holds:  # on copies, so that a dropped decision doesn't change the cache
            accounts = {id_: copy(account) for id_, account in accounts.items()}
        context = PostingContext(accounts=accounts, at=now)
        results = context.decide(requests)
        if has_holds and _may_be_refused_by_expired_hold(requests, results, accounts):
            return None
        self._account_cache.replace(accounts)
        return _Decision(results=results, values=expected | values_to_write(context), epoch=self._account_cache.epoch)

    async def _write(self, connection: AsyncConnection, decision: _Decision) -> bool:
        """Write the decision, and return whether it was written. The caller must hold the write lock."""
        if decision.epoch != self._account_cache.epoch:  # the decision depends on an earlier one that was not written
            return False
        try:
            is_written, at = await write_if_unchanged(connection, decision.values)
        except (KeyInUse, KeyLocked):
            is_written = False
        else:
            if not is_written:  # the estimated time may have been wrong
                self._clock.forget()
            self._clock.learn(at)
        # This is recorded while the caller holds the write lock. So the next decision, which waits for the lock, is not
        # sent after a conflict.
        if is_written:
            self._account_cache.record_success()
        else:
            self._account_cache.record_conflict()
        return is_written

    async def _commit(self, work: Callable[[AsyncSession], Awaitable[tuple[ResultT, AccountsAt]]]) -> ResultT:
        """Do the work in a transaction, and cache the accounts that it returns."""
        for attempt in range(1, _MAX_KEY_ATTEMPTS + 1):
            try:
                result, locked = await run_transaction(self.database, work)
            except KeyInUse:  # the other transaction has ended, so its keys are now stored or unused
                if attempt == _MAX_KEY_ATTEMPTS:
                    raise
            else:
                self._account_cache.replace(locked.accounts)
                self._clock.learn(locked.at)
                return result
        raise AssertionError


class _Decision(NamedTuple):
    """A decision on cached accounts: the results, the parameters of the statement, and the epoch of the cache."""

    results: list[TransferResult]
    values: dict[str, Any]
    epoch: int


def _may_be_refused_by_expired_hold(
    requests: Sequence[TransferRequest], results: Sequence[TransferResult], accounts: Mapping[UUID, PostingAccount]
) -> bool:
    """Whether a held amount may have caused a refusal. The cache doesn't know whether a hold has expired."""
    return any(
        result.refusal in _REFUSALS_BY_HOLDS and accounts[request.from_account_id].held
        for request, result in zip(requests, results, strict=True)
        if result.refusal is not None
    )


def _flatten(items: Sequence[_Item]) -> list[TransferRequest]:
    return [request for item in items for request in item]


def _replace_blocked(answers: Sequence[_Answer | Blocked], replacements: Sequence[_Answer]) -> list[_Answer]:
    """The answers, with each `BLOCKED` replaced by the next replacement."""
    remaining = iter(replacements)
    return [next(remaining) if isinstance(answer, Blocked) else answer for answer in answers]
