"""Keyrings: the keys of one purpose, as `id:secret,id:secret`. The first one signs or encrypts; all of them verify."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Final

_MIN_BYTES: Final = 32
# A random key of 32 bytes has many more, in any encoding.
_MIN_DISTINCT_CHARACTERS: Final = 10
# Words of examples. A random key in Base64 has one of them with a probability of about 10^-7.
_PLACEHOLDER: Final = re.compile(
    "change.?me|replace|example|default|placeholder|password|secret|insecure|test.?key|long.?enough", re.IGNORECASE
)
_KEY_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_SEPARATORS: Final = re.compile(r"[,\s]+")

_ADVICE: Final = "make one with `shop new-secret`"


class MissingSecret(Exception):
    """The service needs a secret that isn't set."""


def missing_secret(variable: str) -> MissingSecret:
    """The error for a secret that the operator must set."""
    return MissingSecret(
        f"{variable} isn't set, and only a service with the embedded server makes its own: {_ADVICE}, and put it in "
        f"that environment variable, or in the file {variable.lower()} of a directory that SHOP_SECRETS_DIR names"
    )


def new_key() -> str:
    """A new key with 256 random bits, and an id: `id:secret`."""
    return f"{secrets.token_hex(4)}:{secrets.token_urlsafe(_MIN_BYTES)}"


def parse_keyring(text: str) -> Mapping[str, str]:
    """The keys by their ids, in order. Keys are separated by commas or white space, such as the line breaks of a file.

    Raises `ValueError` for a key that is weak, or an example. The message doesn't contain the key.
    """
    keys: dict[str, str] = {}
    for position, entry in enumerate(filter(None, _SEPARATORS.split(text)), start=1):
        id_, colon, secret = entry.partition(":")
        if not colon or not _KEY_ID.fullmatch(id_):
            raise ValueError(f"key {position} must be `id:secret`, with an id of 1 to 32 letters and digits: {_ADVICE}")
        if id_ in keys:
            raise ValueError(f"key {position} has the id of an earlier key: each key needs its own id")
        if len(secret.encode()) < _MIN_BYTES or len(set(secret)) < _MIN_DISTINCT_CHARACTERS:
            raise ValueError(f"key {position} is too weak: it needs {_MIN_BYTES} random bytes; {_ADVICE}")
        if _PLACEHOLDER.search(secret):
            raise ValueError(f"key {position} is an example, which everyone knows: {_ADVICE}")
        keys[id_] = secret
    if not keys:
        raise ValueError(f"there is no key: {_ADVICE}")
    return keys
