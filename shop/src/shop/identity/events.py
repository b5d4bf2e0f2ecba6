"""Security events, which are recorded in the audit trail and logged."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import Database
from shop.audit.models import AuditAction
from shop.audit.service import record
from shop.identity.clients import Client
from shop.identity.principals import Principal

# Events can't be deleted, so a flood must not fill the disk: these are at most 17,480 a day, or 12 MB, per process.
_BURST: Final = 200
_PER_SECOND: Final = 0.2

_log = structlog.get_logger("shop.identity")


async def record_user_event(
    session: AsyncSession,
    action: AuditAction,
    *,
    user_id: UUID | None,
    actor: Principal | None = None,
    client: Client | None = None,
    **details: object,
) -> None:
    """Record an event about this user in the caller's transaction.

    `actor` is None for the system, and for a request without a principal. `details` contain no secret, and no mail
    address.
    """
    _log.info(action.value, user_id=None if user_id is None else str(user_id), **details)
    await record(
        session,
        action,
        actor=actor,
        subject_type="user",
        subject_id=user_id,
        details=details,
        address=None if client is None else client.shown_address,
    )


class BoundedEvents:
    """Records events that a client can repeat without limit, such as refused sign-ins. Their number is bounded.

    Events above the bound are only counted. The next event that is recorded has their number, `left_out`. The function
    `record_user_event` records all other events, so they are never left out.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._available = float(_BURST)
        self._refilled_at = clock()
        self._left_out = 0

    async def record(
        self,
        action: AuditAction,
        *,
        user_id: UUID | None,
        client: Client,
        actor: Principal | None = None,
        session: AsyncSession | None = None,
        **details: object,
    ) -> None:
        """Record the event in the transaction of `session`. Without a session, the event has its own transaction: for
        example, the transaction of a refused sign-in is rolled back.

        All accounts share the bound, so the work is the same for known and unknown users.
        """
        if not self._take():
            return
        if self._left_out:
            details["left_out"], self._left_out = self._left_out, 0
        if session is not None:
            await record_user_event(session, action, user_id=user_id, actor=actor, client=client, **details)
            return
        async with self._database.begin() as own:
            await record_user_event(own, action, user_id=user_id, actor=actor, client=client, **details)

    def _take(self) -> bool:
        """Whether the next event is within the bound. Otherwise it is counted."""
        now = self._clock()
        self._available = min(_BURST, self._available + (now - self._refilled_at) * _PER_SECOND)
        self._refilled_at = now
        if self._available < 1:
            self._left_out += 1
            return False
        self._available -= 1
        return True
