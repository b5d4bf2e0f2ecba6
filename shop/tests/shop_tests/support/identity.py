"""Tokens for tests, signed with the key of `TEST_SETTINGS`."""

from __future__ import annotations

from typing import Final
from uuid import UUID, uuid4

from pydantic import SecretStr

from shop.identity.principals import Principal, Role
from shop.identity.tokens import TokenSigner
from shop.keyrings import new_key
from shop.settings import Settings

# A new one for each run, so that no key in the repository is ever a valid one.
SIGNING_KEYS: Final = new_key()
"""The environment variable `SHOP_SIGNING_KEYS` of a service in another process."""

TEST_SETTINGS: Final = Settings(
    signing_keys=SecretStr(SIGNING_KEYS),
    encryption_keys=SecretStr(new_key()),
    argon2_memory_kib=8,
    argon2_iterations=1,
    rate_limits=False,
    maintenance=False,  # its jobs could change the data of a test at any time
)
TEST_SIGNER: Final = TokenSigner(TEST_SETTINGS.signing_keyring)

ADMIN: Final = Principal(UUID(int=0xAD), Role.ADMIN)
"""The principal of clients that `client_of` creates, unless another one is given."""


def sign_in(role: Role = Role.CUSTOMER, user_id: UUID | str | None = None) -> dict[str, str]:
    """The header of a principal with this role. By default it is a new user, without a row in `users`."""
    id_ = uuid4() if user_id is None else UUID(str(user_id))
    return {"Authorization": f"Bearer {TEST_SIGNER.sign(Principal(id_, role, session_id=uuid4()))}"}
