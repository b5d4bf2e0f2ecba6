"""Random tokens that only their owner knows: refresh tokens, one-time tokens and recovery codes."""

from __future__ import annotations

import hashlib
import hmac
from base64 import b32encode, urlsafe_b64encode
from secrets import token_bytes
from typing import Final

_TOKEN_BYTES: Final = 32
# 120 bits. For at least 112 bits, a fast hash without a salt is enough (NIST SP 800-63B, look-up secrets).
_RECOVERY_CODE_BYTES: Final = 15
_CODE_GROUP: Final = 4


def new_token() -> str:
    """256 random bits, as 43 characters that need no escape in a URL."""
    return _to_text(token_bytes(_TOKEN_BYTES))


def hash_token(token: str) -> bytes:
    """The stored form of a token."""
    return hashlib.sha256(token.encode()).digest()


def new_nonce() -> bytes:
    return token_bytes(_TOKEN_BYTES)


def derive_successor(token: str, nonce: bytes) -> str:
    """The token that replaces this one. Nobody can compute it without the token and the nonce."""
    return _to_text(hmac.digest(token.encode(), nonce, "sha256"))


def new_recovery_code() -> str:
    """Six groups of four letters and digits."""
    text = b32encode(token_bytes(_RECOVERY_CODE_BYTES)).decode()
    return "-".join(text[start : start + _CODE_GROUP] for start in range(0, len(text), _CODE_GROUP))


def hash_recovery_code(code: str) -> bytes:
    """The stored form of a recovery code, which may be entered in lower case and without hyphens."""
    return hash_token("".join(each for each in code.upper() if each.isalnum()))


def _to_text(value: bytes) -> str:
    return urlsafe_b64encode(value).rstrip(b"=").decode()
