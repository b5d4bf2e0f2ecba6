"""The responses of the matrix test: their comparison and their description."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import httpx

# 101: a WebSocket was accepted
SUCCESS: Final = frozenset({101, *range(200, 400)})
_MAX_SHOWN_CHARACTERS: Final = 160
# The key in a response's `extensions` for the texts of its request, which the response may repeat.
_SENT_KEY: Final = "howdah_sent"


def remember_sent(response: httpx.Response, *values: Any) -> None:
    response.extensions[_SENT_KEY] = _list_texts(values)


def get_sent(response: httpx.Response) -> Collection[str]:
    """The texts of the request."""
    sent: Collection[str] = response.extensions[_SENT_KEY]
    return sent


def can_tell_apart(foreign: httpx.Response, missing: httpx.Response) -> bool:
    """Whether the responses differ in more than the texts that were sent."""
    return _mask(foreign) != _mask(missing)


def _mask(response: httpx.Response) -> tuple[int, list[str], str]:
    text = response.text
    for each in sorted(get_sent(response), key=len, reverse=True):
        text = text.replace(each, "*")
    return response.status_code, sorted(response.headers), text


def _list_texts(value: Any) -> set[str]:
    """All texts and numbers within the value."""
    match value:
        case None | True | False | "":
            return set()
        case bytes():
            return {each for line in value.splitlines() for each in _list_texts(_load(line))}
        case Mapping():
            return {each for item in value.values() for each in _list_texts(item)}
        case list() | tuple() | set():
            return {each for item in value for each in _list_texts(item)}
    return {str(value)}


def _load(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line.decode(errors="replace")


def describe_statuses(statuses: Collection[int]) -> str:
    return "success" if statuses is SUCCESS else " or ".join(str(int(each)) for each in statuses)


def describe(response: httpx.Response) -> str:
    return f"{response.status_code} {shorten(response.text)}".rstrip()


def shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_SHOWN_CHARACTERS else f"{line[:_MAX_SHOWN_CHARACTERS]}…"
