"""Texts of the client in responses and log entries. They are shortened, because they may be as long as a body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

MAX_SHOWN_CHARACTERS: Final = 100
"""A response or a log entry shows this much of a text from the client."""

# A message may list all values of an enumeration, so it may be longer.
_MAX_MESSAGE_CHARACTERS: Final = 300


def shorten(text: str, limit: int = MAX_SHOWN_CHARACTERS) -> str:
    """The text, or its beginning and `…` if it is longer than the limit."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def shorten_place(place: tuple[str | int, ...]) -> list[str | int]:
    """The place of a validation error. Its parts may be names that the client chose."""
    return [shorten(part) if isinstance(part, str) else part for part in place]


def shorten_message(error: Mapping[str, Any]) -> str:
    """The message of a validation error. A long text of the client in it, such as an unknown tag, is shortened."""
    message: str = error["msg"]
    for value in (error.get("input"), *(error.get("ctx") or {}).values()):
        if isinstance(value, str) and len(value) > MAX_SHOWN_CHARACTERS:
            message = message.replace(value, shorten(value))
    return shorten(message, _MAX_MESSAGE_CHARACTERS)
