"""Every module can be imported without another one of the package."""

from __future__ import annotations

import pytest

from howdah_tests.support.lone_imports import find_modules, import_each_alone

MODULES = find_modules("howdah")
# `import howdah._keys` imports the package `howdah` first, too.
FIRST = ["fastapi", "howdah", "pytest_asyncio", "structlog", "uvicorn.protocols.http.httptools_impl"]


@pytest.mark.timeout(300)
def test_each_module_can_be_imported_alone() -> None:
    errors = import_each_alone(MODULES, first=FIRST)
    assert errors.keys() == set(MODULES)
    failed = [f"{module}: {error}" for module, error in errors.items() if error is not None]
    assert not failed, "\n".join(failed)


def test_an_error_of_an_import_is_reported() -> None:
    """The control."""
    errors = import_each_alone(["howdah.no_such_module"], first=[])
    assert "ModuleNotFoundError" in (errors["howdah.no_such_module"] or "")
