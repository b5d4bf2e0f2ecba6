"""Whether other processes post on the same accounts, while the batches of this process overlap."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID, uuid4

from shop.ledger.sharing import SharedAccounts

A, B = uuid4(), uuid4()


def record(shared: SharedAccounts, entries: dict[UUID, int], *entry_counts: int) -> None:
    with shared.posting(entries):
        shared.record(entries, entry_counts)


def record_overlapping(first: int, second: int, third: Sequence[int]) -> bool:
    """After a batch of one transfer, two batches of 3 and 5 transfers overlap, and the second result arrives first.

    The arguments are the entry counts before these batches, and those before a third one.
    """
    shared, early, late = SharedAccounts(), {A: 3, B: 3}, {A: 5, B: 5}
    record(shared, {A: 1, B: 1}, 0, 0)
    with shared.posting(early):
        with shared.posting(late):
            shared.record(late, [second, second])
        shared.record(early, [first, first])
    record(shared, {A: 1, B: 1}, *third)
    return shared.has_others


def test_results_in_another_order_show_no_others() -> None:
    assert not record_overlapping(first=1, second=4, third=(9, 9))


def test_entries_that_no_batch_of_this_process_has_created_show_others() -> None:
    assert record_overlapping(first=2, second=5, third=(10, 10))  # one before both batches
    assert record_overlapping(first=1, second=5, third=(10, 10))  # one between them
    assert record_overlapping(first=1, second=4, third=(9, 10))  # one after them


def test_others_are_forgotten_after_32_batches() -> None:
    shared = SharedAccounts()
    for number in range(34):
        record(shared, {A: 1, B: 1}, number + (number > 0), number + (number > 0))
        assert shared.has_others is (1 <= number < 33)
