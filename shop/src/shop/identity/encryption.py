"""Encryption of the secrets of authenticator apps at rest."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from shop.identity.errors import TotpUnavailable


class SecretBox:
    """Encrypts with the first key, and decrypts with all of them (Fernet: AES-128-CBC and HMAC-SHA256).

    To replace a key, put the new one in front of it. Each secret is encrypted again at its next use.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._first = Fernet(keys[0])
        self._all = MultiFernet([Fernet(key) for key in keys])

    def encrypt(self, secret: str) -> bytes:
        return self._first.encrypt(secret.encode())

    def decrypt(self, encrypted: bytes) -> str:
        """Raises `TotpUnavailable` if no key fits."""
        try:
            return self._all.decrypt(encrypted).decode()
        except InvalidToken as error:
            raise TotpUnavailable from error

    def is_outdated(self, encrypted: bytes) -> bool:
        """Whether another key than the first one has encrypted the secret."""
        try:
            self._first.decrypt(encrypted)
        except InvalidToken:
            return True
        return False
