"""Group commit: the transfers of concurrent tasks share a transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final, TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from howdah import (
    BatchAbandoned,
    Coalescer,
    CoalescerStatus,
    ConnectionLost,
    Database,
    HowdahError,
    LockTimeout,
    QueueTimeout,
    run_transaction,
)
from shop.ledger.basic_batches import Answer, BasicBatches, Item, Undecided
from shop.ledger.lock_waits import KeyInUse, KeyLocked, LockedForLong
from shop.ledger.requests import TransferRequest, TransferResult
from shop.ledger.service import (
    BLOCKED,
    Blocked,
    group_results,
    post_transfers,
    post_unblocked,
    void_expired,
)
from shop.ledger.validation import check_request, validate_requests

# After `KeyInUse` the next attempt sees the other transaction's keys. It fails only if a third transaction uses a key.
_MAX_KEY_ATTEMPTS: Final = 5
# Short, because `Ledger.aclose` waits for the submitted requests before it closes the other queues.
_SECOND_CLOSE_SECONDS: Final = 1.0
ResultT = TypeVar("ResultT")


class Ledger:
    """Posts transfers and commits them before it returns the result. Concurrent requests share a transaction.

    A batch of basic transfers is posted by one statement (see `shop.ledger.basic_posting`). It locks the accounts, so
    several processes may post on the same accounts: they wait for each other in PostgreSQL. If one of the transfers is
    refused, the statement is executed again. It stores the refusal, and posts the others. If refusals are frequent,
    they are predicted, and one execution is enough. If a key was used before, the batch is decided under locks.
    Requests that aren't basic are always decided under locks.

    All times are those of the database's clock. The wall clock of this process isn't used.

    If another transaction has locked an account for more than 0.2 s, only the transfers of that account go on waiting.
    They raise `LockTimeout` after the session's `lock_timeout`.

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
        self._basic_batches = BasicBatches(database, locking=self._locking, recover=self._recover)
        queue = partial(
            Coalescer,
            workers=workers,
            max_batch_size=max_batch_size,
            max_waiting=max_waiting,
            submit_timeout=submit_timeout,
            bisect_on_error=True,
        )
        second_close_timeout = min(close_timeout, _SECOND_CLOSE_SECONDS)
        self._basic_queue: Coalescer[Item, list[TransferResult] | Undecided] = queue(
            self._basic_batches.post,
            close_timeout=close_timeout,
            # Alone, this process prepares a batch while PostgreSQL writes another one. If others post too,
            # PostgreSQL is never idle, and large batches cost less.
            split_between_workers=True,
            one_at_a_time=lambda: self._basic_batches.has_others,
        )
        self._locks_queue: Coalescer[Item, list[TransferResult] | Blocked] = queue(
            self._post_unblocked, close_timeout=second_close_timeout
        )
        self._blocked_queue: Coalescer[Item, list[TransferResult]] = queue(
            self._post_blocked, close_timeout=second_close_timeout
        )
        self._bulk_slots = asyncio.Semaphore(workers)
        self._write_lock = asyncio.Lock()
        self._blocked_items = 0
        self._active_submits, self._has_no_submits = 0, asyncio.Event()
        self._has_no_submits.set()

    async def __aenter__(self) -> Ledger:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Accept no more requests, and finish those in the queues.

        This takes at most `close_timeout` seconds, and one second more for each of the other queues.
        """
        until = asyncio.get_running_loop().time() + self._close_timeout
        await self._basic_queue.aclose()
        with suppress(TimeoutError):  # then closing the other queues fails the remaining requests
            async with asyncio.timeout_at(until):
                await self._has_no_submits.wait()  # a request may be on its way to another queue
        await self._locks_queue.aclose()
        await self._blocked_queue.aclose()

    def status(self) -> CoalescerStatus:
        """The status of the queue and of the batches."""
        return self._basic_queue.status()

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
        """Void the expired holds of these accounts, and return their number.

        If another transaction has locked one of the accounts for more than 0.2 s, the locked accounts are skipped.
        While the blocked queue isn't empty, they are skipped at once. Raises `BatchAbandoned` after `submit_timeout`,
        so that the write lock is released.
        """
        ids = set(account_ids)
        try:
            async with asyncio.timeout(self._submit_timeout):
                # It is a LockTimeout if it has waited for several accounts before.
                with suppress(LockedForLong, LockTimeout):
                    if not self._has_blocked_items:  # a busy account is rarely unlocked
                        return await self._commit(lambda session: void_expired(session, ids, waits=True))
                async with self._write_lock:
                    return await self._commit(lambda session: void_expired(session, ids, waits=False))
        except TimeoutError as error:
            if isinstance(error, HowdahError):
                raise
            raise BatchAbandoned(
                f"no answer after {self._submit_timeout:g} s; the holds may have been voided"
            ) from error

    def _start_deadline(self) -> float:
        """The end of a wait that begins now, as a time of the event loop."""
        return asyncio.get_running_loop().time() + self._submit_timeout

    async def _submit(self, item: Item, deadline: float | None = None) -> list[TransferResult]:
        """Return the results or raise an error, at the latest at this time of the event loop."""
        loop = asyncio.get_running_loop()
        timeout = None if deadline is None else deadline - loop.time()
        deadline = self._start_deadline() if deadline is None else deadline
        self._active_submits += 1
        self._has_no_submits.clear()
        try:
            posted = await self._basic_queue.submit(item, timeout=timeout)
            if not isinstance(posted, Undecided):
                return posted
            decided = await self._locks_queue.submit(item, timeout=deadline - loop.time())
            if not isinstance(decided, Blocked):
                return decided
            self._blocked_items += 1
            try:
                return await self._blocked_queue.submit(item, timeout=deadline - loop.time())
            finally:
                self._blocked_items -= 1
        finally:
            self._active_submits -= 1
            if not self._active_submits:
                self._has_no_submits.set()

    @asynccontextmanager
    async def _locking(self) -> AsyncIterator[bool]:
        """Yields whether a statement must skip locked accounts. If so, the write lock is held. Otherwise the statement
        would also skip the accounts that other statements of this process have locked."""
        if not self._has_blocked_items:
            yield False
            return
        async with self._write_lock:
            yield self._has_blocked_items

    @property
    def _has_blocked_items(self) -> bool:
        """Whether an account is known to be locked for long. Then the other queues don't wait for locked accounts."""
        return self._blocked_items > 0

    async def _post_unblocked(self, items: Sequence[Item]) -> Sequence[Answer | Blocked]:
        """Post the items under locks. Return `BLOCKED` for those whose accounts or keys another transaction has locked
        for longer than a batch of the ledger takes.

        The items are posted by one transaction at most, as in `BasicBatches.post`.
        """
        try:
            if not self._has_blocked_items:
                try:
                    return await self._commit(lambda session: post_unblocked(session, items, waits=True))
                except KeyLocked:
                    raise
                except LockedForLong:  # an account: without the wait, only its own requests are blocked
                    pass
            async with self._write_lock:  # otherwise two batches of this process could block each other
                return await self._commit(lambda session: post_unblocked(session, items, waits=False))
        except KeyLocked:
            if len(items) > 1:
                raise  # PostgreSQL doesn't say which key, so the coalescer bisects to find it
            return [BLOCKED]
        except ConnectionLost as lost:
            return await self._recover(items, lost)

    async def _post_blocked(self, items: Sequence[Item]) -> Sequence[Answer]:
        """Post a batch of the blocked queue. Items whose accounts are still locked wait for the locks."""
        answers = await self._post_unblocked(items)
        blocked = [item for item, answer in zip(items, answers, strict=True) if answer is BLOCKED]
        if not blocked:
            return _replace_blocked(answers, ())
        try:
            waited: Sequence[Answer] = await self._post_with_locks(blocked)
        except ConnectionLost as lost:
            waited = await self._recover(blocked, lost)
        except Exception as error:
            if len(blocked) == len(items) and not isinstance(error, LockTimeout):
                raise  # nothing was posted, so the coalescer may call this again with a part of the batch
            waited = await self._post_each(blocked, error)
        return _replace_blocked(answers, waited)

    async def _post_each(self, items: Sequence[Item], error: Exception) -> list[Answer]:
        """Post each item by its own transaction, after they failed together. This method must not raise: other items of
        the batch were posted.

        An item that would have to wait again fails with this error, because the batch has waited long enough.
        """
        answers: list[Answer] = []
        for item in items:
            try:
                [answer] = await self._post_unblocked([item])
                answers.append(error if isinstance(answer, Blocked) else answer)
            except Exception as own_error:
                answers.append(own_error)
        return answers

    async def _post_with_locks(self, items: Sequence[Item]) -> list[list[TransferResult]]:
        if not items:
            return []
        requests = _flatten(items)
        return group_results(items, await self._commit(lambda session: post_transfers(session, requests)))

    async def _recover(self, items: Sequence[Item], lost: ConnectionLost) -> list[Answer]:
        """Find the results of a batch whose connection broke during the commit. If all requests of an item have keys,
        the keys are looked up, and the requests are posted if they were not committed. Other items fail with `lost`.

        This method must not raise. Otherwise the coalescer would retry the whole batch, and could post requests without
        keys twice.
        """
        answers: list[Answer] = [lost] * len(items)
        positions = [n for n, item in enumerate(items) if all(request.key is not None for request in item)]
        recovered: Sequence[Answer]
        try:
            recovered = await self._post_with_locks([items[n] for n in positions])
        except Exception as error:
            recovered = [error] * len(positions)
        for position, answer in zip(positions, recovered, strict=True):
            answers[position] = answer
        return answers

    async def _commit(self, work: Callable[[AsyncSession], Awaitable[ResultT]]) -> ResultT:
        """Do the work in a transaction, again if another one has used one of its keys in the meantime."""
        for _ in range(_MAX_KEY_ATTEMPTS - 1):
            try:
                return await run_transaction(self.database, work)
            except KeyInUse:  # the other transaction has ended, so its keys are now stored or unused
                continue
        return await run_transaction(self.database, work)


def _flatten(items: Sequence[Item]) -> list[TransferRequest]:
    return [request for item in items for request in item]


def _replace_blocked(answers: Sequence[Answer | Blocked], replacements: Sequence[Answer]) -> list[Answer]:
    """The answers, with each `BLOCKED` replaced by the next replacement."""
    remaining = iter(replacements)
    return [next(remaining) if isinstance(answer, Blocked) else answer for answer in answers]
