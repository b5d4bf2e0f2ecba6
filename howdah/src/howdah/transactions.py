"""Transactions that are run again when they lose a race, and locks that last as long as one."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TypeVar

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from howdah._retry import retried
from howdah.database import Database, IsolationLevel
from howdah.errors import NestedTransaction, TransactionConflict

ResultT = TypeVar("ResultT")


class _Run:
    """One call of `run_transaction`."""

    is_over = False


# The call whose work this context is part of.
_run: ContextVar[_Run | None] = ContextVar("howdah_run", default=None)


async def run_transaction(
    database: Database,
    work: Callable[[AsyncSession], Awaitable[ResultT]],
    *,
    attempts: int = 5,
    timeout: float = 30.0,  # noqa: ASYNC109  # a bound on starting again, not on the work
    isolation_level: IsolationLevel | None = None,
) -> ResultT:
    """Run `work(session)` in a transaction of its own, commit, and return what it returned.

    When PostgreSQL rolls the transaction back for a race that it lost (40001, 40P01: `TransactionConflict`), the whole of `work`
    runs again in a fresh session, at most `attempts` times in all and not begun again later than `timeout` seconds
    after the first start; then the last error is raised. Between them it waits at random up to 10 ms, 20 ms, 40 ms …
    1 s ("full jitter", <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>). So `work` must
    do nothing outside the database that can't be done twice, and return nothing from a session that was thrown away.

    Every other error is raised at once and rolls back.

    It may be called while another session of this task is open, such as a request's `DbSession`. It uses its own
    session and connection. Its changes stay committed even if the other session is rolled back. It doesn't see
    uncommitted changes of the other session. The wait for a connection ends with `PoolExhausted` after `pool_timeout`.
    The wait for a row that the other session has locked ends with `LockTimeout` after `lock_timeout`.

    Raises `NestedTransaction` inside the `work` of another `run_transaction`: if the outer work is run again, the
    changes that the inner one committed would be made twice.
    """
    if attempts < 1:
        raise ValueError(f"work is attempted at least once, not {attempts} times")
    outer = _run.get()
    if outer is not None and not outer.is_over:
        raise NestedTransaction(
            "run_transaction was called inside the work of another run_transaction, which may run again: pass that "
            "work's session to the function instead, or open a savepoint in it"
        )

    async def once() -> ResultT:
        async with database.begin(isolation_level=isolation_level) as session:
            return await work(session)

    run = _Run()
    token = _run.set(run)
    try:
        return await retried(once, on=(TransactionConflict,), attempts=attempts, timeout=timeout)
    finally:
        run.is_over = True  # tasks that the work has started inherit this context
        _run.reset(token)


@asynccontextmanager
async def savepoint(session: AsyncSession) -> AsyncIterator[None]:
    """`async with savepoint(session):` what fails inside is rolled back to here, and the transaction lives on.

    An error of the database that is caught inside is raised on leaving, since what came before it is undone too.
    Objects that were changed inside are expired by such a rollback: `await session.refresh(object)` before using one,
    or SQLAlchemy raises `MissingGreenlet`.
    """
    async with session.begin_nested():
        yield
        await session.connection()  # raises if a flush has failed: SQLAlchemy would end the savepoint in silence


async def advisory_lock(session: AsyncSession, *name: object) -> None:
    """Wait for the lock of this name and hold it until the transaction ends. For what no row stands for.

    The name's parts are hashed to the 64 bits that PostgreSQL keys its advisory locks by; two names that collide only
    wait for each other needlessly. Raises `LockTimeout` after the session's `lock_timeout`.
    """
    await session.execute(select(func.pg_advisory_xact_lock(_lock_key(name))))


async def try_advisory_lock(session: AsyncSession, *name: object) -> bool:
    """As `advisory_lock`, without waiting: False if somebody else holds it."""
    return bool(await session.scalar(select(func.pg_try_advisory_xact_lock(_lock_key(name)))))


def _lock_key(name: tuple[object, ...]) -> int:
    text = "\x1f".join(str(part) for part in name)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)
