"""Background jobs: void expired holds, link new seals to the chain, delete old idempotency keys and stored responses.

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

from howdah import Database, delete_old_requests
from shop.ledger.expiry import ACCOUNTS_WITH_EXPIRED_HOLDS
from shop.ledger.group_commit import Ledger
from shop.ledger.models import IdempotencyKey, PendingTransfer
from shop.ledger.seals import link_seals
from shop.web.models import IdempotentRequest

INTERVAL_SECONDS: Final = 5.0
_KEY_DELETION_INTERVAL_SECONDS: Final = 3_600.0
# Accounts or keys per transaction. A larger transaction would hold its locks for longer.
_BATCH_SIZE: Final = 500

_processed_ids: Final = bindparam("processed_ids", type_=ARRAY(Uuid()))

_log = structlog.get_logger("shop.maintenance")


@asynccontextmanager
async def run_maintenance(database: Database, ledger: Ledger, *, key_retention_days: float) -> AsyncIterator[None]:
    """Run the jobs inside the `async with` block.

    Expired holds are voided and new seals are linked every five seconds. Keys that were first used more than
    `key_retention_days` ago are deleted every hour, those of the ledger and those of other requests. A failed job is
    logged and runs again five seconds later. It doesn't stop the other jobs.
    """
    task = asyncio.create_task(_run_jobs(database, ledger, timedelta(days=key_retention_days)))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def void_expired(database: Database, ledger: Ledger) -> int:
    """Void all expired holds, and return their number.

    Accounts that another transaction has locked are skipped until the next run.
    """
    voided, processed = 0, set[UUID]()
    is_unprocessed = PendingTransfer.from_account_id != all_(_processed_ids)  # don't find locked accounts again
    batch = ACCOUNTS_WITH_EXPIRED_HOLDS.where(is_unprocessed).limit(_BATCH_SIZE)
    while True:
        async with database.autocommit() as connection:
            ids = set(await connection.scalars(batch, {"processed_ids": list(processed)}))
        if not ids:
            return voided
        voided += await ledger.void_expired(ids)
        processed |= ids


async def delete_old_keys(database: Database, retention: timedelta) -> int:
    """Delete the idempotency keys that were first used longer ago than `retention`, and return their number.

    The age is measured by the database's clock. Locked keys are skipped until the next run.
    """
    deleted = 0
    old_keys = (
        select(IdempotencyKey.scope, IdempotencyKey.key)
        .where(IdempotencyKey.created_at < func.statement_timestamp() - retention)
        .limit(_BATCH_SIZE)
        .with_for_update(skip_locked=True)
    )
    while True:
        async with database.begin() as session:
            result = await session.execute(
                delete(IdempotencyKey)
                .where(tuple_(IdempotencyKey.scope, IdempotencyKey.key).in_(old_keys))
                .returning(IdempotencyKey.key)
                .execution_options(synchronize_session=False)
            )
            batch_count = len(result.all())
        deleted += batch_count
        if batch_count < _BATCH_SIZE:
            return deleted


async def _run_jobs(database: Database, ledger: Ledger, retention: timedelta) -> None:
    """Run each job when it is due, until the task is cancelled."""
    key_deletion_due = time.monotonic()
    while True:
        with _log_failure("void_expired"):
            if voided := await void_expired(database, ledger):
                _log.info("expired holds voided", count=voided)
        with _log_failure("link_seals"):
            await link_seals(database)
        if time.monotonic() >= key_deletion_due:
            with _log_failure("delete_old_keys"):
                deleted = await delete_old_keys(database, retention)
                deleted += await delete_old_requests(database, IdempotentRequest, older_than=retention)
                if deleted:
                    _log.info("old idempotency keys deleted", count=deleted)
                # after a failure this line isn't reached, so the next run tries again
                key_deletion_due = time.monotonic() + _KEY_DELETION_INTERVAL_SECONDS
        await asyncio.sleep(INTERVAL_SECONDS)


@contextmanager
def _log_failure(job: str) -> Iterator[None]:
    """Catch and log an error of the job, so that it doesn't stop the other jobs."""
    try:
        yield
    except Exception:
        _log.exception("maintenance job failed", job=job)
