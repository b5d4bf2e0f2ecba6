"""The admin who sends all requests, and the key that signs their access token."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Final
from uuid import UUID, uuid4

from shop.identity.principals import Principal, Role
from shop.identity.tokens import TokenSigner
from shop.keyrings import new_key, parse_keyring

# A new key for each run: no key in the repository is ever a valid one. The other processes of the run inherit it.
SIGNING_KEYS: Final = os.environ.setdefault("SOAK_SIGNING_KEYS", new_key())
"""The environment variable `SHOP_SIGNING_KEYS` of the service."""

# Longer than any run, which doesn't have to renew its token.
_SIGNER: Final = TokenSigner(parse_keyring(SIGNING_KEYS), lifetime=timedelta(days=2))
ADMIN_ID: Final = UUID(int=0xAD)


def sign_in(role: Role = Role.ADMIN, user_id: UUID = ADMIN_ID) -> dict[str, str]:
    """The header `Authorization` of a principal with this role."""
    return {"Authorization": f"Bearer {_SIGNER.sign(Principal(user_id, role, session_id=uuid4()))}"}


ADMIN: Final = sign_in()
"""The header of the admin, in each process with another token."""

ADMIN_LINE: Final = "".join(f"{name}: {text}\r\n" for name, text in ADMIN.items()).encode()
"""The same as bytes, for requests that are written to a socket."""
