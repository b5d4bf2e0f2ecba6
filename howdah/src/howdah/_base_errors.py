"""The base classes of the error tree, which is at the top of `howdah.errors`."""

from __future__ import annotations


class HowdahError(Exception):
    """The base class of all errors of this library.

    Wrong arguments of a call raise Python's `TypeError` or `ValueError` instead.
    """


class Unavailable(HowdahError):
    """The database can't serve the request now. The request itself is correct, so a later retry may succeed."""


class OutcomeUnknown(Unavailable):
    """The answer didn't arrive, so the changes may have been written or not.

    Before a retry, check in the database whether they were written, or send the request with an idempotency key. A read
    can be repeated.
    """
