"""Check the names and values of settings, roles and schemas, and quote them for SQL."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, TypeAlias
from uuid import UUID

SettingValue: TypeAlias = str | int | UUID

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)*")
_BY_KEYWORD: Final = {"role": "role=...", "search_path": "search_path=[...]"}
_BY_METHOD: Final = "session(isolation_level=..., read_only=...)"
# Settings that this library relies on, and settings that switch a protection off.
_REJECTED: Final = {
    **dict.fromkeys(
        ("client_encoding", "datestyle", "extra_float_digits", "intervalstyle", "standard_conforming_strings"),
        "the library depends on its present value",
    ),
    "timezone": "all sessions are in UTC",
    "row_security": "it would disable row-level security, or make queries fail",
    "session_authorization": "use role=... instead",
    "session_replication_role": "it would switch off triggers and foreign keys",
    "transaction_isolation": f"use {_BY_METHOD}",
    "transaction_read_only": f"use {_BY_METHOD}",
    "transaction_deferrable": f"use {_BY_METHOD}",
}


def quote_literal(value: str) -> str:
    """The value as an SQL string constant, which is valid with any `standard_conforming_strings`."""
    quoted = "'" + value.replace("'", "''") + "'"
    return "E" + quoted.replace("\\", "\\\\") if "\\" in quoted else quoted


def quote_identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@lru_cache(maxsize=256)
def quote_setting(name: str) -> str:
    return ".".join(map(quote_identifier, name.split(".")))


@lru_cache(maxsize=256)  # the names are constants of the application
def check_setting_name(name: object) -> str:
    """The name in lower case. Raises `ValueError` for an invalid name, or for a setting that can't be set."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} isn't the name of a setting: use letters, digits and '_', such as 'app.tenant_id'")
    folded = name.lower()
    if folded in _BY_KEYWORD:
        raise ValueError(f"{name!r} can't be set here: pass {_BY_KEYWORD[folded]} to with_settings()")
    if folded in _REJECTED:
        raise ValueError(f"{name!r} can't be set for a transaction: {_REJECTED[folded]}")
    return folded


def check_value(name: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | UUID):
        raise TypeError(
            f"the setting {name!r} must be a str, int or UUID, not {type(value).__name__}: reject a caller without "
            "a value before you call with_settings()"
        )
    text = str(value)
    if not text and "." in name:
        raise ValueError(f"the setting {name!r} is empty, which PostgreSQL can't tell from a setting that isn't set")
    _check_text(f"the setting {name!r}", text)
    return text


def check_identifier(kind: str, value: object) -> None:
    """Raise `TypeError` or `ValueError` if the value can't be the name of a role or a schema."""
    if not isinstance(value, str):
        raise TypeError(f"{kind} must be a name, not a {type(value).__name__}")
    if not value or len(value.encode(errors="replace")) > 63:
        raise ValueError(f"{kind} must be a name of 1 to 63 bytes, not {value!r}")
    _check_text(kind, value)


def check_role_name(role: object) -> None:
    """Raise `TypeError` or `ValueError` if transactions can't have this role."""
    check_identifier("role", role)
    if str(role).lower() == "none":
        raise ValueError("role can't be 'none': PostgreSQL would use the login role. Use another one, or leave it out")


def _check_text(what: str, text: str) -> None:
    if "\x00" in text:
        raise ValueError(f"{what} contains a NUL character, which PostgreSQL can't store")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} isn't valid Unicode: it contains a surrogate") from error
