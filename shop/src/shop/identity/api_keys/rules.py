"""Who may manage API keys. An API key can't be used for that: a stolen key must not create further ones."""

from __future__ import annotations

from typing import Any, Final

from howdah.fastapi import allow
from shop.identity.api_keys.models import ApiKey
from shop.identity.principals import Role
from shop.web.access import OwnRows

# Without a scope, because no API key may call the routes.
MANAGE_KEYS: Final[Any] = allow(*Role)

OWN_KEYS: Final = OwnRows(ApiKey.user_id)
