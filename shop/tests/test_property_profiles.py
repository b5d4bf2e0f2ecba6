"""How property tests choose their examples. The profiles are in the root's conftest.py."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.database import ExampleDatabase, InMemoryExampleDatabase, ReadOnlyDatabase

LIMIT = 100


def examples(profile: str, database: ExampleDatabase, *, broken: bool = False) -> tuple[list[int], bool]:
    """The examples that a test gets under a profile, and whether it passes; if `broken` it fails above the limit."""
    seen = []

    @settings(settings.get_profile(profile), database=database, max_examples=20)
    @given(st.integers(0, 10**9))
    def test(number: int) -> None:
        seen.append(number)
        assert not broken or number < LIMIT

    try:
        test()
    except AssertionError:
        return seen, False
    return seen, True


def test_the_tests_run_with_one_of_the_profiles() -> None:
    assert settings.get_current_profile_name() in {"repeatable", "random"}


def test_repeatable_examples_are_the_same_in_each_run_and_random_ones_are_not() -> None:
    nothing = ReadOnlyDatabase(InMemoryExampleDatabase())
    assert examples("repeatable", nothing) == examples("repeatable", nothing)
    assert examples("random", nothing) != examples("random", nothing)


@pytest.mark.parametrize("profile", ["repeatable", "random"])
def test_an_example_that_failed_is_stored_and_comes_first(profile: str) -> None:
    stored = InMemoryExampleDatabase()
    assert examples("repeatable", ReadOnlyDatabase(stored))[0][0] != LIMIT
    _, passed = examples("random", stored, broken=True)
    assert not passed
    seen, passed = examples(profile, ReadOnlyDatabase(stored), broken=True)
    assert (seen[0], passed) == (LIMIT, False)
    seen, passed = examples(profile, ReadOnlyDatabase(stored))
    assert (seen[0], passed) == (LIMIT, True)
