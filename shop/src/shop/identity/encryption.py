"""Encryption of the secrets of authenticator apps at rest."""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode
from collections.abc import Mapping

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from shop.identity.errors import TotpUnavailable


class SecretBox:
    """Encrypts with the first key of a keyring, and decrypts with all of them (Fernet: AES-128-CBC, HMAC-SHA-256).

    To replace a key, put the new one in front of it. Each secret is encrypted again at its next use.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        fernets = [Fernet(_derive_key(key)) for key in keys.values()]
        self._first, self._all = fernets[0], MultiFernet(fernets)

    def encrypt(self, secret: str) -> bytes:
        return self._first.encrypt(secret.encode())

    def decrypt(self, encrypted: bytes) -> str:
        """Raises `TotpUnavailable` if no key fits."""
        try:
            return self._all.decrypt(encrypted).decode()
        except InvalidToken as error:
            raise TotpUnavailable from error

    def is_outdated(self, encrypted: bytes) -> bool:
        """Whether the secret was encrypted with another key than the first one."""
        try:
            self._first.decrypt(encrypted)
        except InvalidToken:
            return True
        return False


def _derive_key(key: str) -> bytes:
    """A key of Fernet's form. The keys of a keyring are random, so they need no slow derivation."""
    return urlsafe_b64encode(hashlib.blake2b(key.encode(), digest_size=32, person=b"shop.identity").digest())
