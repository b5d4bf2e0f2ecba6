"""Fixtures on a real PostgreSQL for every test here, and how property tests choose their examples."""

from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis.database import DirectoryBasedExampleDatabase, ReadOnlyDatabase

# Imported before pytest looks at shop/tests, whose parent folder it would otherwise take for the package `shop`.
import howdah  # noqa: F401
import shop  # noqa: F401

pytest_plugins = ["howdah.testing"]

# `make soak` makes up other examples in each run, and stores what fails; commit that with the fix. `make test` makes up
# the same examples in each run, after those that are stored.
_examples = DirectoryBasedExampleDatabase(Path(__file__).parent / "soak" / "examples")
_common = settings(
    deadline=None,  # a busy machine is no failure
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    print_blob=True,
)
_derandomized = settings(_common, derandomize=True, max_examples=300)
# `settings(derandomize=True, database=...)` is refused; test_property_profiles.py shows that inherited it works.
settings.register_profile("repeatable", _derandomized, database=ReadOnlyDatabase(_examples))
settings.register_profile("random", _common, derandomize=False, database=_examples, max_examples=1_000)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    rooms = {item.path.relative_to(config.rootpath).parts[0] for item in items}
    if len(rooms) > 1:  # each has its own schema, and a run has one template
        raise pytest.UsageError(f"run {' and '.join(sorted(rooms))} one after the other, as make test does")
