"""Who may do what: the expectations of the matrix test, one line for each route.

This table is written by hand, and apart from the rules in `shop.*.rules`, so that a changed rule is noticed. A new
route without a line here fails the test.

- `own`: only what belongs to the customer. A foreign object gets the answer of a missing one.
- `all`: every object.
- A role that isn't named gets 403. So does an API key without the scope. Without `scope`, every API key gets 403.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from howdah.testing.access import EVERYONE, Expectation, expect

READ_ORDERS: Final = "orders:read"
READ_USERS: Final = "users:read"

# fmt: off
EXPECTED: Final[Mapping[str, Expectation]] = {
    "POST /users": expect(operator="all", admin="all", scope="users:write"),
    "POST /users/bulk": expect(operator="all", admin="all", scope="users:write"),
    "GET /users": expect(customer="own", operator="all", admin="all", scope="users:read"),
    "PATCH /users/{user_id}": expect(customer="own", admin="all", scope="users:write"),
    "DELETE /users/{user_id}": expect(admin="all"),
    # the answers of these two have a user and orders
    "GET /users/{user_id}": expect(customer="own", operator="all", admin="all", scope="users:read", more_scopes=[READ_ORDERS]),
    "GET /users/{user_id}/order-summary": expect(customer="own", operator="all", admin="all", scope="orders:read", more_scopes=[READ_USERS]),

    # an operator moves no money and places no orders
    "POST /orders": expect(customer="own", admin="all", scope="orders:write", has_objects=True),
    "GET /orders": expect(customer="own", operator="all", admin="all", scope="orders:read"),
    "GET /orders/export": expect(customer="own", operator="all", admin="all", scope="orders:read"),
    "PATCH /orders/status": expect(operator="all", admin="all", scope="orders:write"),
    "GET /orders/{order_id}": expect(customer="own", operator="all", admin="all", scope="orders:read"),
    "POST /orders/{order_id}/pay": expect(customer="own", admin="all", scope="orders:write"),

    "POST /accounts": expect(customer="own", operator="all", admin="all", scope="accounts:write", has_objects=True),
    "POST /accounts/batch": expect(customer="own", operator="all", admin="all", scope="accounts:write", has_objects=True),
    "GET /accounts": expect(customer="own", operator="all", admin="all", scope="accounts:read"),
    "GET /accounts/{account_id}": expect(customer="own", operator="all", admin="all", scope="accounts:read"),
    "PATCH /accounts/{account_id}": expect(customer="own", operator="all", admin="all", scope="accounts:write"),
    "GET /accounts/{account_id}/balance": expect(customer="own", operator="all", admin="all", scope="accounts:read"),
    "GET /accounts/{account_id}/entries": expect(customer="own", operator="all", admin="all", scope="accounts:read"),

    "POST /transfers": expect(customer="own", admin="all", scope="transfers:write", has_objects=True),
    "POST /transfers/linked": expect(customer="own", admin="all", scope="transfers:write", has_objects=True),
    "POST /transfers/batch": expect(customer="own", admin="all", scope="transfers:write", has_objects=True),
    "GET /transfers": expect(customer="own", operator="all", admin="all", scope="transfers:read"),
    "GET /transfers/{transfer_id}": expect(customer="own", operator="all", admin="all", scope="transfers:read"),
    "POST /transfers/{transfer_id}/post": expect(customer="own", admin="all", scope="transfers:write"),
    "POST /transfers/{transfer_id}/void": expect(customer="own", admin="all", scope="transfers:write"),
    "POST /transfers/{transfer_id}/reverse": expect(customer="own", admin="all", scope="transfers:write"),

    "GET /audit-events": expect(operator="all", admin="all", scope="audit:read"),

    # everybody reaches only their own sessions, also an admin
    "GET /auth/me": expect(customer="own", operator="own", admin="own"),
    "GET /auth/sessions": expect(customer="own", operator="own", admin="own"),
    "DELETE /auth/sessions": expect(customer="own", operator="own", admin="own"),
    "DELETE /auth/sessions/{session_id}": expect(customer="own", operator="own", admin="own"),
    "POST /auth/sign-out": expect(customer="own", operator="own", admin="own"),
    "PUT /auth/password": expect(customer="own", operator="own", admin="own"),
    "POST /auth/email-change": expect(customer="own", operator="own", admin="own"),
    "POST /auth/totp/enrolment-token": expect(customer="own", operator="own", admin="own"),
    "POST /auth/invitations": expect(admin="all"),
    "PUT /auth/users/{user_id}/role": expect(admin="all"),
    "DELETE /auth/users/{user_id}/sessions": expect(admin="all"),
    "DELETE /auth/users/{user_id}/totp": expect(admin="all"),
    "POST /auth/api-keys": expect(customer="own", operator="own", admin="own"),
    "GET /auth/api-keys": expect(customer="own", operator="all", admin="all"),
    # an operator sees the keys of others, and may not revoke them: see `Requests.revoke_key`
    "DELETE /auth/api-keys/{key_id}": expect(customer="own", operator="all", admin="all"),

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
