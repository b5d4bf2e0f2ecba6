"""Errors that a column type raises for a value. The caller gets an error of `howdah.errors` with the same text."""

from __future__ import annotations

import asyncpg


class RejectedValue(ValueError):
    """A column type of this library has rejected a value. The text gives the reason, but not the value.

    The caller gets an `InvalidValue` with this text.
    """


class RejectedTime(RejectedValue, OverflowError):
    """A time is rejected, because it couldn't be read back exactly. The caller gets an `OutOfRange` with this text."""


class UnreadableTime(asyncpg.InterfaceError, RejectedTime):  # type: ignore[misc]  # asyncpg has no types
    """The database has a time that Python's type can't hold. The driver raises this error while it reads a result."""
