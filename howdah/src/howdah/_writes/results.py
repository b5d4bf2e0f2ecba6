"""The results of bulk writes, and the counts from which they are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from howdah.errors import DatabaseError


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row that wasn't written: its position in the input, from 0, and its error.

    The error is an `IntegrityViolation` or an `InvalidValue`. Its traceback is removed.
    """

    index: int
    error: DatabaseError


@dataclass(frozen=True, slots=True)
class InsertResult:
    """The number of inserted rows, and their keys in the order of the input.

    `keys` is empty if it wasn't requested. `rejected` has the rows that `max_rejected` allowed to skip, in the order of
    the input. Skipped rows aren't counted and have no key.
    """

    count: int
    keys: list[Any] = field(default_factory=list)
    rejected: list[RejectedRow] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class MatchResult:
    """The number of requested keys that have a row, and the keys without a row in the order of the input.

    PostgreSQL decides which keys are equal. `update_by_key` and `delete_many` count each row once, even if it was
    requested by two spellings of its key ('Abc' and 'ABC' in a citext column). `missing` has the keys as the caller has
    spelled them.
    """

    count: int
    missing: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class UpsertResult:
    """The number of input rows that were inserted, that changed an existing row, and that left it unchanged.

    A row counts as `suppressed` if a BEFORE INSERT trigger returned NULL for it, and no existing row has its `on`
    values. Such a row wasn't written. `rejected` has the rows that `max_rejected` allowed to skip, in the order of the
    input. They aren't in the counts.
    """

    created: int
    updated: int
    unchanged: int
    suppressed: int = 0
    rejected: list[RejectedRow] = field(default_factory=list)


@dataclass
class UpsertCounts:
    """The number of rows that were inserted, that changed an existing row, and that a trigger suppressed.

    `changed_keys` are the keys of the changed rows, if they were requested.
    """

    created: int = 0
    updated: int = 0
    suppressed: int = 0
    changed_keys: list[Any] = field(default_factory=list)

    def __add__(self, other: UpsertCounts) -> UpsertCounts:
        return UpsertCounts(
            self.created + other.created,
            self.updated + other.updated,
            self.suppressed + other.suppressed,
            self.changed_keys + other.changed_keys,
        )
