"""The header `Authorization` of the requests to Shop, and the key that signs its access tokens."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Final
from uuid import UUID, uuid4

from shop.identity.principals import Principal, Role
from shop.identity.tokens import TokenSigner
from shop.keyrings import new_key, parse_keyring

# A new key for each run: no key in the repository is ever a valid one. The other processes of the run inherit it.
SIGNING_KEYS: Final = os.environ.setdefault("BENCHMARKS_SIGNING_KEYS", new_key())
"""The environment variable `SHOP_SIGNING_KEYS` of the service."""

STAFF_ID: Final = UUID(int=0xAD)


def create_authorization(role: Role, user_id: UUID = STAFF_ID) -> str:
    """The header `Authorization` of a principal with this role. The token outlives every run."""
    signer = TokenSigner(parse_keyring(SIGNING_KEYS), lifetime=timedelta(days=2))
    return f"Bearer {signer.sign(Principal(user_id, role, session_id=uuid4()))}"


AUTHORIZATION: Final = create_authorization(Role.ADMIN)
"""The header of an admin."""

OPERATOR_AUTHORIZATION: Final = create_authorization(Role.OPERATOR)
"""The header of an operator."""

# Here, because `benchmarks.authentication` and `benchmarks.authentication_loads` can't import each other: the tables of
# the benchmarks and those of Shop have the same names.
CACHED, FIRST, KEY, NOTHING = (
    "access token, used before",
    "access token, first use",
    "API key, used before",
    "no credentials",
)
"""The contenders of `benchmarks.authentication_loads`."""
