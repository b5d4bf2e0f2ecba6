"""Security events: what the audit trail has to contain."""

from __future__ import annotations

from enum import StrEnum
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

_log = structlog.get_logger("shop.identity")


class Event(StrEnum):
    """What has happened."""

    SIGNED_UP = "signed-up"
    SIGNED_IN = "signed-in"
    SIGN_IN_FAILED = "sign-in-failed"
    SIGNED_OUT = "signed-out"
    SESSION_ENDED = "session-ended"
    SESSIONS_ENDED = "sessions-ended"
    REFRESH_TOKEN_REUSED = "refresh-token-reused"  # noqa: S105  # the name of an event
    PASSWORD_CHANGED = "password-changed"  # noqa: S105
    PASSWORD_RESET = "password-reset"  # noqa: S105
    EMAIL_CHANGED = "email-changed"
    TOTP_ENROLLED = "totp-enrolled"
    TOTP_REMOVED = "totp-removed"
    INVITED = "invited"
    INVITATION_ACCEPTED = "invitation-accepted"
    ROLE_CHANGED = "role-changed"


async def note(session: AsyncSession | None, event: Event, *, user_id: UUID | None, **details: str) -> None:
    """Note the event in the caller's transaction. `session` is None if there is no such transaction.

    `details` contain no secret, and no mail address.
    """
    _log.info(event.value, user_id=None if user_id is None else str(user_id), **details)
