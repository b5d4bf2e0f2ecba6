"""Transactions that are retried after a conflict, savepoints, and advisory locks that a transaction holds."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TypeVar

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from howdah._retry import call_with_retries
from howdah.database import Database, IsolationLevel
from howdah.errors import NestedTransaction, TransactionConflict

ResultT = TypeVar("ResultT")


class _Run:
    """One call of `run_transaction`."""

    is_over = False


# The call of `run_transaction` whose `work` runs in this context.
_run: ContextVar[_Run | None] = ContextVar("howdah_run", default=None)


async def run_transaction(
    database: Database,
    work: Callable[[AsyncSession], Awaitable[ResultT]],
    *,
    max_attempts: int = 5,
    timeout: float = 30.0,  # noqa: ASYNC109  # limits the start of a retry, not the work
    isolation_level: IsolationLevel | None = None,
) -> ResultT:
    """Run `work(session)` in its own transaction, commit, and return the result of `work`.

    If PostgreSQL rolls the transaction back because of a concurrent one (`TransactionConflict`: 40001, 40P01), the
    whole of `work` is run again in a new session. `work` is run at most `max_attempts` times. No retry starts later
    than `timeout` seconds after the first start. After the last attempt its error is raised. Before each retry there is
    a random delay of up to 10 ms, 20 ms, 40 ms … 1 s ("full jitter",
    <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>).

    So `work` may run several times. It must not do anything outside the database that can't be repeated, and must not
    keep objects from the session of an earlier attempt.

    Every other error rolls the transaction back and is raised immediately.

    It may be called while another session of this task is open, such as a request's `DbSession`. It uses its own
    session and connection. Its changes stay committed even if the other session is rolled back. It doesn't see
    uncommitted changes of the other session. The wait for a connection ends with `PoolExhausted` after `pool_timeout`.
    The wait for a row that the other session has locked ends with `LockTimeout` after `lock_timeout`.

    Raises `NestedTransaction` inside the `work` of another `run_transaction`: a retry of the outer work would
    repeat the changes that the inner call has committed.
    """
    if max_attempts < 1:
        raise ValueError(f"max_attempts must be at least 1, not {max_attempts}")
    outer = _run.get()
    if outer is not None and not outer.is_over:
        raise NestedTransaction(
            "run_transaction was called inside the work of another run_transaction, which may run again: pass that "
            "work's session to the function instead, or open a savepoint in it"
        )

    async def run_once() -> ResultT:
        async with database.begin(isolation_level=isolation_level) as session:
            return await work(session)

    run = _Run()
    token = _run.set(run)
    try:
        return await call_with_retries(run_once, on=(TransactionConflict,), attempts=max_attempts, timeout=timeout)
    finally:
        run.is_over = True  # a task that `work` has started still has this run in its context
        _run.reset(token)


@asynccontextmanager
async def savepoint(session: AsyncSession) -> AsyncIterator[None]:
    """`async with savepoint(session):` undoes the changes of its block if the block raises an error.

    The transaction stays usable.

    An error of the database that is caught inside the block is raised again at the end of the block, because PostgreSQL
    has undone the earlier statements of the block too. A rollback expires the objects that were changed in the block:
    call `await session.refresh(object)` before you read one, otherwise SQLAlchemy raises `MissingGreenlet`.
    """
    async with session.begin_nested():
        yield
        await session.connection()  # raises if a flush has failed; SQLAlchemy would end the savepoint without an error


async def advisory_lock(session: AsyncSession, *name: object) -> None:
    """Wait for the advisory lock with this name, and hold it until the transaction ends.

    Use it if there is no row to lock. The parts of the name are hashed to a key of 64 bits, the size that PostgreSQL
    requires. Two names with the same hash have the same lock. Raises `LockTimeout` after the session's `lock_timeout`.
    """
    await session.execute(select(func.pg_advisory_xact_lock(_lock_key(name))))


async def try_advisory_lock(session: AsyncSession, *name: object) -> bool:
    """As `advisory_lock`, without waiting. Returns False if another transaction holds the lock."""
    return bool(await session.scalar(select(func.pg_try_advisory_xact_lock(_lock_key(name)))))


def _lock_key(name: tuple[object, ...]) -> int:
    text = "\x1f".join(str(part) for part in name)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)
