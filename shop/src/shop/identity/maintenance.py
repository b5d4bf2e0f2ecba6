"""The periodic job that deletes old sessions, tokens and throttles. Any number of processes may run it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

import structlog
from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.orm import InstrumentedAttribute

from howdah import Database
from howdah.fastapi import Job
from shop.identity.models import OneTimeToken, SignInSession, SignInThrottle
from shop.identity.sessions import is_unneeded
from shop.identity.throttles import LONGEST_WINDOW
from shop.web.dependencies import SYSTEM_DATABASE

_INTERVAL: Final = timedelta(hours=1)
_BATCH_SIZE: Final = 500

_log = structlog.get_logger("shop.maintenance")


def build_jobs() -> list[Job]:
    return [Job("delete-old-sign-ins", every=_INTERVAL, work=delete_old_sign_ins, database=SYSTEM_DATABASE)]


async def delete_old_sign_ins(database: Database) -> int:
    """Delete rows that aren't needed any more. Returns their number. Locked rows are skipped until the next run."""
    now = func.statement_timestamp()
    # their refresh tokens are deleted with them
    deleted = await _delete_rows(database, SignInSession.id, is_unneeded())
    deleted += await _delete_rows(database, OneTimeToken.token_hash, OneTimeToken.expires_at < now)
    # a throttle that still blocks was changed less than an hour ago
    is_old = SignInThrottle.updated_at < now - 2 * LONGEST_WINDOW
    deleted += await _delete_rows(database, SignInThrottle.key, is_old)
    if deleted:
        _log.info("old sessions, tokens and throttles deleted", count=deleted)
    return deleted


async def _delete_rows(database: Database, key: InstrumentedAttribute[Any], condition: ColumnElement[bool]) -> int:
    old = select(key).where(condition).limit(_BATCH_SIZE).with_for_update(skip_locked=True)
    deleted = 0
    while True:
        async with database.begin() as session:
            result = await session.execute(
                delete(key.class_).where(key.in_(old)).returning(key).execution_options(synchronize_session=False)
            )
            batch_count = len(result.all())
        deleted += batch_count
        if batch_count < _BATCH_SIZE:
            return deleted
