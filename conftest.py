"""Fixtures on a real PostgreSQL for every test here."""

import pytest

# Imported before pytest looks at shop/tests, whose parent folder it would otherwise take for the package `shop`.
import howdah  # noqa: F401
import shop  # noqa: F401

pytest_plugins = ["howdah.testing"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    rooms = {item.path.relative_to(config.rootpath).parts[0] for item in items}
    if len(rooms) > 1:  # each has its own schema, and a run has one template
        raise pytest.UsageError(f"run {' and '.join(sorted(rooms))} one after the other, as make test does")
