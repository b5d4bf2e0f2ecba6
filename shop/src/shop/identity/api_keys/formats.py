"""The text of an API key: `shop_<12 hexadecimal digits>_<43 characters>`, with 256 random bits in the last part.

A stored key is the SHA-256 of its secret part. A slow hash such as Argon2 protects a password, which can be guessed.
Nobody can guess 256 random bits, with a fast hash either, and a fast hash costs less than a microsecond per request.
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
    """`prefix` is public and finds the key. `secret_hash` proves that the client has the secret."""

    prefix: str
    secret_hash: bytes


def generate_key() -> tuple[str, KeyParts]:
    """The text of a new key, which is shown once, and what is stored of it."""
    prefix, secret = f"shop_{secrets.token_hex(6)}", secrets.token_urlsafe(32)
    return f"{prefix}_{secret}", KeyParts(prefix, _hash(secret))


def parse_key(text: str) -> KeyParts | None:
    """The parts of a key, or None if the text can't be a key. A longer text is rejected before it is hashed."""
    match = _KEY.fullmatch(text)
    return None if match is None else KeyParts(match[1], _hash(match[2]))


def _hash(secret: str) -> bytes:
    return sha256(secret.encode()).digest()
