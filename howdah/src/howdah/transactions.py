"""Transactions that are run again when they lose a race, and locks that last as long as one."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TypeVar
from weakref import ref

from sqlalchemy import event, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from howdah.database import Database, IsolationLevel
from howdah.errors import Conflict, NestedTransaction
from howdah.retrying import retried

ResultT = TypeVar("ResultT")

# The sessions that began in this context; one that is still in its transaction makes a `run_transaction` nested.
_begun: ContextVar[tuple[ref[Session], ...]] = ContextVar("howdah_begun", default=())


async def run_transaction(
    database: Database,
    work: Callable[[AsyncSession], Awaitable[ResultT]],
    *,
    attempts: int = 5,
    timeout: float = 30.0,  # noqa: ASYNC109  # a bound on starting again, not on the work
    isolation_level: IsolationLevel | None = None,
) -> ResultT:
    """Run `work(session)` in a transaction of its own, commit, and return what it returned.

    When PostgreSQL rolls the transaction back for a race that it lost (40001, 40P01: `Conflict`), the whole of `work`
    runs again in a fresh session, at most `attempts` times in all and not begun again later than `timeout` seconds
    after the first start; then the last error is raised. Between them it waits at random up to 10 ms, 20 ms, 40 ms …
    1 s ("full jitter", <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>). So `work` must
    do nothing outside the database that can't be done twice, and return nothing from a session that was thrown away.

    Every other error is raised at once and rolls back. Raises `NestedTransaction` if this task (or the one that
    started it) is in a transaction.
    """
    if attempts < 1:
        raise ValueError(f"work is attempted at least once, not {attempts} times")
    if any(_is_in_transaction(begun) for begun in _begun.get()):
        raise NestedTransaction(
            "run_transaction was called inside a running transaction: pass that session to the function instead, "
            "or open a savepoint in it"
        )

    async def once() -> ResultT:
        async with database.begin(isolation_level=isolation_level) as session:
            return await work(session)

    return await retried(once, on=(Conflict,), attempts=attempts, timeout=timeout)


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


@event.listens_for(Session, "after_transaction_create")
def _remember(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        others = (begun for begun in _begun.get() if begun() is not session and _is_in_transaction(begun))
        _begun.set((*others, ref(session)))


def _is_in_transaction(begun: ref[Session]) -> bool:
    session = begun()
    return session is not None and session.in_transaction()
