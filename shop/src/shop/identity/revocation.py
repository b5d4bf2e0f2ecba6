"""Sessions that have ended before their access tokens expire.

An access token is verified without the database. So each process polls for the sessions that ended within the lifetime
of a token: after a sign-out, a change of the password or the role, or because an admin ended them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Annotated, Final
from uuid import UUID

import structlog
from fastapi import Depends
from sqlalchemy import CompoundSelect, DateTime, bindparam, func, null, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from howdah import Database, HowdahError
from howdah.fastapi import Job, NotAuthenticated, ProblemException, Resource
from shop.identity.models import SignInSession
from shop.identity.tokens import LIFETIME
from shop.web.dependencies import SYSTEM_DATABASE

POLL_INTERVAL: Final = timedelta(seconds=2)

MAX_STALENESS: Final = timedelta(seconds=30)
"""If the database can't be polled for this long, no access token is accepted. It is longer than a failover takes."""

_MAX_STALENESS_SECONDS: Final = MAX_STALENESS.total_seconds()

# The longest time between `revoked_at` of a row and its commit, and between the read of a session and the signature of
# its token.
_MAX_DELAY: Final = timedelta(minutes=2)
_RETENTION: Final = LIFETIME + _MAX_DELAY

# GREATEST ignores NULL, which is `since` at the first poll. The sessions of deleted users have no time of their end.
# They are few, because they are deleted within hours.
_ENDED: Final[CompoundSelect[UUID, datetime | None]] = union_all(
    select(SignInSession.id, SignInSession.revoked_at).where(
        SignInSession.revoked_at
        >= func.greatest(bindparam("since", type_=DateTime(timezone=True)), func.statement_timestamp() - _RETENTION)
    ),
    select(SignInSession.id, null()).where(SignInSession.user_id.is_(None)),
)

_log = structlog.get_logger("shop.revocation")


class Revocations:
    """The sessions that have ended, as of the last poll of this process.

    `revoke` takes effect immediately in this process, and in the others within `POLL_INTERVAL`.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._forget_at: dict[UUID, float] = {}
        self._since: datetime | None = None
        self._polled_at: float | None = None
        self._refreshed_at: float | None = None
        self._refreshing = asyncio.Lock()

    def check(self, session_id: UUID | None) -> None:
        """Raise `NotAuthenticated` if the session has ended, and a 503 if the last poll is too long ago."""
        if session_id in self._forget_at:
            raise NotAuthenticated("the session has ended: sign in again")
        if self.is_stale():
            raise ProblemException(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "sessions-unavailable",
                "the service can't check whether the session has ended: try again later",
            )

    def revoke(self, *session_ids: UUID) -> None:
        """Reject the tokens of these sessions from now on. Call it after the commit that ends them."""
        forget_at = self._clock() + _RETENTION.total_seconds()
        self._forget_at.update(dict.fromkeys(session_ids, forget_at))

    def is_stale(self) -> bool:
        """Whether the last poll is too long ago. Then `check` raises a 503, so call `refresh` before it."""
        return self._polled_at is None or self._clock() - self._polled_at > _MAX_STALENESS_SECONDS

    async def refresh(self) -> None:
        """Poll now if `is_stale()`, so that requests succeed as soon as the database can be reached again.

        Concurrent calls share a poll, and there is at most one in each `POLL_INTERVAL`.
        """
        async with self._refreshing:
            if self.is_stale() and not self._has_refreshed():
                try:
                    await self.poll_now()
                finally:
                    self._refreshed_at = self._clock()

    def _has_refreshed(self) -> bool:
        refreshed_at = self._refreshed_at
        return refreshed_at is not None and self._clock() - refreshed_at <= POLL_INTERVAL.total_seconds()

    async def poll(self) -> None:
        """Read the sessions that have ended since the last poll, and forget those whose tokens have expired."""
        started = self._clock()

        async def read(connection: AsyncConnection) -> dict[UUID, datetime | None]:
            rows = await connection.execute(_ENDED, {"since": self._since})
            return {row.id: row.revoked_at for row in rows}

        ended = await self._database.read(read)
        self.revoke(*(id_ for id_ in ended if id_ not in self._forget_at))
        if times := [revoked_at for revoked_at in ended.values() if revoked_at is not None]:
            self._since = max(times) - _MAX_DELAY
        self._polled_at = started
        for id_ in [id_ for id_, forget_at in self._forget_at.items() if forget_at < started]:
            del self._forget_at[id_]

    async def poll_now(self) -> None:
        """Poll, and log an error of the database: the next poll finds what this one missed.

        Call it after a commit that has ended sessions whose ids are unknown.
        """
        try:
            await self.poll()
        except HowdahError as error:
            _log.warning("the ended sessions can't be read", error=type(error).__name__)


@asynccontextmanager
async def open_revocations(database: Database) -> AsyncIterator[Revocations]:
    """The revocations of an application. Without the database, no token is accepted until a poll succeeds."""
    opened = Revocations(database)
    await opened.poll_now()
    yield opened


revocations: Final = Resource("revocations", open_revocations, database=SYSTEM_DATABASE)

CurrentRevocations = Annotated[Revocations, Depends(revocations)]

POLL_REVOCATIONS: Final = Job("poll-revocations", every=POLL_INTERVAL, work=Revocations.poll, resource=revocations)
