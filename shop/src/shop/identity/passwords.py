"""The rules for new passwords (NIST SP 800-63B, section 3.1.1, and ASVS 5.0, section 6.2).

A password has 12 to 128 characters, of any kind. There are no rules of composition, and passwords don't expire.
Common passwords, patterns, and texts that an attacker can derive from the address and the name are rejected.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Final

from shop.identity.errors import PasswordRejected

MIN_LENGTH: Final = 12
MAX_LENGTH: Final = 128
# A longer input is rejected before it is normalized. The factor leaves room for characters that are entered as several
# code points.
MAX_INPUT_LENGTH: Final = 3 * MAX_LENGTH

_ALPHABETS: Final = (
    "abcdefghijklmnopqrstuvwxyz",
    "0123456789",
    "qwertyuiopasdfghjklzxcvbnm",
    "qwertzuiopasdfghjklyxcvbnm",
)
# Each alphabet is repeated, because a sequence may continue at its beginning.
_SEQUENCES: Final = tuple(each * (MAX_LENGTH // len(each) + 2) for each in _ALPHABETS)
_PADDING: Final = re.compile(r"^[\W\d_]+|[\W\d_]+$")
_REPEATED: Final = re.compile(r"(.{1,6}?)\1+(?:.{0,5})", re.DOTALL)
_SPACES: Final = dict.fromkeys((160, 5760, *range(8192, 8203), 8239, 8287, 12288), " ")
# A shorter name occurs in too many passwords by chance.
_MIN_PERSONAL_LENGTH: Final = 4
_MIN_REST: Final = 6


def normalize_password(password: str) -> str:
    """The text that is hashed: NFC, with every kind of space as U+0020 (RFC 8265, section 4.2.2).

    Keyboards enter the same character as different sequences of code points.
    """
    return unicodedata.normalize("NFC", password.translate(_SPACES))


def check_new_password(password: str, *, personal: Iterable[str] = ()) -> str:
    """The normalized password. Raises `PasswordRejected`. `personal` are the user's address and name."""
    normalized = normalize_password(password[: MAX_INPUT_LENGTH + 1])
    if not MIN_LENGTH <= len(normalized) <= MAX_LENGTH or len(password) > MAX_INPUT_LENGTH:
        raise PasswordRejected("length", f"a password must have {MIN_LENGTH} to {MAX_LENGTH} characters")
    folded = normalized.casefold()
    if folded in _read_words("common_passwords") or _PADDING.sub("", folded) in _read_words("common_words"):
        raise PasswordRejected("common", "this password is one of the first that are tried: choose another one")
    if _REPEATED.fullmatch(folded) or any(folded in each or folded[::-1] in each for each in _SEQUENCES):
        raise PasswordRejected("pattern", "this password is a repetition or a sequence: choose another one")
    if any(len(folded.replace(each, "")) < _MIN_REST for each in _personal_words(personal)):
        raise PasswordRejected("personal", "this password is little more than your address or name: choose another one")
    return normalized


def _personal_words(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        folded = unicodedata.normalize("NFC", text).casefold()
        for word in (folded, *re.split(r"[\s@]+", folded)):
            if len(word) >= _MIN_PERSONAL_LENGTH:
                yield word


@cache
def _read_words(name: str) -> frozenset[str]:
    """`common_passwords` are those of zxcvbn's list (MIT licence) with at least 12 characters, and some more.

    `common_words` are the words that people pad with digits.
    """
    return frozenset(files("shop.identity").joinpath(f"{name}.txt").read_text(encoding="utf-8").split())
