"""Every module can be imported without another one of the package."""

from __future__ import annotations

import pytest

from howdah_tests.support.lone_imports import find_modules, import_each_alone

MODULES = find_modules("howdah")
# `import howdah._keys` imports the package `howdah` first, too.
FIRST = ["fastapi", "howdah", "pytest_asyncio"]


@pytest.fixture(scope="module")
def errors() -> dict[str, str | None]:
    return import_each_alone(MODULES, first=FIRST)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_can_be_imported_alone(errors: dict[str, str | None], module: str) -> None:
    assert errors[module] is None, errors[module]


def test_an_error_of_an_import_is_reported() -> None:
    """The control."""
    errors = import_each_alone(["howdah.no_such_module"], first=[])
    assert "ModuleNotFoundError" in (errors["howdah.no_such_module"] or "")
