"""The principal of a request: who sent it, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from uuid import UUID


class Role(StrEnum):
    """A customer sees and moves only their own things. An operator reads everything and sets statuses. An admin does
    the rest."""

    CUSTOMER = "customer"
    OPERATOR = "operator"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """The user who is signed in, or the user of an API key.

    `session_id` is the session of an access token, and `api_key_id` the API key. One of the two is set. `scopes` are
    the scopes of an API key; None means that nothing is limited.
    """

    user_id: UUID
    role: Role
    scopes: frozenset[str] | None = None
    session_id: UUID | None = None
    api_key_id: UUID | None = None
    key: str = field(init=False, repr=False, compare=False)
    """The scope of idempotency keys and rate limits."""

    def __post_init__(self) -> None:
        # once for each principal, because several parts of a request use it
        object.__setattr__(self, "key", f"user:{self.user_id}")

    @property
    def customer_id(self) -> UUID | None:
        """The customer on whose behalf the principal acts. None for operators and admins.

        The database checks it: it is the setting of row-level security, and `posted_by` of a transfer. So it must not
        depend on the rules of a feature.
        """
        return self.user_id if self.role is Role.CUSTOMER else None

    @property
    def is_staff(self) -> bool:
        """True for operators and admins, who see the rows of every user."""
        return self.role is not Role.CUSTOMER
