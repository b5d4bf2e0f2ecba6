"""The plugin with the fixtures on a real PostgreSQL, and the Hypothesis profiles of property tests."""

import gc
import os
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis.database import DirectoryBasedExampleDatabase, ReadOnlyDatabase

# These imports come first. Otherwise pytest would take the parent folder of shop/tests for the package `shop`.
import howdah  # noqa: F401
import shop  # noqa: F401

pytest_plugins = ["howdah.testing"]

# Container images often set this variable. Then each of the many processes that tests start compiles every module.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# `make test` runs the stored examples, and then generates the same examples in each run. `make soak` generates random
# examples, and stores those that fail. Commit a stored example together with the fix.
_examples = DirectoryBasedExampleDatabase(Path(__file__).parent / "soak" / "examples")
_common = settings(
    deadline=None,  # on a busy machine a slow example is not a failure
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    print_blob=True,
)
_derandomized = settings(_common, derandomize=True, max_examples=300)
# Hypothesis rejects `settings(derandomize=True, database=...)`, but not an inherited `derandomize`. This is tested in
# test_property_profiles.py.
settings.register_profile("repeatable", _derandomized, database=ReadOnlyDatabase(_examples))
settings.register_profile("random", _common, derandomize=False, database=_examples, max_examples=1_000)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    packages = {item.path.relative_to(config.rootpath).parts[0] for item in items}
    if len(packages) > 1:  # each package has its own schema, and a run has one template database
        raise pytest.UsageError(f"run {' and '.join(sorted(packages))} one after the other, as make test does")


def pytest_collection_finish() -> None:
    """Let the garbage collector ignore the modules and the tests, and run less often.

    There are so many of these objects that the collections would take a fifth of the CPU time of the tests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 30)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Describe a failed test without garbage collection.

    pytest parses the source code of the test. Before Python 3.11.8, `ast.parse` raises `SystemError` if `ast.parse` is
    called within it, in a finalizer or in another thread, and this exception ends the whole run. Only a garbage
    collection lets other Python code run within `ast.parse`.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return (yield)
    finally:
        if was_enabled:
            gc.enable()
