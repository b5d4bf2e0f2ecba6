"""The operator who sends the requests to Shop, and the key that signs their access token."""

from __future__ import annotations

from datetime import timedelta
from typing import Final
from uuid import UUID, uuid4

from shop.identity.principals import Principal, Role
from shop.identity.tokens import TokenSigner

_KEY: Final = "benchmark-key-that-is-long-enough-for-hs256"
SIGNING_KEYS: Final = f"benchmark:{_KEY}"
"""The environment variable `SHOP_SIGNING_KEYS` of the service."""


def create_authorization(role: Role = Role.ADMIN, user_id: UUID = UUID(int=0xAD)) -> str:  # noqa: B008
    """The header `Authorization` of a principal with this role. The token outlives every run."""
    signer = TokenSigner({"benchmark": _KEY}, lifetime=timedelta(days=2))
    return f"Bearer {signer.sign(Principal(user_id, role, session_id=uuid4()))}"


AUTHORIZATION: Final = create_authorization()
"""The header of an admin."""
