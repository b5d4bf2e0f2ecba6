"""Periodic jobs: void expired holds, link new seals to the chain, delete old idempotency keys and stored responses.

Any number of processes may run them at the same time.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy import ARRAY, Uuid, all_, bindparam, delete, func, select, tuple_

from howdah import Database, delete_old_requests
from howdah.fastapi import Job, Resource
from shop.ledger.expiry import ACCOUNTS_WITH_EXPIRED_HOLDS
from shop.ledger.group_commit import Ledger
from shop.ledger.models import IdempotencyKey, PendingTransfer
from shop.ledger.seals import link_seals
from shop.web.dependencies import SYSTEM_DATABASE
from shop.web.models import IdempotentRequest

_INTERVAL: Final = timedelta(seconds=5)
_KEY_DELETION_INTERVAL: Final = timedelta(hours=1)
# Accounts or keys per transaction. A larger transaction would hold its locks for longer.
_BATCH_SIZE: Final = 500

_processed_ids: Final = bindparam("processed_ids", type_=ARRAY(Uuid()))

_log = structlog.get_logger("shop.maintenance")


def build_jobs(ledger: Resource[Ledger], *, key_retention_days: float) -> list[Job]:
    """Expired holds are voided and new seals are linked every five seconds.

    Keys that were first used more than `key_retention_days` ago are deleted every hour, those of the ledger and those
    of other requests.
    """
    retention = timedelta(days=key_retention_days)
    return [
        Job("void-expired-holds", every=_INTERVAL, work=void_expired, resource=ledger),
        Job("link-seals", every=_INTERVAL, work=link_seals, database=SYSTEM_DATABASE),
        Job(
            "delete-old-keys",
            every=_KEY_DELETION_INTERVAL,
            work=lambda database: delete_old_keys(database, retention),
            database=SYSTEM_DATABASE,
        ),
    ]


async def void_expired(ledger: Ledger) -> int:
    """Void all expired holds, and return their number.

    Accounts that another transaction has locked for more than 0.2 s are skipped until the next run.
    """
    voided, processed = 0, set[UUID]()
    is_unprocessed = PendingTransfer.from_account_id != all_(_processed_ids)  # don't find locked accounts again
    batch = ACCOUNTS_WITH_EXPIRED_HOLDS.where(is_unprocessed).limit(_BATCH_SIZE)
    while True:
        async with ledger.database.autocommit() as connection:
            ids = set(await connection.scalars(batch, {"processed_ids": list(processed)}))
        if not ids:
            if voided:
                _log.info("expired holds voided", count=voided)
            return voided
        voided += await ledger.void_expired(ids)
        processed |= ids


async def delete_old_keys(database: Database, retention: timedelta) -> int:
    """Delete the keys and stored responses that were first used longer ago than `retention`. Returns their number.

    The age is measured by the database's clock. Locked keys are skipped until the next run.
    """
    deleted = await delete_old_requests(database, IdempotentRequest, older_than=retention)
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
            if deleted:
                _log.info("old idempotency keys deleted", count=deleted)
            return deleted
