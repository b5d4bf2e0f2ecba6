"""What is done in the background: pending transfers whose time is over are voided, what was written since is linked to
the chain of seals, old idempotency keys are forgotten.

Any number of processes may do it at the same time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Final

import structlog
from sqlalchemy import delete, select, tuple_

from howdah import Database, utcnow
from shop.proof.seals import link_seals
from shop.transfers.ledger import Ledger
from shop.transfers.models import IdempotencyKey, PendingTransfer, TransferState
from shop.transfers.requests import TransferRequest, TransferResult

EVERY_SECONDS: Final = 5.0
_KEYS_EVERY_SECONDS: Final = 3_600.0
_AT_A_TIME: Final = 500

_log = structlog.get_logger("shop.upkeep")


@asynccontextmanager
async def upkeep(database: Database, ledger: Ledger, *, key_retention_days: float) -> AsyncIterator[None]:
    """While inside: every five seconds what has expired is voided and new seals are linked, every hour the keys are
    forgotten that were first used longer ago than `key_retention_days`. Until then they count. What fails is logged and
    tried again."""
    task = asyncio.create_task(_keep_up(database, ledger, timedelta(days=key_retention_days)))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def void_expired(database: Database, ledger: Ledger) -> int:
    """Void what is pending and whose time is over; how many there were. Whoever posts one first has posted it."""
    voided = 0
    while True:
        late = (
            select(PendingTransfer.id, PendingTransfer.from_account_id, PendingTransfer.to_account_id)
            .where(PendingTransfer.state == TransferState.PENDING, PendingTransfer.expires_at <= utcnow())
            .order_by(PendingTransfer.expires_at)
            .limit(_AT_A_TIME)
        )
        async with database.autocommit() as connection:
            expired = (await connection.execute(late)).all()
        if not expired:
            return voided
        requests = [TransferRequest(each.from_account_id, each.to_account_id, None, voids=each.id) for each in expired]
        answers = await asyncio.gather(*map(ledger.submit, requests), return_exceptions=True)
        voided += sum(isinstance(answer, TransferResult) and answer.refusal is None for answer in answers)
        if failed := [answer for answer in answers if isinstance(answer, BaseException)]:
            raise failed[0]  # the others are done; these are tried again with the next


async def forget_keys(database: Database, before: datetime) -> int:
    """Forget the idempotency keys that were first used before this time; how many there were."""
    forgotten = 0
    old = (
        select(IdempotencyKey.scope, IdempotencyKey.key)
        .where(IdempotencyKey.created_at < before)
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


async def _keep_up(database: Database, ledger: Ledger, retention: timedelta) -> None:
    keys_due = utcnow()
    while True:
        try:
            if voided := await void_expired(database, ledger):
                _log.info("expired transfers voided", count=voided)
            await link_seals(database)
            if utcnow() >= keys_due:
                if forgotten := await forget_keys(database, utcnow() - retention):
                    _log.info("idempotency keys forgotten", count=forgotten)
                keys_due = utcnow() + timedelta(seconds=_KEYS_EVERY_SECONDS)
        except Exception:
            _log.exception("upkeep failed")
        await asyncio.sleep(EVERY_SECONDS)
