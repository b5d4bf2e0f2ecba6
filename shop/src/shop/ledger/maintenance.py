"""Background jobs: void expired holds, link new seals to the chain, delete old idempotency keys.

Any number of processes may run them at the same time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy import ARRAY, Uuid, all_, bindparam, delete, func, select, tuple_

from howdah import Database
from shop.ledger.expiry import ACCOUNTS_WITH_EXPIRED_HOLDS
from shop.ledger.group_commit import Ledger
from shop.ledger.models import IdempotencyKey, PendingTransfer
from shop.ledger.seals import link_seals

INTERVAL_SECONDS: Final = 5.0
_KEYS_EVERY_SECONDS: Final = 3_600.0
_AT_A_TIME: Final = 500

_done: Final = bindparam("done", type_=ARRAY(Uuid()))

_log = structlog.get_logger("shop.maintenance")


@asynccontextmanager
async def maintenance(database: Database, ledger: Ledger, *, key_retention_days: float) -> AsyncIterator[None]:
    """Run the jobs inside the `async with` block. Every five seconds expired holds are voided and new seals are linked.
    Every hour keys are deleted that were first used more than `key_retention_days` ago. A failure is logged and
    doesn't stop the other jobs. The job runs again five seconds later."""
    task = asyncio.create_task(_run_jobs(database, ledger, timedelta(days=key_retention_days)))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def void_expired(database: Database, ledger: Ledger) -> int:
    """Void all expired holds, and return their number. Accounts that another transaction has locked are skipped until
    the next run."""
    voided, done = 0, set[UUID]()
    while True:
        holding = ACCOUNTS_WITH_EXPIRED_HOLDS.where(PendingTransfer.from_account_id != all_(_done)).limit(_AT_A_TIME)
        async with database.autocommit() as connection:
            ids = set(await connection.scalars(holding, {"done": list(done)}))
        if not ids:
            return voided
        voided += await ledger.void_expired(ids)
        done |= ids


async def delete_old_keys(database: Database, retention: timedelta) -> int:
    """Delete the idempotency keys that were first used longer ago than `retention`, by the database's clock. Return
    their number."""
    forgotten = 0
    old = (
        select(IdempotencyKey.scope, IdempotencyKey.key)
        .where(IdempotencyKey.created_at < func.statement_timestamp() - retention)
        .limit(_AT_A_TIME)
        .with_for_update(skip_locked=True)
    )
    while True:
        async with database.begin() as session:
            result = await session.execute(
                delete(IdempotencyKey)
                .where(tuple_(IdempotencyKey.scope, IdempotencyKey.key).in_(old))
                .returning(IdempotencyKey.key)
                .execution_options(synchronize_session=False)
            )
            gone = len(result.all())
        forgotten += gone
        if gone < _AT_A_TIME:
            return forgotten


async def _run_jobs(database: Database, ledger: Ledger, retention: timedelta) -> None:
    keys_due = time.monotonic()
    while True:
        with _failure_logged("void_expired"):
            if voided := await void_expired(database, ledger):
                _log.info("expired transfers voided", count=voided)
        with _failure_logged("link_seals"):
            await link_seals(database)
        if time.monotonic() >= keys_due:
            with _failure_logged("delete_old_keys"):
                if forgotten := await delete_old_keys(database, retention):
                    _log.info("idempotency keys forgotten", count=forgotten)
                keys_due = time.monotonic() + _KEYS_EVERY_SECONDS
        await asyncio.sleep(INTERVAL_SECONDS)


@contextmanager
def _failure_logged(job: str) -> Iterator[None]:
    """Log an error of the job, so that the other jobs run, too. The job runs again five seconds later."""
    try:
        yield
    except Exception:
        _log.exception("maintenance failed", job=job)
