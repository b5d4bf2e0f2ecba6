"""The options of `shop import`. This module imports no large library, because `shop --help` imports it."""

from enum import StrEnum
from typing import Final


class TimeFormat(StrEnum):
    """How a file writes its times. A year has two or four digits. Two digits mean 1969 to 2068, as in POSIX."""

    ISO = "iso"
    MONTH_FIRST = "month-first"
    DAY_FIRST = "day-first"

    @property
    def pattern(self) -> str:
        return _PATTERNS[self]


_PATTERNS: Final = {
    TimeFormat.ISO: "YYYY-MM-DD HH:MM:SS",
    TimeFormat.MONTH_FIRST: "M/D/YY H:MM",
    TimeFormat.DAY_FIRST: "D/M/YY H:MM",
}
