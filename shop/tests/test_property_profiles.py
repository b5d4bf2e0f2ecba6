"""How property tests choose their examples. The profiles are in the root's conftest.py."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.database import ExampleDatabase, InMemoryExampleDatabase, ReadOnlyDatabase

LIMIT = 100


def examples(profile: str, database: ExampleDatabase, *, is_broken: bool = False) -> tuple[list[int], bool]:
    """The examples of a test under a profile, and whether it passes. With `is_broken` it fails above the limit."""
    seen = []

    @settings(settings.get_profile(profile), database=database, max_examples=20)
    @given(st.integers(0, 10**9))
    def test(number: int) -> None:
        seen.append(number)
        assert not is_broken or number < LIMIT

    try:
        test()
    except AssertionError:
        return seen, False
    return seen, True


def test_the_tests_run_with_one_of_the_profiles() -> None:
    assert settings.get_current_profile_name() in {"repeatable", "random"}


def test_repeatable_examples_are_the_same_in_each_run_and_random_ones_differ() -> None:
    empty = ReadOnlyDatabase(InMemoryExampleDatabase())
    assert examples("repeatable", empty) == examples("repeatable", empty)
    assert examples("random", empty) != examples("random", empty)


@pytest.mark.parametrize("profile", ["repeatable", "random"])
def test_a_failed_example_is_stored_and_tried_first(profile: str) -> None:
    stored = InMemoryExampleDatabase()
    assert examples("repeatable", ReadOnlyDatabase(stored))[0][0] != LIMIT
    _, passed = examples("random", stored, is_broken=True)
    assert not passed
    seen, passed = examples(profile, ReadOnlyDatabase(stored), is_broken=True)
    assert (seen[0], passed) == (LIMIT, False)
    seen, passed = examples(profile, ReadOnlyDatabase(stored))
    assert (seen[0], passed) == (LIMIT, True)
