"""Give a login a password, without sending the password to the server."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from typing import Final

from howdah._connections.names import check_identifier, quote_literal
from howdah.tenancy.policies import quote_name

MIN_PASSWORD_CHARACTERS: Final = 16

# PostgreSQL's default `scram_iterations`. More would slow down each new connection.
_ITERATIONS: Final = 4096
_SALT_BYTES: Final = 16


def login_password_statement(name: str, password: str) -> str:
    """The statement that sets the password of a role. It contains a SCRAM-SHA-256 verifier instead of the password.

    So the password isn't in the server's log, in `pg_stat_activity`, or in the text of an error. Each call uses a new
    salt (RFC 5802, RFC 7677).

    The password must have at least 16 printable ASCII characters. For other characters, PostgreSQL and its clients
    would have to agree on a normal form. The `ValueError` for an invalid password doesn't show it.
    """
    check_identifier("the role", name)
    if len(password) < MIN_PASSWORD_CHARACTERS or not (password.isascii() and password.isprintable()):
        raise ValueError(
            f"the password of {name!r} must have at least {MIN_PASSWORD_CHARACTERS} printable ASCII characters: "
            "generate it, for example with secrets.token_urlsafe(32)"
        )
    verifier = scram_verifier(password, salt=os.urandom(_SALT_BYTES), iterations=_ITERATIONS)
    return f"ALTER ROLE {quote_name(name)} PASSWORD {quote_literal(verifier)}"


def scram_verifier(password: str, *, salt: bytes, iterations: int) -> str:
    """The text that PostgreSQL stores: `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(each).decode() for each in (salt, stored_key, server_key)]
    return "SCRAM-SHA-256${}:{}${}:{}".format(iterations, *encoded)
