"""Types for request models that accept one spelling of a value. Pydantic accepts several, and guesses.

Pydantic reads the string "20240101" and the number 1700000000 as seconds since 1970, and a date as its midnight. It
reads "1.0", " 1" and "1_000" as integers.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import AwareDatetime, BeforeValidator
from pydantic_core import PydanticCustomError

_EXAMPLE: Final = "2026-11-26T09:30:00Z or 2026-11-26T10:30:00.25+01:00"
_DATE_TIME: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt](?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)",
    re.ASCII,
)
# A rejected text gets the hint of the first pattern that matches it. Longer texts get no hint, because these patterns
# take quadratic time. The longest valid text has 32 characters.
_MAX_HINTED_LENGTH: Final = 50
_HINTS: Final = tuple(
    (re.compile(pattern, re.ASCII), hint)
    for pattern, hint in (
        (r".*T.* \d\d:\d\d", "there is a space in place of the offset's sign: write + as %2B in a URL"),
        (r".*T\d\d:\d\d:60.*", "a leap second can't be stored: write the second before or after it"),
        (r".*T\d\d:\d\d:\d\d\.\d{7,}(Z|[+-].*)", "at most six digits of a second's fraction can be stored"),
        (r".*T\d\d:\d\d:\d\d(\.\d+)?", "the offset is missing: add Z for UTC, or an offset such as +01:00"),
        (r".*T\d\d:\d\d(Z|[+-].*)", "the seconds are missing"),
        (r".*T.*[+-]\d\d(\d\d|:\d\d:\d\d.*)?", "an offset has hours and minutes, such as +01:00"),
        (r"\d{4}-\d\d-\d\d", "the time and its offset are missing"),
        (r"\d{4}-\d\d-\d\d \d.*", "T must stand between the date and the time"),
    )
)
_INTEGER: Final = re.compile(r"-?\d+", re.ASCII)


def _parse_datetime(value: Any) -> datetime:
    """The `datetime` of an RFC 3339 string. Raises `PydanticCustomError` with a hint about what is wrong."""
    if isinstance(value, datetime):  # from Python code; `AwareDatetime` rejects a naive one
        return value
    if not isinstance(value, str):
        raise _not_a_datetime("a string is expected")
    if _DATE_TIME.fullmatch(value) is None:
        raise _not_a_datetime(_find_hint(value.upper()) if len(value) <= _MAX_HINTED_LENGTH else None)
    try:
        return datetime.fromisoformat(value.upper())
    except ValueError as error:  # no such day, or the year 0000
        raise _not_a_datetime(str(error)) from error


def _find_hint(text: str) -> str | None:
    return next((hint for pattern, hint in _HINTS if pattern.fullmatch(text)), None)


def _not_a_datetime(hint: str | None) -> PydanticCustomError:
    return PydanticCustomError(
        "rfc3339_datetime",
        "this is not an RFC 3339 date-time such as {example}{hint}",
        {"example": _EXAMPLE, "hint": "" if hint is None else f": {hint}"},
    )


def _parse_integer(value: Any) -> Any:
    if type(value) is int or (isinstance(value, str) and _INTEGER.fullmatch(value)):
        return value
    raise PydanticCustomError("decimal_integer", "this is not an integer in decimal digits, such as 50")


RFC3339Datetime = Annotated[AwareDatetime, BeforeValidator(_parse_datetime)]
"""An aware `datetime` from a string as RFC 3339, section 5.6, defines it: `2026-11-26T09:30:00Z`.

The seconds and the offset are required. The letters T and Z may be lower-case, as in the RFC. A space in place of the T
is rejected: the RFC mentions it as a choice of applications, but its grammar doesn't allow it. `-00:00` is read as UTC
(RFC 3339, section 4.3).

Values that a `datetime` can't hold exactly are rejected: more than six digits of a second's fraction, a leap second
(`:60`), and the year 0000. Numbers, booleans, dates and other forms of ISO 8601 are rejected. Python code may pass an
aware `datetime`.

`datetime.isoformat()` writes this form if the value has an offset of whole minutes. The JSON schema is
`{"type": "string", "format": "date-time"}`.
"""

DecimalDigits: Final = BeforeValidator(_parse_integer)
"""Accepts an integer only as ASCII digits, with an optional minus sign: `Annotated[int, Field(ge=0), DecimalDigits]`.

Use it for query, path and header parameters, where Pydantic's `int` also reads "1.0", " 1", "+1" and "1_000". Write it
after the bounds; otherwise the JSON schema lacks them. For a member of a JSON body use `StrictInt`, because this
annotation accepts strings there, too.
"""
