"""Who may call the routes of sign-in. API keys may call none of them."""

from __future__ import annotations

from typing import Any, Final

from howdah.fastapi import PUBLIC, allow
from shop.identity.principals import Role
from shop.web.access import admins

ANYONE: Final[Any] = PUBLIC
"""For routes whose credential is a secret in the body, such as a password or a one-time token."""

# Without a scope, because a stolen API key must not change how its user signs in.
SIGNED_IN: Final[Any] = allow(*Role)

MANAGE_USERS: Final[Any] = admins()
