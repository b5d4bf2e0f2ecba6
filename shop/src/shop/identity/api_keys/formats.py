"""The text of an API key: `shop_<12 hexadecimal digits>_<43 characters>`, with 256 random bits in the last part.

Only the SHA-256 of the secret part is stored. A slow hash such as Argon2 protects passwords, because these can be
guessed. 256 random bits can't be guessed, so a fast hash is enough. It takes less than a microsecond for each request.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

_KEY: Final = re.compile(r"(shop_[0-9a-f]{12})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class KeyParts:
    """`prefix` is public, and a key is found by it. `secret_hash` proves that the client has the secret."""

    prefix: str
    secret_hash: bytes


def generate_key() -> tuple[str, KeyParts]:
    """The text of a new key, which is shown once, and the parts that are stored."""
    prefix, secret = f"shop_{secrets.token_hex(6)}", secrets.token_urlsafe(32)
    return f"{prefix}_{secret}", KeyParts(prefix, _hash(secret))


def parse_key(text: str) -> KeyParts | None:
    """The parts of a key, or None if the text can't be a key. A longer text is rejected before it is hashed."""
    match = _KEY.fullmatch(text)
    return None if match is None else KeyParts(match[1], _hash(match[2]))


def _hash(secret: str) -> bytes:
    return sha256(secret.encode()).digest()
