"""How long a batch of the ledger waits for locks and keys of other transactions, and the errors after that."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from howdah import LockTimeout, UniqueViolation

# It is longer than several processes wait for each other's batches. All requests of a batch wait for this time. After
# that, those of the locked account wait in the blocked queue, with the session's `lock_timeout`.
LOCK_WAIT_MS: Final = 200
# A `LockTimeout` after this time isn't caused by `LOCK_WAIT_MS`: the statement waited for a lock on the whole table.
_MAX_WAIT_SECONDS: Final = 1.5


class KeyInUse(Exception):
    """Another transaction has used one of the idempotency keys. Roll back this transaction, and repeat it."""


class LockedForLong(Exception):
    """Another transaction has locked an account, or has written an idempotency key, and hasn't ended within
    `LOCK_WAIT_MS`. Nothing was written."""


class KeyLocked(LockedForLong):
    """`LockedForLong` because of an idempotency key."""


@contextmanager
def raise_key_in_use() -> Iterator[None]:
    """Raise `KeyInUse` instead of a unique violation of the idempotency keys."""
    try:
        yield
    except UniqueViolation as error:
        if error.constraint != "pk_idempotency_keys":
            raise
        raise KeyInUse from error


@contextmanager
def raise_locked_for_long(error_type: type[LockedForLong] = LockedForLong) -> Iterator[None]:
    """Raise this error instead of a `LockTimeout` after `LOCK_WAIT_MS`.

    The statement in this block must set that limit itself.
    """
    started = time.monotonic()
    try:
        yield
    except LockTimeout as error:
        if time.monotonic() - started > _MAX_WAIT_SECONDS:
            raise
        raise error_type from error
