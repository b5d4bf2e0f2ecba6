"""The scopes of API keys: what a key may do, within what its user's role may do."""

from __future__ import annotations

from enum import StrEnum

from shop.identity.principals import Role


class Scope(StrEnum):
    """Reading and writing are separate scopes: a key that writes needs both."""

    READ_USERS = "users:read"
    WRITE_USERS = "users:write"
    READ_ORDERS = "orders:read"
    WRITE_ORDERS = "orders:write"
    READ_ACCOUNTS = "accounts:read"
    WRITE_ACCOUNTS = "accounts:write"
    READ_TRANSFERS = "transfers:read"
    WRITE_TRANSFERS = "transfers:write"
    READ_AUDIT = "audit:read"


def scopes_of_role(role: Role) -> frozenset[Scope]:
    """The scopes that a key of such a user can have."""
    return frozenset(Scope) - ({Scope.READ_AUDIT} if role is Role.CUSTOMER else frozenset())
