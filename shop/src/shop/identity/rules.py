"""Who may call the routes of sign-in. API keys may call none of them."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from howdah import NotFound
from howdah.fastapi import PUBLIC, allow
from shop.identity.models import SignInSession
from shop.identity.principals import Principal, Role
from shop.web.access import admins

ANYONE: Final[Any] = PUBLIC
"""For routes whose credential is a secret in the body, such as a password or a one-time token."""

# Without a scope, because a stolen API key must not change how its user signs in.
SIGNED_IN: Final[Any] = allow(*Role)

MANAGE_USERS: Final[Any] = admins()


class OwnSessions:
    """The sessions of a user. To everybody else they are missing, also to an admin."""

    def check(self, principal: Principal, owner_id: UUID | None, session_id: UUID) -> None:
        """Raise `NotFound` for the session of another user, and for an unknown one, whose owner is None."""
        if owner_id != principal.user_id:
            raise NotFound(SignInSession, [session_id])


OWN_SESSIONS: Final = OwnSessions()
