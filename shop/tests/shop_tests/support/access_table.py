"""Who may do what: the expectations of the matrix test, one line for each route.

This table is written by hand, and apart from the rules in `shop.*.rules`, so that a changed rule is noticed. A new
route without a line here fails the test.

- `own`: only what belongs to the customer. A foreign object gets the answer of a missing one.
- `all`: every object.
- A role that isn't named gets 403. So does an API key without the scope. Without `scope`, every API key gets 403.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from howdah.testing.access import EVERYONE, Expectation, expect


def all_roles(**options: Any) -> Expectation:
    """A customer reaches their own objects, and the staff reach all."""
    return expect(customer="own", operator="all", admin="all", **options)


OWN_ONLY: Final = expect(customer="own", operator="own", admin="own")
"""Everybody reaches only what is their own, also an admin."""

# fmt: off
EXPECTED: Final[Mapping[str, Expectation]] = {
    "POST /users": expect(operator="all", admin="all", scope="users:write"),
    "POST /users/bulk": expect(operator="all", admin="all", scope="users:write"),
    "GET /users": all_roles(scope="users:read"),
    "PATCH /users/{user_id}": expect(customer="own", admin="all", scope="users:write"),
    "DELETE /users/{user_id}": expect(admin="all"),
    # the answers of these two have a user and orders
    "GET /users/{user_id}": all_roles(scope="users:read", more_scopes=["orders:read"]),
    "GET /users/{user_id}/order-summary": all_roles(scope="orders:read", more_scopes=["users:read"]),

    # an operator moves no money and places no orders
    "POST /orders": expect(customer="own", admin="all", scope="orders:write", has_objects=True),
    "GET /orders": all_roles(scope="orders:read"),
    "GET /orders/export": all_roles(scope="orders:read"),
    "PATCH /orders/status": expect(operator="all", admin="all", scope="orders:write"),
    "GET /orders/{order_id}": all_roles(scope="orders:read"),
    "POST /orders/{order_id}/pay": expect(
        customer="own", admin="all", scope="orders:write", more_scopes=["transfers:write"]
    ),

    "POST /accounts": all_roles(scope="accounts:write", has_objects=True),
    "POST /accounts/batch": all_roles(scope="accounts:write", has_objects=True),
    "GET /accounts": all_roles(scope="accounts:read"),
    "GET /accounts/{account_id}": all_roles(scope="accounts:read"),
    "PATCH /accounts/{account_id}": all_roles(scope="accounts:write"),
    "GET /accounts/{account_id}/balance": all_roles(scope="accounts:read"),
    "GET /accounts/{account_id}/entries": all_roles(scope="accounts:read"),

    "POST /transfers": expect(customer="own", admin="all", scope="transfers:write", has_objects=True),
    "POST /transfers/linked": expect(customer="own", admin="all", scope="transfers:write", has_objects=True),
    "POST /transfers/batch": expect(customer="own", admin="all", scope="transfers:write", has_objects=True),
    "GET /transfers": all_roles(scope="transfers:read"),
    "GET /transfers/{transfer_id}": all_roles(scope="transfers:read"),
    "POST /transfers/{transfer_id}/post": expect(customer="own", admin="all", scope="transfers:write"),
    "POST /transfers/{transfer_id}/void": expect(customer="own", admin="all", scope="transfers:write"),
    "POST /transfers/{transfer_id}/reverse": expect(customer="own", admin="all", scope="transfers:write"),

    "GET /audit-events": expect(operator="all", admin="all", scope="audit:read"),

    "GET /auth/me": OWN_ONLY,
    "GET /auth/sessions": OWN_ONLY,
    "DELETE /auth/sessions": OWN_ONLY,
    "DELETE /auth/sessions/{session_id}": OWN_ONLY,
    "POST /auth/sign-out": OWN_ONLY,
    "PUT /auth/password": OWN_ONLY,
    "POST /auth/email-change": OWN_ONLY,
    "POST /auth/totp/enrolment-token": OWN_ONLY,
    "POST /auth/invitations": expect(admin="all"),
    "PUT /auth/users/{user_id}/role": expect(admin="all"),
    "DELETE /auth/users/{user_id}/sessions": expect(admin="all"),
    "DELETE /auth/users/{user_id}/totp": expect(admin="all"),
    "POST /auth/api-keys": OWN_ONLY,
    "GET /auth/api-keys": all_roles(),
    # an operator sees the keys of others, and may not revoke them: see `Requests.revoke_key`
    "DELETE /auth/api-keys/{key_id}": all_roles(),

    # the secret in the body is the credential
    "POST /auth/sign-up": EVERYONE,
    "POST /auth/sign-up/confirmation": EVERYONE,
    "POST /auth/sign-in": EVERYONE,
    "POST /auth/one-time": EVERYONE,
    "POST /auth/refresh": EVERYONE,
    "POST /auth/token": EVERYONE,
    "POST /auth/password-reset": EVERYONE,
    "POST /auth/password-reset/confirmation": EVERYONE,
    "POST /auth/email-change/confirmation": EVERYONE,
    "POST /auth/totp": EVERYONE,
    "POST /auth/totp/confirmation": EVERYONE,
    "POST /auth/invitations/acceptance": EVERYONE,

    "GET /sign-in": EVERYONE,
    "GET /sign-in/link": EVERYONE,
    "GET /sign-in/style.css": EVERYONE,
    "GET /sign-in/link.js": EVERYONE,
    "GET /sign-in/session.js": EVERYONE,
    "POST /sign-in": EVERYONE,
    "POST /sign-in/link": EVERYONE,
    "POST /sign-in/authenticator": EVERYONE,
    "POST /sign-in/authenticator/code": EVERYONE,
    "POST /sign-in/refresh": EVERYONE,
    "POST /sign-out": EVERYONE,
}
# fmt: on
